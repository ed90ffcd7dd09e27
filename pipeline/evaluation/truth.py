"""What is true of each picture, in the forms that the judges take."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from pipeline.coco.data import Annotation, CocoData, coco_masks
from pipeline.errors import UsageError
from pipeline.synthetic import SceneFrame

MIN_AREA_PX = 100
"""visible pixels below which an object of a scene counts neither way: a person of 20 px height covers so many"""


def check_pycocotools() -> None:
    """Raises UsageError where they are not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError:
        raise UsageError("evaluation needs pycocotools: pip install 'maskstream[train]'") from None


def coco_of_file(data: CocoData, category_ids: Collection[int], *, with_masks: bool) -> Any:
    """pycocotools' form of the file, with these categories alone; areas that it does not give are filled in."""
    content = json.loads(data.path.read_bytes())
    content["categories"] = [entry for entry in content["categories"] if entry["id"] in category_ids]
    known = {record.image_id: iter(record.annotations) for record in data.pictures}
    kept: list[dict[str, Any]] = []
    for entry in content["annotations"]:
        annotation = next(known[entry["image_id"]])
        if annotation.category_id in category_ids:
            kept.append(_completed(entry, annotation, len(kept) + 1, with_masks=with_masks))
    return _index({**content, "annotations": kept})


def coco_of_scene(truth: Sequence[Sequence[Annotation]], labels: dict[int, str], hw: tuple[int, int]) -> Any:
    """pycocotools' form of the frames of a scene; the picture's id is its index."""
    content = {
        "images": [{"id": index, "height": hw[0], "width": hw[1]} for index in range(len(truth))],
        "categories": [{"id": category_id, "name": label} for category_id, label in labels.items()],
    }
    entries: list[dict[str, Any]] = []
    for index, objects in enumerate(truth):
        for annotation in objects:
            entries.append(_completed({"image_id": index}, annotation, len(entries) + 1, with_masks=True))
    return _index({**content, "annotations": entries})


def scene_truth(frame: SceneFrame, class_ids: Collection[int]) -> tuple[list[Annotation], list[int]]:
    """The objects of a frame that belong to these classes, and their ids over the scene.

    The masks are the pixels that can be seen. Objects of fewer than MIN_AREA_PX are crowds: they count neither way.
    """
    encode = coco_masks().encode
    annotations, object_ids = [], []
    for item in frame.objects:
        if item.class_id in class_ids:
            rle = encode(np.asfortranarray(frame.mask(item.object_id), np.uint8))
            annotations.append(Annotation(item.class_id, item.box_xyxy, rle, item.area_px < MIN_AREA_PX))
            object_ids.append(item.object_id)
    return annotations, object_ids


def _completed(
    entry: dict[str, Any], annotation: Annotation, annotation_id: int, *, with_masks: bool
) -> dict[str, Any]:
    """What pycocotools reads of an annotation. Ids begin at 1: it takes a partner with id 0 for none."""
    x1, y1, x2, y2 = annotation.box_xyxy
    area = (x2 - x1) * (y2 - y1) if annotation.rle is None else float(coco_masks().area(annotation.rle))
    completed = {
        "id": annotation_id,
        "image_id": entry["image_id"],
        "category_id": annotation.category_id,
        "iscrowd": int(annotation.is_crowd),
        "area": entry.get("area", area),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }
    return completed | ({"segmentation": annotation.rle} if with_masks else {})


def _index(content: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    index = COCO()
    index.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        index.createIndex()
    return index
