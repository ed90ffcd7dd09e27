"""Average precision and recall, computed by pycocotools' COCOeval."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.coco.ground_truth import GroundTruth
from pipeline.contract.arrays import Detections
from pipeline.errors import UsageError

METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCOeval's twelve metrics, in the order of its `stats`.

AP and AR are means over the IoU thresholds 0.50, 0.55 … 0.95; AP50 and AP75 use one threshold. s, m and l restrict the
objects to small, medium and large ones, with limits at 32 * 32 and 96 * 96 pixels. At most 100 detections per picture
count; for AR1 and AR10 at most 1 and 10."""


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """The metrics of boxes or of masks. Values are NaN if the ground truth has no object of the kind.

    metrics     by the names in METRIC_NAMES
    per_class   AP by category name
    """

    metrics: dict[str, float]
    per_class: dict[str, float]

    @property
    def ap(self) -> float:
        return self.metrics["AP"]


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """Average precision of boxes and of masks; `masks` is None for detections without masks."""

    boxes: AveragePrecision
    masks: AveragePrecision | None


def coco_metrics(ground_truth: GroundTruth, detections: Mapping[int, Detections]) -> CocoMetrics:
    """Evaluates detections against the ground truth of the same images.

    detections   by image id; their class ids are category ids of the ground truth. Other images are not evaluated.

    Detections of a category that is not in the image's `labelled_category_ids` are ignored; without that entry every
    category counts. Raises UsageError if pycocotools is not installed.
    """
    entries: list[dict[str, Any]] = []
    with_masks = any(found.rle_counts is not None for found in detections.values())
    for image_id, found in detections.items():
        labelled = ground_truth.imgs[image_id].get("labelled_category_ids", list(ground_truth.cats))
        kept = np.flatnonzero(np.isin(found.class_ids, labelled)).tolist()
        entries += [coco_entry(image_id, found, index) for index in kept]
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in entries]
    image_ids = list(detections)
    return CocoMetrics(
        _evaluate(ground_truth, boxes, "bbox", image_ids),
        _evaluate(ground_truth, entries, "segm", image_ids) if with_masks else None,
    )


def coco_entry(image_id: int, found: Detections, index: int) -> dict[str, Any]:
    """Detection `index` in COCO's result format, ready for JSON: the RLE counts are text."""
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


def _evaluate(
    ground_truth: GroundTruth, entries: list[dict[str, Any]], iou_type: str, image_ids: list[int]
) -> AveragePrecision:
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise UsageError("average precision needs pycocotools: pip install 'maskstream[train]'") from None
    names = [str(category.get("name", category_id)) for category_id, category in sorted(ground_truth.cats.items())]
    if not entries:
        return AveragePrecision(dict.fromkeys(METRIC_NAMES, 0.0), dict.fromkeys(names, 0.0))
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes adds fields to the dicts that it receives, so it receives copies.
        evaluation = COCOeval(ground_truth, ground_truth.loadRes([dict(entry) for entry in entries]), iou_type)
        evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [float(value) if value >= 0 else float("nan") for value in evaluation.stats]
    # Axes: IoU thresholds, recall thresholds, categories, area ranges, maximum numbers of detections. COCOeval writes
    # -1 where the ground truth has no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    per_class = {}
    for index, name in enumerate(names):
        of_class = precision[:, :, index]
        of_class = of_class[of_class > -1]
        per_class[name] = float(of_class.mean()) if of_class.size else float("nan")
    return AveragePrecision(dict(zip(METRIC_NAMES, values, strict=True)), per_class)
