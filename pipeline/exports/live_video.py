"""The annotated video of a camera: it joins the pictures that the decode worker stored with their results, by epoch and
media time.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

from pipeline.contract.results import AnyResult, FrameResult
from pipeline.exports.annotated import ENCODER_THREADS, AnnotatedMp4
from pipeline.exports.writer import Writer
from pipeline.segments import SegmentReader, StoredPicture

MAX_WAITING = 1024
"""Maximum number of results that wait for their pictures. Pictures arrive when their segment is complete, after at most
ten seconds."""

_log = logging.getLogger(__name__)
_EpochTime = tuple[int, float]
"""(epoch, pts_s), which rises strictly over a stream"""


class LiveVideoWriter(Writer):
    """Writes the MP4 of a live stream: the pictures that have a result, at the speed of the source, without sound.

    Within a connection the video follows media time; between connections it follows the time of arrival. Results whose
    pictures are gone are left out and counted: the store is bounded, and a writer that was killed loses the pictures
    that it had read. The file grows as `NAME.part` and gets its name when it is complete. A stream without pictures
    gets no file.
    """

    needs_whole_log = False

    def __init__(self, path: Path, reader: SegmentReader, *, num_threads: int = ENCODER_THREADS) -> None:
        self._path = path
        self._reader = reader
        self._mp4 = AnnotatedMp4(path, num_threads)
        self._waiting: deque[tuple[_EpochTime, FrameResult]] = deque()
        self._picture: tuple[_EpochTime, StoredPicture] | None = None
        self._timeline = _Timeline()
        self._num_without_picture = 0

    def write(self, message: AnyResult, payload: bytes = b"") -> None:
        """Take the next message, and write the pictures that have arrived. Raises OutputError."""
        if isinstance(message, FrameResult):
            if len(self._waiting) == MAX_WAITING:
                self._leave_out()
            self._waiting.append(((message.stream_epoch, message.pts_s), message))
            with self._mp4.translating_errors(self.discard):
                self._join(at_end=False)

    def finish(self) -> None:
        """Write the remaining pictures and complete the file. Raises OutputError.

        Call it when the decoder has stopped.
        """
        with self._mp4.translating_errors(self.discard):
            self._join(at_end=True)
            self._num_without_picture += len(self._waiting)
            self._waiting.clear()
            self._mp4.flush()
            self._mp4.complete()
        if self._num_without_picture:
            _log.warning(
                "%s lacks %d frames that have results: their pictures were no longer stored",
                self._path,
                self._num_without_picture,
            )
            self._num_without_picture = 0
        self.discard()

    def discard(self) -> None:
        """Release the stored pictures, and remove an MP4 that is not complete."""
        self._reader.close()
        self._mp4.discard()

    def _join(self, *, at_end: bool) -> None:
        """Merge results and pictures, both in order of `_EpochTime`. Leave out an item without its counterpart."""
        while self._waiting:
            if self._picture is None:
                stored = self._reader.read(at_end=at_end)
                if stored is None:
                    return
                self._picture = ((stored.epoch, stored.picture.pts_s), stored)
            picture_time, stored = self._picture
            result_time, result = self._waiting[0]
            if picture_time > result_time:
                self._leave_out()
                continue
            self._picture = None
            if picture_time == result_time:
                self._write(stored, result, result_time)

    def _write(self, stored: StoredPicture, result: FrameResult, epoch_time: _EpochTime) -> None:
        if (stored.picture.width, stored.picture.height) != (result.width, result.height):
            self._leave_out()
            return
        self._waiting.popleft()
        if not self._mp4.begun:
            self._mp4.begin(stored.picture, stored.fps, stored.picture.pixel_aspect)
        self._mp4.add(stored.picture, result, self._timeline.time_of(epoch_time, result))

    def _leave_out(self) -> None:
        self._waiting.popleft()
        self._num_without_picture += 1


class _Timeline:
    """Seconds since the first frame: media time within an epoch, time of arrival between epochs."""

    def __init__(self) -> None:
        self._epoch: int | None = None
        self._offset_s = 0.0
        self._last_s = 0.0
        self._last_arrived_at_ns = 0

    def time_of(self, epoch_time: _EpochTime, result: FrameResult) -> float:
        epoch, pts_s = epoch_time
        if self._epoch != epoch:
            passed_s = 0.0
            if self._epoch is not None:
                passed_s = max(0.0, (result.arrived_at_ns - self._last_arrived_at_ns) / 1e9)
            self._offset_s = pts_s - (self._last_s + passed_s)
            self._epoch = epoch
        self._last_s, self._last_arrived_at_ns = pts_s - self._offset_s, result.arrived_at_ns
        return self._last_s
