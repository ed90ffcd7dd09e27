"""The annotated video of a file: the source is decoded again, its pictures are joined with the results by number."""

from __future__ import annotations

from pathlib import Path

from pipeline.contract.config import StreamConfig
from pipeline.contract.results import AnyResult, FrameResult, GapResult
from pipeline.exports.annotated import ENCODER_THREADS, AnnotatedMp4
from pipeline.exports.sound import Sound, open_sound
from pipeline.exports.source_pictures import SourcePictures
from pipeline.exports.writer import Writer
from pipeline.source import Picture


class FileVideoWriter(Writer):
    """Writes the MP4 of a stream whose source can be read again.

    The video shows one picture for every frame number that the log covers, at the time at which the source shows it;
    pictures of gaps have no annotation. Time starts at the first picture. The file grows as `NAME.part` and gets its
    name when it is complete. A stream without frames gets no file.
    """

    def __init__(self, path: Path, stream: StreamConfig, *, num_threads: int = ENCODER_THREADS) -> None:
        self._stream = stream
        self._pictures = SourcePictures(stream)
        self._mp4 = AnnotatedMp4(path, num_threads)
        self._sound: Sound | None = None
        self._start_s = 0.0

    def write(self, message: AnyResult, payload: bytes = b"") -> None:
        """Add the pictures up to this message's frame number. Numbers that were written already are skipped.

        Raises OutputError if the file cannot be written, SourceError if the source does not yield the picture again.
        """
        if isinstance(message, FrameResult | GapResult):
            with self._mp4.translating_errors(self.discard):
                while self._pictures.last_seq < message.frame_seq:
                    self._write_next(message)

    def finish(self) -> None:
        """Complete the file with the pictures written so far. Raises OutputError."""
        if self._mp4.begun:
            with self._mp4.translating_errors(self.discard):
                end_s = self._mp4.next_s
                self._mp4.flush()
                if self._sound is not None:
                    self._sound.copy_until(float("inf") if self._pictures.read_past_end() else end_s)
                self._mp4.complete()
        self.discard()

    def discard(self) -> None:
        """Close the source, and remove an MP4 that is not complete."""
        if self._sound is not None:
            self._sound.close()
        self._pictures.close()
        self._mp4.discard()

    def _write_next(self, message: FrameResult | GapResult) -> None:
        picture = self._pictures.read_next(message.frame_seq)
        if not self._mp4.begun:
            self._begin(picture)
        result = message if isinstance(message, FrameResult) else None
        if message.frame_seq != self._pictures.last_seq:  # a number that a gap covers
            result = None
        self._mp4.add(picture, result, picture.pts_s - self._start_s)

    def _begin(self, first: Picture) -> None:
        reader = self._pictures.reader
        if reader is None:
            return
        container = self._mp4.begin(first, reader.fps, first.pixel_aspect)
        self._start_s = first.pts_s
        if reader.has_audio:
            self._sound = open_sound(self._stream.source, container, first.pts_s, reader.time_offsets_s)
        if self._sound is not None:
            self._mp4.call_before_packets(self._sound.copy_until)
