"""Instance segmentation of pictures in this process, without Redis."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ops.preprocess import rgb_to_i420
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.engine.engine import Engine, load_engine
from pipeline.errors import SourceError
from pipeline.models.registry import ModelSpec, bus_hw, class_ids_of, default_model, get_model
from pipeline.models.weights_table import spec_of_weights

Picture = NDArray[np.uint8] | Image.Image | str | os.PathLike[str]


def segment(
    image_or_images: Picture | Iterable[Picture],
    *,
    model: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    conf: float = 0.5,
    classes: Sequence[str] | None = None,
    batch: int = 4,
) -> list[Detections]:
    """Detections of one picture or of several, one entry each.

    A picture is a (H, W, 3) uint8 RGB array, a PIL image or a path; EXIF orientation is applied to the latter two. It
    takes the way of a video frame: scaled to the model's input (never up), 4:2:0 in full-range BT.601. Boxes and masks
    are in its own pixels. `conf` is the lowest score, `classes` the labels to keep, `batch` the most pictures in one
    forward pass; the rest is as for `load_engine`. A loaded engine is kept for the next call.
    Raises UsageError, ModelError, SourceError for a file that cannot be read, ValueError for an array of another kind.
    """
    name = default_model(device) if model is None else model
    spec = spec_of_weights(get_model(name), weights)
    class_ids = None if classes is None else class_ids_of(spec, classes)
    engine = _engine(name, weights, device, precision, threads)
    if isinstance(image_or_images, np.ndarray | Image.Image | str | os.PathLike):
        pictures: list[Picture] = [image_or_images]
    else:
        pictures = list(image_or_images)
    detections: list[Detections] = []
    for first in range(0, len(pictures), batch):
        frames = [_frame_of(picture, spec) for picture in pictures[first : first + batch]]
        detections += engine.infer(frames, min_scores=[conf] * len(frames), class_ids=[class_ids] * len(frames))
    return detections


@functools.lru_cache(maxsize=2)
def _engine(model: str, weights: str | None, device: str, precision: str, threads: int | None) -> Engine:
    return load_engine(model, weights=weights, device=device, precision=precision, threads=threads)


def _frame_of(picture: Picture, spec: ModelSpec) -> I420Frame:
    image = _image_of(picture)
    height, width = bus_hw(spec, (image.height, image.width))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return I420Frame(
        data=rgb_to_i420(np.asarray(resized)),
        width=width,
        height=height,
        source_width=image.width,
        source_height=image.height,
        matrix=ColourMatrix.BT601,
        full_range=True,
    )


def _image_of(picture: Picture) -> Image.Image:
    """An upright RGB image."""
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.size == 0:
            raise ValueError(f"a picture must be (H, W, 3) uint8 RGB, got {picture.shape} {picture.dtype}")
        return Image.fromarray(picture)
    if isinstance(picture, Image.Image):
        return ImageOps.exif_transpose(picture).convert("RGB")
    try:
        with Image.open(picture) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(f"picture {os.fspath(picture)}: cannot be read: {error}") from None
