"""Matching the detections on a picture with its ground truth objects."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.assignment import solve_assignment
from pipeline.coco.annotations import Annotation, coco_masks
from pipeline.contract.arrays import Detections

MIN_IOU = 0.5
"""lowest IoU of a match; a detection of which at least this share lies inside a crowd region is ignored"""


@dataclass(frozen=True, slots=True)
class Matching:
    """The one-to-one matching of one picture, as indices of ground truth objects and of detections.

    matches           (ground truth, detection) pairs
    ious              the IoU of each pair
    missed            ground truth objects without a match (false negatives)
    false_positives   detections without a match
    ignored           detections without a match that lie in crowd regions: they do not count
    """

    matches: tuple[tuple[int, int], ...]
    ious: tuple[float, ...]
    missed: tuple[int, ...]
    false_positives: tuple[int, ...]
    ignored: tuple[int, ...]

    @property
    def panoptic_quality(self) -> float | None:
        """Panoptic quality over the objects of all classes, 0 to 1; None for a picture on which nothing counts.

        It is the sum of the IoUs of the matches, divided by the number of matches plus half the number of missed
        objects and false positives (Kirillov et al. 2019, equation 1).
        """
        weight = len(self.matches) + (len(self.missed) + len(self.false_positives)) / 2
        return sum(self.ious) / weight if weight else None

    @property
    def caption(self) -> str:
        """The panoptic quality and the counts as text."""
        quality = self.panoptic_quality
        text = "no quality" if quality is None else f"quality {quality:.2f}"
        return f"{text}: {len(self.matches)} matched, {len(self.missed)} missed, {len(self.false_positives)} false"


def confident_detections(found: Detections, min_score: float, class_ids: Collection[int]) -> Detections:
    """The detections of these classes with a score of at least `min_score`, with boxes and masks alone."""
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


def pairwise_ious(
    annotations: Sequence[Annotation], found: Detections, *, of_boxes: bool = False
) -> NDArray[np.float64]:
    """(N, M) float64: the IoU of each of N annotations with each of M detections; 0 between different classes.

    For a crowd region the entry is the share of the detection that lies inside the region. The IoUs are those of
    masks; they are those of boxes if `of_boxes` is set, or if an annotation or the detections have no masks.
    """
    ious = np.zeros((len(annotations), len(found)))
    if not ious.size:
        return ious
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
    ious = np.asarray(coco_masks().iou(ours, truth, crowds), np.float64).T
    same_class = np.array([entry.category_id for entry in annotations])[:, None] == found.class_ids
    return np.where(same_class, ious, 0.0)


def crowd_flags(annotations: Sequence[Annotation]) -> NDArray[np.bool_]:
    """(N,) bool: which annotations are crowd regions."""
    return np.array([entry.is_crowd for entry in annotations], np.bool_)


def match_objects(ious: NDArray[np.float64], is_crowd: NDArray[np.bool_]) -> Matching:
    """The matching with the largest sum of IoUs in which every match has an IoU of at least MIN_IOU.

    ious       (N, M) float64, from `pairwise_ious`
    is_crowd   (N,) bool
    """
    truth_idx = np.flatnonzero(~is_crowd)
    allowed = np.where(ious >= MIN_IOU, ious, 0.0)[truth_idx]
    col_of_row = solve_assignment(-allowed)
    matches = [
        (int(truth_idx[row]), int(col))
        for row, col in enumerate(col_of_row.tolist())
        if col >= 0 and allowed[row, col] > 0
    ]
    matched_truth, matched_found = {truth for truth, _ in matches}, {found for _, found in matches}
    in_crowd = set(np.flatnonzero((ious[is_crowd] >= MIN_IOU).any(axis=0)).tolist())
    unmatched = [index for index in range(ious.shape[1]) if index not in matched_found]
    return Matching(
        matches=tuple(matches),
        ious=tuple(float(ious[pair]) for pair in matches),
        missed=tuple(index for index in truth_idx.tolist() if index not in matched_truth),
        false_positives=tuple(index for index in unmatched if index not in in_crowd),
        ignored=tuple(index for index in unmatched if index in in_crowd),
    )


def _xywh(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    boxes = boxes_xyxy.copy()
    boxes[:, 2:] -= boxes[:, :2]
    return boxes
