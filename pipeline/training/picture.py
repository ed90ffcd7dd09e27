"""A picture with its annotated objects while it is augmented for training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

# An object with fewer visible pixels in the crop is ignored.
_MIN_AREA_PX = 12
# An object of which a smaller share is visible is ignored too: a sleeve at the border is not a person.
_MIN_VISIBLE_SHARE = 0.06

Rgb = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class TrainingObject:
    """One object, with its mask cropped to its box.

    output      index of its class in the output of the class head, from 1
    left, top   position of the mask in the picture, in pixels
    mask        (h, w) uint8, 0 or 255
    ignored     whether its pixels are neither ground truth nor background (COCO's iscrowd, or too little is visible)
    """

    output: int
    left: int
    top: int
    mask: NDArray[np.uint8]
    ignored: bool

    @property
    def area_px(self) -> int:
        return cv2.countNonZero(self.mask) if self.mask.size else 0


@dataclass(frozen=True, slots=True)
class TrainingPicture:
    """A picture and its objects.

    rgb        (H, W, 3) uint8
    labelled   the class head's outputs of the categories that the annotators looked for on this picture
    """

    rgb: Rgb
    objects: tuple[TrainingObject, ...]
    labelled: frozenset[int]

    @property
    def hw(self) -> tuple[int, int]:
        return self.rgb.shape[0], self.rgb.shape[1]


def visible_part(item: TrainingObject, above: TrainingObject) -> TrainingObject | None:
    """The part of an object that another object in front of it does not hide; None if nothing is visible."""
    x1, y1 = max(item.left, above.left), max(item.top, above.top)
    x2 = min(item.left + item.mask.shape[1], above.left + above.mask.shape[1])
    y2 = min(item.top + item.mask.shape[0], above.top + above.mask.shape[0])
    if x2 <= x1 or y2 <= y1:
        return item
    mask = item.mask.copy()
    part = above.mask[y1 - above.top : y2 - above.top, x1 - above.left : x2 - above.left]
    mask[y1 - item.top : y2 - item.top, x1 - item.left : x2 - item.left][part > 0] = 0
    cropped = cropped_to_mask(replace(item, mask=mask))
    return None if cropped is None else ignored_if_small(cropped, item.area_px)


def cropped_to_mask(item: TrainingObject) -> TrainingObject | None:
    """The object with its mask cropped to the mask's extent; None for an empty mask."""
    x, y, width, height = cv2.boundingRect(item.mask)
    if width == 0 or height == 0:
        return None
    return replace(item, left=item.left + x, top=item.top + y, mask=item.mask[y : y + height, x : x + width])


def ignored_if_small(item: TrainingObject, whole_px: float) -> TrainingObject:
    """The object, ignored if few of its pixels are visible. whole_px: area of the whole object in the same scale."""
    area_px = item.area_px
    too_small = area_px < _MIN_AREA_PX or area_px < _MIN_VISIBLE_SHARE * whole_px
    return replace(item, ignored=item.ignored or too_small)
