"""Which of the objects found on a picture stands for which object of the truth."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.assignment import solve_assignment
from pipeline.coco.data import Annotation, coco_masks
from pipeline.contract.arrays import Detections

MIN_IOU = 0.5
"""of a pair; also the least share of a found object inside a crowd region that makes it count for nothing"""


@dataclass(frozen=True, slots=True)
class Pairing:
    """One picture. Indices of the truth and of what was found.

    pairs     (truth, found), one to one; `ious` are theirs
    missed    objects of the truth without a partner
    false     found objects without a partner
    neutral   found objects that lie in crowd regions: neither right nor wrong
    """

    pairs: tuple[tuple[int, int], ...]
    ious: tuple[float, ...]
    missed: tuple[int, ...]
    false: tuple[int, ...]
    neutral: tuple[int, ...]

    @property
    def quality(self) -> float | None:
        """Panoptic quality, 0 to 1, over the objects of all classes: the sum of the pairs' IoU by the number of pairs
        and half of that of missed and false ones (Kirillov et al. 2019, equation 1). None where nothing counts.
        """
        weight = len(self.pairs) + (len(self.missed) + len(self.false)) / 2
        return sum(self.ious) / weight if weight else None

    @property
    def caption(self) -> str:
        """In words."""
        quality = "nothing counts" if self.quality is None else f"quality {self.quality:.2f}"
        return f"{quality}: {len(self.pairs)} found, {len(self.missed)} missed, {len(self.false)} false"


def chosen(found: Detections, min_score: float, class_ids: Collection[int]) -> Detections:
    """Those of these classes with `min_score` or more."""
    keep = np.flatnonzero((found.scores >= min_score) & np.isin(found.class_ids, list(class_ids)))
    return Detections(
        boxes_xyxy=found.boxes_xyxy[keep],
        scores=found.scores[keep],
        class_ids=found.class_ids[keep],
        mask_bits=None,
        rle_counts=None if found.rle_counts is None else [found.rle_counts[index] for index in keep.tolist()],
        width=found.width,
        height=found.height,
    )


def overlaps(annotations: Sequence[Annotation], found: Detections, *, of_boxes: bool = False) -> NDArray[np.float64]:
    """(N, M): the IoU of each object of the truth with each that was found; for a crowd region the share of the found
    object inside it; 0 between different classes. Of masks; of boxes where either side has no masks, or asked for.
    """
    table = np.zeros((len(annotations), len(found)))
    if not table.size:
        return table
    truth: list[object] | NDArray[np.float64]
    ours: list[object] | NDArray[np.float64]
    if not of_boxes and found.rle_counts is not None and all(entry.rle is not None for entry in annotations):
        size = [found.height, found.width]
        truth = [entry.rle for entry in annotations]
        ours = [{"size": size, "counts": counts} for counts in found.rle_counts]
    else:
        truth = _xywh(np.array([entry.box_xyxy for entry in annotations], np.float64))
        ours = _xywh(found.boxes_xyxy.astype(np.float64))
    crowds = [int(entry.is_crowd) for entry in annotations]
    table = np.asarray(coco_masks().iou(ours, truth, crowds), np.float64).T
    same = np.array([entry.category_id for entry in annotations])[:, None] == found.class_ids
    return np.where(same, table, 0.0)


def crowds_of(annotations: Sequence[Annotation]) -> NDArray[np.bool_]:
    """(N,) bool: which of them are crowd regions."""
    return np.array([entry.is_crowd for entry in annotations], np.bool_)


def pair_objects(table: NDArray[np.float64], is_crowd: NDArray[np.bool_]) -> Pairing:
    """The pairing with the largest total IoU of pairs of at least MIN_IOU, from (N, M) `overlaps` and (N,) bool."""
    truth_idx = np.flatnonzero(~is_crowd)
    allowed = np.where(table >= MIN_IOU, table, 0.0)[truth_idx]
    partner = solve_assignment(-allowed)
    pairs = [
        (int(truth_idx[row]), int(col))
        for row, col in enumerate(partner.tolist())
        if col >= 0 and allowed[row, col] > 0
    ]
    seen, used = {truth for truth, _ in pairs}, {found for _, found in pairs}
    in_crowd = set(np.flatnonzero((table[is_crowd] >= MIN_IOU).any(axis=0)).tolist())
    alone = [index for index in range(table.shape[1]) if index not in used]
    return Pairing(
        pairs=tuple(pairs),
        ious=tuple(float(table[pair]) for pair in pairs),
        missed=tuple(index for index in truth_idx.tolist() if index not in seen),
        false=tuple(index for index in alone if index not in in_crowd),
        neutral=tuple(index for index in alone if index in in_crowd),
    )


def _xywh(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    boxes = boxes_xyxy.copy()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
