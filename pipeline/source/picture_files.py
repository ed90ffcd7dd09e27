"""Reads picture files with Pillow, for folders of pictures, `segment`, training and evaluation.

EXIF orientation is applied; palettes and CMYK become RGB; 16-bit grey keeps its high byte; transparency is ignored.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import SourceError

ANIMATION_FORMATS = frozenset({"WEBP", "PNG", "GIF"})
MULTI_PAGE_FORMATS = frozenset({"TIFF"})
"""without JPEG: the second frame of an MPO file is a preview, a depth map or the other view of a stereo pair"""
EXIF_ORIENTATION_TAG = 0x0112
QUARTER_TURNS = frozenset({5, 6, 7, 8})
"""EXIF orientations that exchange width and height"""
TIFF_SUBFILE_TYPE_TAG = 254
TIFF_REDUCED_RESOLUTION = 1

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError, Warning)
"""exceptions that Pillow's decoders raise for damaged files"""


@contextlib.contextmanager
def open_picture(path: Path) -> Iterator[Any]:
    """Yield the PIL image of a file, not decoded yet. Raises one of UNREADABLE, also for a decompression bomb."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(path)
    with image:
        yield image


def read_rgb(path: Path, annotated_hw: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Return a picture file, or its first frame, as (H, W, 3) uint8 RGB with the EXIF orientation applied.

    annotated_hw   height and width that annotations state for the picture; the result has this size. Annotations refer
                   to the upright picture. If only the stored picture has the stated size, they refer to the stored
                   picture, and the orientation is not applied.

    Raises SourceError for a file that cannot be read, or whose size differs from that of the annotations.
    """
    try:
        with open_picture(path) as image:
            width, height = image.size
            is_quarter_turn = image.getexif().get(EXIF_ORIENTATION_TAG) in QUARTER_TURNS
            as_stored = is_quarter_turn and annotated_hw == (height, width) != (width, height)
            rgb = to_rgb(image, upright=not as_stored)
    except UNREADABLE as error:
        raise SourceError(f"picture {path}: cannot be read: {reason_of(error)}") from None
    if annotated_hw not in (None, rgb.shape[:2]):
        stated = f"{annotated_hw[1]} x {annotated_hw[0]}" if annotated_hw else ""
        raise SourceError(f"picture {path}: is {rgb.shape[1]} x {rgb.shape[0]} pixels, its annotations say {stated}")
    return rgb


def check_picture(path: Path, annotated_hw: tuple[int, int]) -> None:
    """Read the header of a picture file and check its size as `read_rgb` does, without decoding the pixels.

    Raises SourceError for a file that is not a picture, or whose size differs from that of the annotations.
    """
    try:
        with open_picture(path) as image:
            width, height = image.size
            fits = annotated_hw == (height, width) or (
                annotated_hw == (width, height) and image.getexif().get(EXIF_ORIENTATION_TAG) in QUARTER_TURNS
            )
    except UNREADABLE as error:
        raise SourceError(f"picture {path}: cannot be read: {reason_of(error)}") from None
    if not fits:
        stated = f"{annotated_hw[1]} x {annotated_hw[0]}"
        raise SourceError(f"picture {path}: is {width} x {height} pixels, its annotations say {stated}")


def to_rgb(image: Any, *, upright: bool = True) -> NDArray[np.uint8]:
    """Return a PIL image as (H, W, 3) uint8 RGB; with `upright`, the EXIF orientation is applied."""
    turned = ImageOps.exif_transpose(image) if upright else image
    if turned.mode.startswith(("I", "F")):
        return _grey_to_rgb(np.asarray(turned))
    return np.array(turned.convert("RGB"))


def frame_numbers(image: Any) -> list[int]:
    """Return the numbers, for `Image.seek`, of the animation frames or pages of a PIL image, without previews."""
    num_frames = getattr(image, "n_frames", 1)
    if num_frames == 1 or image.format not in ANIMATION_FORMATS | MULTI_PAGE_FORMATS:
        return [0]
    if image.format in MULTI_PAGE_FORMATS:
        return _pages(image, num_frames)
    # the default image of an animated PNG is for programs without animation support, and is not a frame
    return list(range(1 if getattr(image, "default_image", False) else 0, num_frames))


def is_animation(path: Path) -> bool:
    """Return whether a file is an animated picture. Return False for a file that cannot be read."""
    try:
        with open_picture(path) as image:
            return image.format in ANIMATION_FORMATS and len(frame_numbers(image)) > 1
    except UNREADABLE:
        return False


def reason_of(error: BaseException) -> str:
    """Return the reason why a picture file cannot be read, in one line without the name of the file."""
    if isinstance(error, UnidentifiedImageError):
        return "not in a known picture format"
    return " ".join(str(error).split()) or type(error).__name__


def _pages(image: Any, num_frames: int) -> list[int]:
    """Return the frame numbers of a TIFF file without the reduced copies that some programs store beside a picture."""
    pages = []
    for number in range(num_frames):
        image.seek(number)
        if not image.tag_v2.get(TIFF_SUBFILE_TYPE_TAG, 0) & TIFF_REDUCED_RESOLUTION:
            pages.append(number)
    image.seek(0)
    return pages or [0]


def _grey_to_rgb(grey: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return grey as RGB: the high byte of 16-bit values (in integers of 16 or 32 bits), floats clipped to 0 … 255."""
    if np.issubdtype(grey.dtype, np.floating):
        narrow = np.clip(np.nan_to_num(grey), 0, 255).astype(np.uint8)
    else:
        narrow = (np.clip(grey, 0, 65535).astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(narrow[..., None], 3, axis=2)
