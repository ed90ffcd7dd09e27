"""One entry of `annotations` in COCO's format: box, mask, category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ops.mask_format import decode_rle, rle_area
from pipeline.errors import UsageError

Rle = dict[str, Any]
"""pycocotools' compressed run-length encoding: {"size": [height, width], "counts": bytes}"""

BORDER_TOLERANCE_PX = 1.0
"""Boxes in published data sets reach up to a pixel beyond the picture, because of rounding. Such boxes stay as they
are; boxes that reach further are clipped."""
_MIN_POLYGON_VALUES = 6
"""x and y of three points"""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated object, or a crowd region.

    category_id   category in the data set's own table
    box_xyxy      in pixels of the picture, edges continuous
    rle           mask of the full picture; None if the data set gives the box alone
    is_crowd      a region of objects that are not annotated one by one (COCO's iscrowd): it is neither ground truth
                  nor background
    area_px       COCO's `area`, which assigns the object to small, medium or large
    was_clipped   the box in the file reached beyond the picture by more than BORDER_TOLERANCE_PX
    """

    category_id: int
    box_xyxy: tuple[float, float, float, float]
    rle: Rle | None
    is_crowd: bool
    area_px: float
    was_clipped: bool = False


class NoAreaError(Exception):
    """An annotation that covers no pixel of its picture. The message completes "an annotation …"."""


def coco_masks() -> Any:
    """The module pycocotools.mask. Raises UsageError if the extra is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError("COCO data needs pycocotools: pip install 'maskstream[train]'") from None
    return mask


def parse_annotation(entry: dict[str, Any], hw: tuple[int, int]) -> Annotation:
    """The annotation of a JSON entry on a picture of (height, width).

    An empty list as segmentation gives an annotation without a mask, as a missing segmentation does.
    Raises NoAreaError if the entry covers no pixel, and any other exception if it does not have COCO's format.
    """
    box, was_clipped = _box(entry["bbox"], hw)
    rle = _rle(entry.get("segmentation"), hw)
    x1, y1, x2, y2 = box
    area_px = (x2 - x1) * (y2 - y1) if rle is None else float(rle_area(rle["counts"]))
    if area_px == 0:
        raise NoAreaError("with an empty mask")
    stated = entry.get("area")
    if isinstance(stated, int | float) and math.isfinite(stated):
        area_px = float(stated)
    return Annotation(int(entry["category_id"]), box, rle, bool(entry.get("iscrowd", 0)), area_px, was_clipped)


def _box(xywh: Sequence[Any], hw: tuple[int, int]) -> tuple[tuple[float, float, float, float], bool]:
    """(x1, y1, x2, y2), and whether the box was clipped to the picture."""
    x1, y1, box_width, box_height = (float(value) for value in xywh)
    if not all(map(math.isfinite, (x1, y1, box_width, box_height))):
        raise NoAreaError("with NaN or infinity in its box")
    if box_width <= 0 or box_height <= 0:
        raise NoAreaError("with an empty box")
    height, width = hw
    x2, y2 = x1 + box_width, y1 + box_height
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise NoAreaError("outside its picture")
    beyond_px = max(-x1, -y1, x2 - width, y2 - height)
    if beyond_px <= BORDER_TOLERANCE_PX:
        return (x1, y1, x2, y2), False
    return (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))), True


def _rle(segmentation: Any, hw: tuple[int, int]) -> Rle | None:
    """The mask of polygons, of counts as a list (uncompressed) or of counts as text (compressed)."""
    if isinstance(segmentation, dict):
        return _rle_of_counts(segmentation, hw)
    if not segmentation:
        return None
    polygons = [[float(value) for value in polygon] for polygon in segmentation]
    if any(len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon must list x and y of each point")
    polygons = [polygon for polygon in polygons if len(polygon) >= _MIN_POLYGON_VALUES]
    if not polygons:
        raise NoAreaError("with fewer than 3 points in its polygon")
    if not all(math.isfinite(value) for polygon in polygons for value in polygon):
        raise NoAreaError("with NaN or infinity in its polygon")
    masks = coco_masks()
    merged: Rle = masks.merge(masks.frPyObjects(polygons, *hw))
    return merged


def _rle_of_counts(segmentation: dict[str, Any], hw: tuple[int, int]) -> Rle:
    counts = segmentation["counts"]
    if list(segmentation["size"]) != list(hw):
        raise ValueError(f"run-length encoding of {segmentation['size']} (height, width) on a picture of {list(hw)}")
    rle: Rle
    if isinstance(counts, list):
        rle = coco_masks().frPyObjects(segmentation, *hw)
    else:
        rle = {"size": list(hw), "counts": counts.encode() if isinstance(counts, str) else counts}
    decode_rle(rle["counts"], hw)  # raises ValueError for counts that do not add up to the picture
    return rle
