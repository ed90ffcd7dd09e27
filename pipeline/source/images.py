"""Single pictures that a caller passes in: an array, a PIL image or a file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import UsageError
from pipeline.redaction import redact_url
from pipeline.source.names import VIDEO_EXTENSIONS
from pipeline.source.picture_files import read_rgb, to_rgb

ImageLike: TypeAlias = NDArray[np.uint8] | Image.Image | str | os.PathLike[str]

_URL_OR_CAMERA = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|webcam:|/dev/video|demo$")


def image_rgb(image: ImageLike) -> NDArray[np.uint8]:
    """Return the picture as a (H, W, 3) uint8 RGB array. EXIF orientation is applied to a PIL image and to a file.

    Raises ValueError for an array of another shape or type, UsageError for a path that names a video, a camera or a
    folder, SourceError for a file that cannot be read.
    """
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
            raise ValueError(f"a picture must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        return image
    if isinstance(image, Image.Image):
        return to_rgb(image)
    name = os.fspath(image)
    _refuse_streams(name)
    return read_rgb(Path(name))


def _refuse_streams(name: str) -> None:
    """Raise UsageError if the path names something for `run` rather than a picture."""
    path = Path(name)
    if _URL_OR_CAMERA.match(name) and not path.exists():
        kind = "a stream"
    elif path.is_dir():
        kind = "a folder"
    elif path.suffix.lower() in VIDEO_EXTENSIONS - {".gif"}:
        kind = "a video"
    else:
        return
    shown = redact_url(name)
    raise UsageError(f"{shown} is {kind}, but segment() takes pictures: use run({shown!r})")
