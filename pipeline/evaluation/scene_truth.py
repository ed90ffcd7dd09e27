"""Ground truth of the synthetic scene, as annotations in COCO's sense."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from pipeline.coco.annotations import Annotation, coco_masks
from pipeline.coco.ground_truth import GroundTruth, ground_truth
from pipeline.synthetic import SceneFrame

MIN_AREA_PX = 100
"""visible pixels below which an object of the scene is ignored; a person of 20 px height covers about that many"""


def scene_annotations(frame: SceneFrame, class_ids: Collection[int]) -> tuple[list[Annotation], list[int]]:
    """The objects of these classes on a frame, and their object ids, which are unique over the scene.

    The masks are the visible pixels. Objects of fewer than MIN_AREA_PX pixels become crowd regions, which do not count.
    """
    encode = coco_masks().encode
    annotations, object_ids = [], []
    for item in frame.objects:
        if item.class_id in class_ids:
            rle = encode(np.asfortranarray(frame.mask(item.object_id), np.uint8))
            is_crowd = item.area_px < MIN_AREA_PX
            annotations.append(Annotation(item.class_id, item.box_xyxy, rle, is_crowd, float(item.area_px)))
            object_ids.append(item.object_id)
    return annotations, object_ids


def scene_ground_truth(
    frames: Sequence[Sequence[Annotation]], labels: dict[int, str], hw: tuple[int, int]
) -> GroundTruth:
    """pycocotools' form of the annotations of all frames; the image id of a frame is its index."""
    images = [{"id": index, "height": hw[0], "width": hw[1]} for index in range(len(frames))]
    annotations = ((index, annotation) for index, frame in enumerate(frames) for annotation in frame)
    return ground_truth(images, labels.items(), annotations, with_masks=True)
