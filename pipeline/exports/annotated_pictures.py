"""The annotated pictures of a source of unrelated pictures: one file for each, in its own size and format."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from pipeline.contract.config import StreamConfig
from pipeline.contract.results import AnyResult, FrameResult, GapResult
from pipeline.exports.files import output_error
from pipeline.exports.render import draw_result
from pipeline.exports.source_pictures import SourcePictures
from pipeline.exports.writer import Writer
from pipeline.source import Converter, Picture

ENCODING = {".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"quality": 95}}
"""options of Pillow's encoders, by suffix"""


class AnnotatedPicturesWriter(Writer):
    """Writes every picture with its instances drawn in to a folder, under the picture's own name.

    A picture without a result is encoded without annotation. Files are replaced atomically.
    """

    def __init__(self, folder: Path, stream: StreamConfig) -> None:
        self._folder = folder
        self._pictures = SourcePictures(stream)
        self._converter = Converter()

    def write(self, message: AnyResult, payload: bytes = b"") -> None:
        """Write the pictures up to this message's frame number.

        Raises OutputError if a file cannot be written, SourceError if the source does not yield the picture again.
        """
        if isinstance(message, FrameResult | GapResult):
            while self._pictures.last_seq < message.frame_seq:
                picture = self._pictures.read_next(message.frame_seq)
                result = message if isinstance(message, FrameResult) else None
                self._write(picture, result if message.frame_seq == self._pictures.last_seq else None)

    def finish(self) -> None:
        """Close the source; every file is complete already."""
        self._pictures.close()

    def discard(self) -> None:
        """Close the source; the files that were written stay."""
        self._pictures.close()

    def _write(self, picture: Picture, result: FrameResult | None) -> None:
        bgr = self._converter.to_bgr(picture)
        if result is not None:
            draw_result(bgr, result)
        path = self._folder / (picture.source_name or f"{picture.ordinal}.png")
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            format_name = Image.registered_extensions()[path.suffix.lower()]
            Image.fromarray(bgr[:, :, ::-1]).save(part, format_name, **ENCODING.get(path.suffix.lower(), {}))
            part.replace(path)
        except (OSError, ValueError) as error:
            part.unlink(missing_ok=True)
            raise output_error(path, error) from None
