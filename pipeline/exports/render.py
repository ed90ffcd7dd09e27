"""Draws the instances of a result into its picture: translucent masks with outlines, boxes, skeletons, labels.

Coordinates are continuous pixels of the source frame: pixel (x, y) covers [x, x + 1) x [y, y + 1).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ops.mask_format import decode_rle
from pipeline.contract.results import Instance
from pipeline.exports.labels import REFERENCE_SIDE_PX, TEXT_DARK, Bgr, CoverMap, LabelPainter

UNCONFIRMED: Bgr = (170, 170, 170)
MASK_OPACITY = 0.42
LINE_PX = 2
"""width of outlines in a picture whose shorter side is REFERENCE_SIDE_PX; it scales with that side, as does LIMB_PX"""
LIMB_PX = 3
LIMBS_PER_BOX = 80
"""a limb is at most 1/80 of the longer side of its box, so that people far away stay recognisable"""
SUBPIXEL_BITS = 4
# Track colours in CIELAB, hues in radians. Of the values tried, these keep the first 20 colours farthest apart and the
# first ten bright.
LIGHTNESS = (84.0, 70.0, 58.0)
CHROMA = 75.0
FIRST_HUE = 4.8
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
"""step of the hue from one track to the next, in radians: it keeps any number of hues well spread"""
OUTLINE: Bgr = TEXT_DARK
"""drawn around skeletons, which are invisible on clothes of their own colour otherwise"""

# Pairs of joints, as indices in COCO's order.
LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
    (3, 5), (4, 6), (1, 3), (2, 4), (0, 1), (0, 2), (1, 2),
)  # fmt: skip


class Drawable(Protocol):
    """The properties of a result that `draw_result` reads: size of the picture in pixels, and instances."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def instances(self) -> list[Instance]: ...


def draw_result(picture_bgr: NDArray[np.uint8], result: Drawable) -> None:
    """Draw every instance of `result` into `picture_bgr`, in place.

    picture_bgr  (height, width, 3) uint8 BGR, C-contiguous: the source frame of the result

    Raises ValueError if the picture has another size than the result.
    """
    if picture_bgr.shape != (result.height, result.width, 3) or picture_bgr.dtype != np.uint8:
        raise ValueError(
            f"picture must be ({result.height}, {result.width}, 3) uint8, got {picture_bgr.shape} {picture_bgr.dtype}"
        )
    scale = min(result.height, result.width) / REFERENCE_SIDE_PX
    line_px = max(1, round(LINE_PX * scale))
    # largest first: an object in front of another is usually smaller, and must stay visible
    painted = sorted(_coloured(result.instances), key=lambda one: -_area_px(one.instance))
    cover = CoverMap((result.height, result.width))
    for instance, colour in painted:
        _draw_mask(picture_bgr, instance, colour, line_px, cover)
    for instance, colour in painted:
        _draw_box(picture_bgr, instance, colour, line_px)
    for instance, colour in painted:
        if instance.keypoints is not None:
            _draw_skeleton(picture_bgr, instance, colour, scale)
    labels = LabelPainter(picture_bgr, cover)
    for instance, colour in sorted(painted, key=lambda one: one.instance.state == "tentative"):
        labels.draw(instance, colour)


class _Coloured(NamedTuple):
    instance: Instance
    colour: Bgr


def _coloured(instances: list[Instance]) -> list[_Coloured]:
    """Each instance with its colour: that of its track or, without tracking, one that differs from the others'."""
    return [
        _Coloured(one, track_colour(number if one.state == "untracked" else one.track_id))
        for number, one in enumerate(instances, start=1)
    ]


@lru_cache(maxsize=4096)
def track_colour(track_id: int | None) -> Bgr:
    """The BGR colour of a track: a function of its ID; grey for None, a track that is not confirmed."""
    if track_id is None:
        return UNCONFIRMED
    hue = FIRST_HUE + track_id * GOLDEN_ANGLE
    lightness = LIGHTNESS[track_id % len(LIGHTNESS)]
    lab = np.array([[[lightness, CHROMA * math.cos(hue), CHROMA * math.sin(hue)]]], np.float32)
    blue, green, red = np.rint(cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)[0, 0] * 255).clip(0, 255).astype(int).tolist()
    return blue, green, red


def _area_px(instance: Instance) -> float:
    x1, y1, x2, y2 = instance.box_xyxy
    return (x2 - x1) * (y2 - y1)


def _draw_mask(picture: NDArray[np.uint8], instance: Instance, colour: Bgr, line_px: int, cover: CoverMap) -> None:
    """Tint and outline the mask, and add its pixels to `cover`; without a mask, add those of the box."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = instance.box_xyxy
    # mask pasting pads the 28x28 map by one cell, so a mask can extend one cell beyond its box
    margin_x, margin_y = ((x2 - x1) / 28 + 1, (y2 - y1) / 28 + 1) if instance.mask is not None else (0.0, 0.0)
    left, top = max(math.floor(x1 - margin_x), 0), max(math.floor(y1 - margin_y), 0)
    right, bottom = min(math.ceil(x2 + margin_x), width), min(math.ceil(y2 + margin_y), height)
    if left >= right or top >= bottom:
        return
    if instance.mask is None:
        cover.add(left, top, np.ones((bottom - top, right - left), np.uint8))
        return
    mask = decode_rle(instance.mask.counts.encode("ascii"), (height, width))
    crop = np.ascontiguousarray(mask[top:bottom, left:right]).view(np.uint8)
    cover.add(left, top, crop)
    region = picture[top:bottom, left:right]
    tint = cv2.addWeighted(region, 1 - MASK_OPACITY, np.full_like(region, colour), MASK_OPACITY, 0)
    cv2.copyTo(tint, crop, region)
    contours, _ = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(region, contours, -1, colour, line_px, cv2.LINE_AA)


def _draw_box(picture: NDArray[np.uint8], instance: Instance, colour: Bgr, line_px: int) -> None:
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = instance.box_xyxy
    left, top = _clip(math.floor(x1), 0, width - 1), _clip(math.floor(y1), 0, height - 1)
    right, bottom = _clip(math.ceil(x2) - 1, left, width - 1), _clip(math.ceil(y2) - 1, top, height - 1)
    is_alone = instance.mask is None and instance.keypoints is None
    thickness_px = line_px if is_alone else max(1, line_px // 2)
    cv2.rectangle(picture, (left, top), (right, bottom), colour, thickness_px, cv2.LINE_8)


def _draw_skeleton(picture: NDArray[np.uint8], instance: Instance, colour: Bgr, scale: float) -> None:
    """Draw the visible joints, and the limbs between them."""
    if instance.keypoints is None:
        return
    x1, y1, x2, y2 = instance.box_xyxy
    limb_px = max(1, round(min(LIMB_PX * scale, max(x2 - x1, y2 - y1) / LIMBS_PER_BOX)))
    unit = 1 << SUBPIXEL_BITS
    # OpenCV puts the centre of the first pixel at 0; it shifts coordinates within 32 bits, so large ones are clamped
    at = [
        (round(min(max(x - 0.5, -1e5), 1e5) * unit), round(min(max(y - 0.5, -1e5), 1e5) * unit)) if score > 0 else None
        for x, y, score in instance.keypoints
    ]
    outline_px = limb_px / 2
    for margin_px, ink in ((outline_px, OUTLINE), (0.0, colour)):
        for start, end in LIMBS:
            a, b = at[start], at[end]
            if a is not None and b is not None:
                cv2.line(picture, a, b, ink, limb_px + round(2 * margin_px), cv2.LINE_AA, SUBPIXEL_BITS)
        radius = round((1.4 * limb_px + margin_px) * unit)
        for joint in at:
            if joint is not None:
                cv2.circle(picture, joint, radius, ink, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
