"""The pictures of a source that can be read again, by frame number."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.contract.config import StreamConfig
from pipeline.errors import SourceError
from pipeline.redaction import redact_url
from pipeline.source import Picture, Reader, Selection, open_source


class SourcePictures:
    """Decodes a source a second time and numbers its pictures as the decode worker did.

    The first call of `read_next` opens the source.

    reader   None before the first picture
    """

    def __init__(self, stream: StreamConfig) -> None:
        self._stream = stream
        self._selection = Selection(stream.stride, stream.max_fps, stream.max_frames)
        self._numbered: Iterator[tuple[int, Picture]] = iter(())
        self.reader: Reader | None = None
        self.last_seq = 0
        """number of the last picture that was returned"""

    def read_next(self, result_seq: int) -> Picture:
        """Read the picture of frame `last_seq + 1` and return it.

        result_seq   number of the result that the caller reads pictures for, for the error text; above `last_seq`

        Raises SourceError if the source has no further picture.
        """
        if self.reader is None:
            self.reader = open_source(self._stream.source, self._stream.kind)
            self._numbered = self._number(self.reader)
        found = next(self._numbered, None)
        if found is None:
            raise SourceError(
                f"{redact_url(self._stream.source)} yielded {self.last_seq} pictures when it was read again, but its "
                f"results reach frame {result_seq}: the source was changed meanwhile; run the job again"
            )
        self.last_seq, picture = found
        return picture

    def read_past_end(self) -> bool:
        """Try to read one more picture, discard it, and return whether the source had none.

        Returns False before the first picture, and if the source cannot be read on.
        """
        if self.reader is None:
            return False
        try:
            if self._selection.done:
                return next(self.reader, None) is None
            return next(self._numbered, None) is None
        except SourceError:
            return False

    def close(self) -> None:
        """Close the source; may be called more than once."""
        if self.reader is not None:
            self.reader.close()

    def _number(self, reader: Reader) -> Iterator[tuple[int, Picture]]:
        for picture in reader:
            seq = self._selection.number(picture.pts_s)
            if seq is not None:
                yield seq, picture
