"""decode's end of the segment store: packets in, files out, on the decoder's thread and never in its way."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.segments.format import PART_SUFFIX, SegmentHeader, finished_segments, packet_head, segment_name

MAX_BYTES = 256 << 20
"""of one stream; four minutes of a camera with 8 Mbit/s"""
SEGMENT_S = 2.0
LONGEST_SEGMENT_S = 10.0
"""a camera with fewer key frames is cut elsewhere: the reader's decoder runs on from one segment to the next"""

_log = logging.getLogger(__name__)


class SegmentWriter:
    """Keeps the packets of one stream as segments of about SEGMENT_S; beyond `max_bytes` the oldest go.

    Nothing is raised: what cannot be written is given up until the next connection, with one warning.
    """

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES, segment_s: float = SEGMENT_S) -> None:
        self._folder = folder
        self._segment_s = segment_s
        self._max_segment_bytes = max_bytes // 8
        self._max_finished_bytes = max_bytes - self._max_segment_bytes
        self._epoch: int | None = None
        self._header: SegmentHeader | None = None
        self._number = 0
        self._held: list[Any] = []
        self._held_bytes = 0
        self._file: BinaryIO | None = None
        self._path = folder
        self._num_bytes = 0
        self._begun_at_s = 0.0
        self._given_up = self._warned = False

    def take(self, packet: Any) -> None:
        """Keep one av packet of the video stream, before it is decoded; packets without data are none."""
        if self._given_up:
            return
        try:
            if self._header is None:
                # Once per connection: the decoder's size changes with the pictures, and a header that differs from the
                # one before makes the reader start a decoder, which needs a key frame.
                self._header = SegmentHeader.of(packet.stream)
            if self._epoch is None:
                self._hold(packet)
            else:
                self._write(packet)
        except Exception as error:  # whatever is wrong with the store, decoding goes on
            self._give_up(error)

    def begin(self, epoch: int) -> None:
        """The number of this connection is known: what was taken since the last `end` belongs to it, too."""
        try:
            self._adopt()
            numbers = [number for other, number, _ in finished_segments(self._folder) if other == epoch]
            # were the epoch there already, a number would be left out: its packets do not follow on those
            self._number = max(numbers) + 1 if numbers else 0
            self._epoch = epoch
            held, self._held = self._held, []
            for packet in held:
                self.take(packet)
        except OSError as error:
            self._give_up(error)

    def end(self) -> None:
        """The connection is over: finish its last segment."""
        try:
            self._finish_segment()
        except OSError as error:
            self._give_up(error)
        self._held.clear()
        self._held_bytes = 0
        self._header = None
        self._epoch = None
        self._given_up = False

    def _hold(self, packet: Any) -> None:
        self._held.append(packet)
        self._held_bytes += packet.size
        if self._held_bytes > self._max_segment_bytes:
            raise ValueError(f"{self._held_bytes} bytes came without a sound picture")

    def _write(self, packet: Any) -> None:
        if self._file is not None and self._is_full(packet):
            self._finish_segment()
        if self._file is None:
            self._start_segment()
        if self._file is not None:
            head = packet_head(packet)
            self._file.write(head)
            self._file.write(packet)
            self._file.flush()  # whatever was decoded can be read again, also when the decoder is killed now
            self._num_bytes += len(head) + packet.size

    def _is_full(self, packet: Any) -> bool:
        """Whether the segment ends before this packet: at a key frame, or elsewhere when none comes for long."""
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
            with contextlib.suppress(FileNotFoundError):  # the reader has just removed it
                segments.append((path, path.stat().st_size))
        total = sum(size for _, size in segments)
        for path, size in segments:
            if total <= self._max_finished_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _adopt(self) -> None:
        """Finish what a decoder that was killed left."""
        for part in self._folder.glob(f"*{PART_SUFFIX}"):
            part.rename(part.with_name(part.name.removesuffix(PART_SUFFIX)))

    def _give_up(self, error: Exception) -> None:
        if not self._warned:
            _log.warning("pictures for the video cannot be kept in %s: %s; it will lack them", self._folder, error)
        self._given_up = self._warned = True
        self._held.clear()
        if self._file is not None:
            with contextlib.suppress(OSError):  # what is buffered cannot be written either
                self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            if self._path != self._folder:
                _part_of(self._path).unlink(missing_ok=True)


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + PART_SUFFIX)
