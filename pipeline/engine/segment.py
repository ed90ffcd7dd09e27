"""Instance segmentation of single images in this process, without Redis."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ops.preprocess import rgb_to_i420
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.engine.engine import Engine, load_engine
from pipeline.models.registry import ModelSpec, bus_hw, class_ids_of
from pipeline.source.images import ImageLike, image_rgb


def segment_pictures(
    pictures: Sequence[ImageLike],
    *,
    spec: ModelSpec,
    model: str,
    weights: str | None,
    device: str,
    precision: str,
    threads: int | None,
    conf: float,
    classes: Sequence[str] | None,
    batch: int,
) -> list[Detections]:
    """Detect the instances on each picture. `spec` is the model as its weights file defines it; see
    `pipeline.api.segment` for the other arguments.
    """
    class_ids = None if classes is None else class_ids_of(spec, classes)
    engine = _engine(model, weights, device, precision, threads)
    detections: list[Detections] = []
    for first in range(0, len(pictures), batch):
        frames = [_frame_of(picture, spec) for picture in pictures[first : first + batch]]
        detections += engine.infer(frames, min_scores=[conf] * len(frames), class_ids=[class_ids] * len(frames))
    return detections


@functools.lru_cache(maxsize=2)
def _engine(model: str, weights: str | None, device: str, precision: str, threads: int | None) -> Engine:
    return load_engine(model, weights=weights, device=device, precision=precision, threads=threads)


def _frame_of(picture: ImageLike, spec: ModelSpec) -> I420Frame:
    """Convert a picture to a video frame: I420, BT.601, full range, resized to the model's input size but never
    enlarged.
    """
    image = Image.fromarray(image_rgb(picture))
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
