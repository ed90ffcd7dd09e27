"""IoU and Dice coefficient of each class: of the union of all its masks, whichever instance they belong to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.mask_format import decode_rle
from pipeline.coco.annotations import Annotation
from pipeline.contract.arrays import Detections

_Mask = NDArray[np.bool_]


@dataclass(slots=True)
class PixelCounts:
    """Number of pixels of one class, summed over pictures.

    truth_px    pixels of the ground truth
    found_px    pixels of the detections
    common_px   pixels of both
    """

    truth_px: int = 0
    found_px: int = 0
    common_px: int = 0

    def add(self, truth: _Mask, found: _Mask, ignored: _Mask) -> None:
        """Adds one picture, given as (H, W) bool masks. Pixels of `ignored` do not count."""
        truth, found = truth & ~ignored, found & ~ignored
        self.truth_px += int(np.count_nonzero(truth))
        self.found_px += int(np.count_nonzero(found))
        self.common_px += int(np.count_nonzero(truth & found))

    @property
    def iou(self) -> float:
        """Intersection over union; NaN if the union is empty."""
        union_px = self.truth_px + self.found_px - self.common_px
        return self.common_px / union_px if union_px else float("nan")

    @property
    def dice(self) -> float:
        """Dice coefficient, 2 * intersection / (truth + found) (Dice 1945); NaN if both are empty."""
        sum_px = self.truth_px + self.found_px
        return 2 * self.common_px / sum_px if sum_px else float("nan")


class ClassMasks:
    """The pixel counts of all classes, over the pictures that were added."""

    def __init__(self, category_ids: Collection[int], min_score: float) -> None:
        """min_score: detections with a lower score do not count."""
        self.counts = {category_id: PixelCounts() for category_id in category_ids}
        self._min_score = min_score

    def add(self, annotations: Sequence[Annotation], found: Detections, labelled: Collection[int]) -> None:
        """Adds one picture with its annotations and its detections, whose class ids are categories of the data.

        labelled: only these categories count on this picture. Pixels of a category's crowd regions do not count for
        this category. Raises ValueError if an annotation or the detections have no masks.
        """
        if found.rle_counts is None:
            raise ValueError("IoU of masks needs detections with masks, but these have none")
        hw = (found.height, found.width)
        for category_id in self.counts.keys() & set(labelled):
            own = [entry for entry in annotations if entry.category_id == category_id]
            kept = np.flatnonzero((found.class_ids == category_id) & (found.scores >= self._min_score)).tolist()
            if not own and not kept:
                continue
            self.counts[category_id].add(
                _union([_rle_counts(entry) for entry in own if not entry.is_crowd], hw),
                _union([found.rle_counts[index] for index in kept], hw),
                _union([_rle_counts(entry) for entry in own if entry.is_crowd], hw),
            )


def _rle_counts(entry: Annotation) -> bytes:
    if entry.rle is None:
        raise ValueError("IoU of masks needs annotations with masks, but this one has a box alone")
    counts: bytes = entry.rle["counts"]
    return counts


def _union(rle_counts: Sequence[bytes], hw: tuple[int, int]) -> _Mask:
    union = np.zeros(hw, np.bool_)
    for counts in rle_counts:
        union |= decode_rle(counts, hw)
    return union
