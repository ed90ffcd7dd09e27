"""The annotated video of a file: the source read once more, joined with its results by number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from pipeline.contract.config import StreamConfig
from pipeline.contract.results import AnyResult, FrameResult, GapResult
from pipeline.errors import SourceError
from pipeline.exports.annotated import ENCODER_THREADS, AnnotatedMp4
from pipeline.exports.sound import RESTART_STEP_S, Sound, open_sound
from pipeline.source import Picture, Reader, Selection, open_source, redact


class VideoWriter:
    """Writes the MP4 of a stream whose source can be read again.

    One picture for every number that the log covers, gaps without annotation, each shown when the source shows it. Time
    starts at the first picture; where the source's steps back a long way (joined recordings), it goes on behind the
    last. The file grows as `NAME.part` and gets its name when it is complete. A stream without a frame gets none.

    A context manager that finishes the file, or removes it when leaving with an error.
    """

    def __init__(self, path: Path, stream: StreamConfig, *, num_threads: int = ENCODER_THREADS) -> None:
        self._stream = stream
        self._selection = Selection(stream.stride, stream.max_fps, stream.max_frames)
        self._mp4 = AnnotatedMp4(path, num_threads)
        self._reader: Reader | None = None
        self._numbered: Iterator[tuple[int, Picture]] = iter(())
        self._seq = 0
        self._sound: Sound | None = None
        self._offset_s = 0.0
        self._last_media_s = 0.0

    def write(self, message: AnyResult) -> None:
        """Take the next message of the log. What was written already is passed over.

        Raises OutputError when the file cannot be written, SourceError when the source does not give the picture again.
        """
        if isinstance(message, FrameResult | GapResult):
            with self._mp4.errors(self._discard):
                while self._seq < message.frame_seq:
                    self._write_next(message)

    def finish(self) -> None:
        """Complete the file with what was written so far. Raises OutputError."""
        if self._mp4.begun:
            with self._mp4.errors(self._discard):
                end_s = self._mp4.next_s
                self._mp4.flush()
                if self._sound is not None:
                    self._sound.copy_until(float("inf") if self._source_is_over() else end_s)
                self._mp4.complete()
        self._discard()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self._discard()

    def _write_next(self, message: FrameResult | GapResult) -> None:
        picture = self._next_picture(message.frame_seq)
        if not self._mp4.begun:
            self._begin(picture)
        result = message if isinstance(message, FrameResult) and message.frame_seq == self._seq else None
        self._mp4.add(picture, result, self._time_of(picture.pts_s))

    def _next_picture(self, wanted_seq: int) -> Picture:
        if self._reader is None:
            self._reader = open_source(self._stream.source, self._stream.kind)
            self._numbered = self._number(self._reader)
        found = next(self._numbered, None)
        if found is None:
            raise SourceError(
                f"{redact(self._stream.source)} gave {self._seq} pictures when it was read again, its results go on to "
                f"{wanted_seq}: it was changed meanwhile, run the job again"
            )
        self._seq, picture = found
        return picture

    def _number(self, reader: Reader) -> Iterator[tuple[int, Picture]]:
        for picture in reader:
            seq = self._selection.number(picture.pts_s)
            if seq is not None:
                yield seq, picture

    def _begin(self, first: Picture) -> None:
        if self._reader is None:
            return
        container = self._mp4.begin(first, self._reader.fps, self._reader.sample_aspect_ratio)
        self._offset_s = self._last_media_s = first.pts_s
        if self._stream.kind == "file" and self._reader.has_audio:
            self._sound = open_sound(self._stream.source, container)
        if self._sound is not None:
            self._sound.begin_segment(self._offset_s)
            self._mp4.call_before_packets(self._sound.copy_until)

    def _time_of(self, media_s: float) -> float:
        """Seconds from the beginning at which a picture is shown that the source shows at `media_s`."""
        if media_s < self._last_media_s - RESTART_STEP_S:
            self._offset_s = media_s - self._mp4.next_s
            if self._sound is not None:
                self._sound.begin_segment(self._offset_s)
        self._last_media_s = media_s
        return media_s - self._offset_s

    def _source_is_over(self) -> bool:
        """Whether the file shows the source to its end, so that its sound goes to the end, too."""
        if self._reader is None:
            return False
        try:
            if self._selection.done:
                return next(self._reader, None) is None
            return next(self._numbered, None) is None
        except SourceError:
            return False

    def _discard(self) -> None:
        """Let go of everything; an unfinished file is removed."""
        if self._sound is not None:
            self._sound.close()
        if self._reader is not None:
            self._reader.close()
        self._mp4.discard()
