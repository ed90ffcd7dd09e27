"""How well the pixels of each class are covered, whatever instance they belong to: IoU and Dice of unions of masks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.masks import decode_rle
from pipeline.coco.data import Annotation
from pipeline.contract.arrays import Detections

_Mask = NDArray[np.bool_]


@dataclass(slots=True)
class Region:
    """Pixels of one class, summed over pictures: of the truth, of what was found, and of both at once."""

    truth_px: int = 0
    found_px: int = 0
    common_px: int = 0

    def add(self, truth: _Mask, found: _Mask, left_out: _Mask) -> None:
        """One picture: (H, W) bool each. Pixels of `left_out` count for nothing."""
        truth, found = truth & ~left_out, found & ~left_out
        self.truth_px += int(np.count_nonzero(truth))
        self.found_px += int(np.count_nonzero(found))
        self.common_px += int(np.count_nonzero(truth & found))

    @property
    def iou(self) -> float:
        """Common pixels as a share of those of either; NaN where there are none."""
        either_px = self.truth_px + self.found_px - self.common_px
        return self.common_px / either_px if either_px else float("nan")

    @property
    def dice(self) -> float:
        """Common pixels as a share of the mean of both; NaN where there are none (Dice 1945)."""
        both_px = self.truth_px + self.found_px
        return 2 * self.common_px / both_px if both_px else float("nan")


class Regions:
    """The regions of all classes."""

    def __init__(self, category_ids: Collection[int], min_score: float) -> None:
        self.of_category = {category_id: Region() for category_id in category_ids}
        self._min_score = min_score

    def add(self, annotations: Sequence[Annotation], found: Detections, labelled: Collection[int]) -> None:
        """One picture: the masks of its objects against those that were found with `min_score` or more.

        Left out are classes that are not `labelled` on it, and for each class the pixels of its crowd regions. The
        classes of `found` are categories of the truth. Raises ValueError for detections without masks.
        """
        if found.rle_counts is None:
            raise ValueError("regions are made of masks, but these detections carry none")
        hw = (found.height, found.width)
        for category_id in self.of_category.keys() & set(labelled):
            own = [entry for entry in annotations if entry.category_id == category_id]
            chosen = np.flatnonzero((found.class_ids == category_id) & (found.scores >= self._min_score)).tolist()
            if not own and not chosen:
                continue
            self.of_category[category_id].add(
                _union([_counts(entry) for entry in own if not entry.is_crowd], hw),
                _union([found.rle_counts[index] for index in chosen], hw),
                _union([_counts(entry) for entry in own if entry.is_crowd], hw),
            )


def _counts(entry: Annotation) -> bytes:
    if entry.rle is None:
        raise ValueError("regions are made of masks, but this annotation has a box alone")
    counts: bytes = entry.rle["counts"]
    return counts


def _union(strings: Sequence[bytes], hw: tuple[int, int]) -> _Mask:
    union = np.zeros(hw, np.bool_)
    for counts in strings:
        union |= decode_rle(counts, hw)
    return union
