"""The writing end of the segment store, in decode. It runs on the decoder's thread and never makes decoding fail."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.segments.format import PART_SUFFIX, SegmentHeader, finished_segments, packet_head, segment_name

MAX_BYTES = 256 << 20
"""limit of the store of one stream: four minutes of a camera with 8 Mbit/s"""
SEGMENT_S = 2.0
LONGEST_SEGMENT_S = 10.0
"""A segment is cut at this length even without a key frame; the reader's decoder continues across the cut."""

_log = logging.getLogger(__name__)


class SegmentWriter:
    """Stores the packets of one stream in segments of about SEGMENT_S seconds; the oldest go beyond `max_bytes`.

    No method raises. If the store cannot be written, it logs one warning and stores nothing until the next connection.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES, segment_s: float = SEGMENT_S) -> None:
        self._folder = folder
        self._segment_s = segment_s
        self._max_segment_bytes = max_bytes // 8
        self._max_finished_bytes = max_bytes - self._max_segment_bytes
        self._epoch: int | None = None
        self._header: SegmentHeader | None = None
        self._number = 0
        self._pending: list[Any] = []
        self._pending_bytes = 0
        self._file: BinaryIO | None = None
        self._path = folder
        self._num_bytes = 0
        self._begun_at_s = 0.0
        self._given_up = self._warned = False

    def take(self, packet: Any) -> None:
        """Store one av packet of the video stream before it is decoded. The packet must hold data."""
        if self._given_up:
            return
        try:
            if self._header is None:
                # Once per connection: the decoder's size changes with the pictures, and a header that differs from the
                # one before makes the reader start a decoder, which needs a key frame.
                self._header = SegmentHeader.of(packet)
            if self._epoch is None:
                self._buffer(packet)
            else:
                self._write(packet)
        except Exception as error:  # no error of the store may stop decoding
            self._give_up(error)

    def begin(self, epoch: int) -> None:
        """Set the epoch of the connection; the packets taken since the last `end` belong to it."""
        try:
            self._adopt()
            numbers = [number for other, number, _ in finished_segments(self._folder) if other == epoch]
            # After segments of an earlier decoder one number is skipped: the packets are not consecutive, and the gap
            # makes the reader start a decoder.
            self._number = max(numbers) + 1 if numbers else 0
            self._epoch = epoch
            pending, self._pending = self._pending, []
            for packet in pending:
                self.take(packet)
        except OSError as error:
            self._give_up(error)

    def end(self) -> None:
        """Finish the last segment of a connection that is over."""
        try:
            self._finish_segment()
        except OSError as error:
            self._give_up(error)
        self._pending.clear()
        self._pending_bytes = 0
        self._header = None
        self._epoch = None
        self._given_up = False

    def _buffer(self, packet: Any) -> None:
        self._pending.append(packet)
        self._pending_bytes += packet.size
        if self._pending_bytes > self._max_segment_bytes:
            raise ValueError(f"{self._pending_bytes} bytes arrived before the first decodable picture")

    def _write(self, packet: Any) -> None:
        if self._file is not None and self._is_full(packet):
            self._finish_segment()
        if self._file is None:
            self._start_segment()
        if self._file is not None:
            head = packet_head(packet)
            self._file.write(head)
            self._file.write(packet)
            self._file.flush()  # so that a killed decoder loses no packet that it has decoded
            self._num_bytes += len(head) + packet.size

    def _is_full(self, packet: Any) -> bool:
        """Whether the segment ends before this packet: at a key frame, or at the limit of length or size."""
        if self._num_bytes + packet.size > self._max_segment_bytes:
            return True
        length_s = time.monotonic() - self._begun_at_s
        return length_s >= (self._segment_s if packet.is_keyframe else LONGEST_SEGMENT_S)

    def _start_segment(self) -> None:
        header = self._header.encode() if self._header is not None else b""
        self._number += 1
        self._path = self._folder / segment_name(self._epoch or 0, self._number)
        self._file = open(_part_of(self._path), "wb")  # noqa: SIM115 (stays open)
        self._file.write(header)
        self._num_bytes = len(header)
        self._begun_at_s = time.monotonic()

    def _finish_segment(self) -> None:
        if self._file is None:
            return
        self._file.close()
        self._file = None
        _part_of(self._path).rename(self._path)
        self._make_room()

    def _make_room(self) -> None:
        segments = []
        for _, _, path in finished_segments(self._folder):
            with contextlib.suppress(FileNotFoundError):  # the reader has deleted it
                segments.append((path, path.stat().st_size))
        total = sum(size for _, size in segments)
        for path, size in segments:
            if total <= self._max_finished_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _adopt(self) -> None:
        """Finish the segments that a killed decoder left incomplete."""
        for part in self._folder.glob(f"*{PART_SUFFIX}"):
            part.rename(part.with_name(part.name.removesuffix(PART_SUFFIX)))

    def _give_up(self, error: Exception) -> None:
        if not self._warned:
            _log.warning("pictures for the video cannot be stored in %s: %s; they will be missing", self._folder, error)
        self._given_up = self._warned = True
        self._pending.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):  # buffered bytes cannot be written either
                self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            if self._path != self._folder:
                _part_of(self._path).unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + PART_SUFFIX)
