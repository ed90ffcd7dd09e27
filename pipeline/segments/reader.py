"""The reading end of the segment store, in the sink: decodes the stored packets."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from pipeline.errors import OutputError
from pipeline.segments.folder import READER_LOCK, try_lock
from pipeline.segments.format import SegmentHeader, finished_segments, read_segment
from pipeline.source.picture import MediaClock, Orientations, Picture


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """An undamaged picture of a camera, with what its connection says about it.

    epoch          stream epoch of its connection, as in the results
    picture        with the same pts_s as in decode; `ordinal` counts the pictures of this reader
    fps            pictures per second on average; None if unknown
    """

    epoch: int
    picture: Picture
    fps: float | None


class SegmentReader:
    """Decodes the finished segments of a folder in order and deletes each as it is read. One reader per folder.

    One decoder runs through consecutive segments, because the first pictures of a segment can refer to the segment
    before. Damaged packets and pictures are skipped, as in decode.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OutputError if the folder is not on this host, or another reader holds its lock."""
        try:
            lock = try_lock(folder / READER_LOCK)
        except OSError:
            raise OutputError("the pictures of the camera are not on this host") from None
        if lock is None:
            raise OutputError("another sink has the pictures of the camera")
        self._lock = lock
        self._folder = folder
        self._place = (0, 0)
        self._header: SegmentHeader | None = None
        self._context: Any = None
        self._clock = MediaClock(None, None)
        self._orientations = Orientations()
        self._packets: Iterator[Any] = iter(())
        self._ready: deque[StoredPicture] = deque()
        self._num_given = 0

    def read(self, *, at_end: bool = False) -> StoredPicture | None:
        """The next picture; None while there is no finished segment.

        at_end   the decoder has stopped writing: pictures that are still buffered are returned, too, then only None
        """
        while not self._ready:
            packet = next(self._packets, None)
            if packet is not None:
                self._decode(packet)
            elif not self._open_next():
                if not at_end or self._context is None:
                    return None
                self._empty_decoder()
        return self._ready.popleft()

    def close(self) -> None:
        """Release the folder; may be called more than once."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _open_next(self) -> bool:
        """Open the oldest segment and delete its file. Returns False if there is none."""
        for epoch, number, path in finished_segments(self._folder):
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # the writer has deleted it to make room
                continue
            path.unlink(missing_ok=True)
            try:
                header, self._packets = read_segment(content)
            except ValueError:  # decode was killed while it wrote the header
                continue
            if header != self._header or (epoch, number - 1) != self._place:
                self._empty_decoder()
                self._start_decoder(header)
            self._place = (epoch, number)
            return True
        return False

    def _start_decoder(self, header: SegmentHeader) -> None:
        context: Any = av.CodecContext.create(header.codec, "r")
        if header.extradata:
            context.extradata = header.extradata
        context.width, context.height = header.width, header.height
        if header.pixel_format:
            context.pix_fmt = header.pixel_format
        context.thread_count = 1  # as in decode, so that the same pictures are damaged
        self._header, self._context = header, context
        self._clock = MediaClock(header.fps, Fraction(*header.time_base))

    def _decode(self, packet: Any) -> None:
        try:
            frames = self._context.decode(packet)
        except av.FFmpegError:
            return
        self._keep(frames)

    def _empty_decoder(self) -> None:
        """Take the buffered pictures out of the decoder and drop it."""
        if self._context is not None:
            self._decode(None)
            self._context = self._header = None

    def _keep(self, frames: list[Any]) -> None:
        if self._header is None:
            return
        aspect = Fraction(*self._header.pixel_aspect)
        for frame in frames:
            if frame.is_corrupt:
                continue
            self._num_given += 1
            pts_s, orientation = self._clock.of(frame), self._orientations.of(frame)
            seen_aspect = 1 / aspect if orientation.transpose else aspect
            picture = Picture(self._num_given, pts_s, frame, orientation, time.monotonic(), None, "host", seen_aspect)
            self._ready.append(StoredPicture(self._place[0], picture, self._header.fps))
