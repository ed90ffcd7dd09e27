"""A folder of pictures, a glob of pictures or one picture, as one stream.

Pillow reads them: EXIF orientation is applied, palettes and CMYK become RGB, 16-bit grey keeps its high byte,
transparency is ignored, an animation gives its first picture. A file that cannot be read counts as corrupt; the others
keep their times.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import SourceError
from pipeline.source.names import list_pictures
from pipeline.source.picture import UPRIGHT
from pipeline.source.reader import Decoded, Reader

PICTURES_PER_S = 25.0


class PicturesReader(Reader):
    """Every picture has its own size; the n-th file (from 0) is shown at n / 25 seconds."""

    fps = PICTURES_PER_S

    def __init__(self, source: str) -> None:
        self._paths = list_pictures(source)
        if not self._paths:
            raise SourceError(f"{source} holds no picture any more: expected .jpg, .png, .webp, .bmp or .tif files")
        self.num_frames_expected = len(self._paths)
        super().__init__(source)

    def close(self) -> None:
        """Nothing is held open between pictures."""

    def _decode(self) -> Iterator[Decoded]:
        for index, path in enumerate(self._paths):
            try:
                rgb = read_rgb(path)
            except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError, Warning):
                # The classes that Pillow's decoders raise for damaged files.
                self.num_corrupt += 1
                continue
            yield Decoded(av.VideoFrame.from_ndarray(rgb, format="rgb24"), index / PICTURES_PER_S, UPRIGHT)


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a picture file, as seen. Raises what Pillow raises for a file that it cannot read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as stored:
            upright = ImageOps.exif_transpose(stored)
            if upright.mode.startswith(("I", "F")):
                return _grey_to_rgb(np.asarray(upright))
            return np.array(upright.convert("RGB"))


def _grey_to_rgb(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Grey of 16 bits (stored in integers of 16 or 32) by its high byte; floating point clipped to 0 to 255."""
    if np.issubdtype(grey.dtype, np.floating):
        narrow = np.clip(np.nan_to_num(grey), 0, 255).astype(np.uint8)
    else:
        narrow = (np.clip(grey, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(narrow[..., None], 3, axis=2)
