"""Average precision as COCO's own tools count it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.contract.arrays import Detections
from pipeline.errors import UsageError

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""pycocotools' twelve: precision and recall at IoU 0.50:0.95 (50 and 75: at that IoU), for small, medium and large
objects (borders at 32 and 96 px squared), with at most 100 detections a picture (1 and 10: with so many)."""


@dataclass(frozen=True, slots=True)
class Precision:
    """figures by the names of FIGURES; per_class: AP by category name. NaN where the truth has no such object."""

    figures: dict[str, float]
    per_class: dict[str, float]

    @property
    def ap(self) -> float:
        return self.figures["AP"]


@dataclass(frozen=True, slots=True)
class CocoPrecision:
    """Of boxes and of masks; masks is None for detections without them."""

    boxes: Precision
    masks: Precision | None


def coco_precision(truth: Any, detections: Mapping[int, Detections]) -> CocoPrecision:
    """Of the detections by image id against a pycocotools COCO, on these images only.

    A class that an image does not label (`labelled_category_ids`; without that entry it labels all) is left out there.
    Raises UsageError where pycocotools is not installed.
    """
    entries: list[dict[str, Any]] = []
    with_masks = any(found.rle_counts is not None for found in detections.values())
    for image_id, found in detections.items():
        labelled = truth.imgs[image_id].get("labelled_category_ids", list(truth.cats))
        wanted = np.flatnonzero(np.isin(found.class_ids, labelled)).tolist()
        entries += [coco_entry(image_id, found, index) for index in wanted]
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in entries]
    image_ids = list(detections)
    return CocoPrecision(
        _counted(truth, boxes, "bbox", image_ids),
        _counted(truth, entries, "segm", image_ids) if with_masks else None,
    )


def coco_entry(image_id: int, found: Detections, index: int) -> dict[str, Any]:
    """One detection in COCO's result format, with the run-length encoded mask as text, so that JSON can hold it."""
    x1, y1, x2, y2 = found.boxes_xyxy[index].tolist()
    entry = {
        "image_id": image_id,
        "category_id": int(found.class_ids[index]),
        "score": float(found.scores[index]),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }
    if found.rle_counts is not None:
        entry["segmentation"] = {"size": [found.height, found.width], "counts": found.rle_counts[index].decode("ascii")}
    return entry


def _counted(truth: Any, entries: list[dict[str, Any]], kind: str, image_ids: list[int]) -> Precision:
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UsageError("average precision needs pycocotools: pip install 'maskstream[train]'") from None
    names = [str(category.get("name", category_id)) for category_id, category in sorted(truth.cats.items())]
    if not entries:
        return Precision(dict.fromkeys(FIGURES, 0.0), dict.fromkeys(names, 0.0))
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes writes into what it is given
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in entries]), kind)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = [float(value) if value >= 0 else float("nan") for value in evaluation.stats]
    # (IoU thresholds, recall thresholds, classes, areas, numbers of detections); -1 where there is no truth
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for index, name in enumerate(names):
        own = precision[:, :, index]
        own = own[own > -1]
        per_class[name] = float(own.mean()) if own.size else float("nan")
    return Precision(dict(zip(FIGURES, figures, strict=True)), per_class)
