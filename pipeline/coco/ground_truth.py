"""Ground truth as pycocotools' COCO objects, from annotations that are read already."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterable
from typing import Any

from pipeline.coco.annotations import Annotation
from pipeline.coco.data import CocoData
from pipeline.errors import UsageError

GroundTruth = Any
"""a pycocotools.coco.COCO, which has no type annotations"""


def check_pycocotools() -> None:
    """Raises UsageError if pycocotools is not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise UsageError("evaluation needs pycocotools: pip install 'maskstream[train]'") from None


def ground_truth_of_data(data: CocoData, category_ids: Collection[int], *, with_masks: bool) -> GroundTruth:
    """The ground truth of a data set, restricted to these categories."""
    categories = [(category_id, name) for category_id, name in data.categories if category_id in category_ids]
    images = [
        {
            "id": record.image_id,
            "height": record.height,
            "width": record.width,
            "labelled_category_ids": sorted(record.labelled & set(category_ids)),
        }
        for record in data.pictures
    ]
    annotations = (
        (record.image_id, annotation)
        for record in data.pictures
        for annotation in record.annotations
        if annotation.category_id in category_ids
    )
    return ground_truth(images, categories, annotations, with_masks=with_masks)


def ground_truth(
    images: list[dict[str, Any]],
    categories: Iterable[tuple[int, str]],
    annotations: Iterable[tuple[int, Annotation]],
    *,
    with_masks: bool,
) -> GroundTruth:
    """A COCO object of images in COCO's format, (id, name) of categories and (image id, annotation) pairs."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {
        "images": images,
        "categories": [{"id": category_id, "name": name} for category_id, name in categories],
        # The ids begin at 1, because COCOeval takes a match with id 0 for no match.
        "annotations": [
            _entry(annotation_id, image_id, annotation, with_masks=with_masks)
            for annotation_id, (image_id, annotation) in enumerate(annotations, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _entry(annotation_id: int, image_id: int, annotation: Annotation, *, with_masks: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = annotation.box_xyxy
    entry = {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": annotation.category_id,
        "iscrowd": int(annotation.is_crowd),
        "area": annotation.area_px,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }
    return entry | ({"segmentation": annotation.rle} if with_masks else {})
