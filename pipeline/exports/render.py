"""Draws the instances of one frame result into its picture: translucent masks, outlines, skeletons, boxes, labels.

Coordinates are pixels of the source frame, continuous: pixel (x, y) covers [x, x + 1) x [y, y + 1).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ops.masks import decode_rle
from pipeline.contract.results import Instance

Bgr = tuple[int, int, int]

UNCONFIRMED: Bgr = (170, 170, 170)
MASK_OPACITY = 0.42
REFERENCE_HEIGHT_PX = 720
"""of the shorter side at which sizes below hold; they grow and shrink with it"""
FONT_PX = 19
MIN_FONT_PX = 12
LINE_PX = 2
LIMB_PX = 3
LIMBS_PER_BOX = 80
"""a limb is no thicker than this share of the longer side of its box, so that people far away stay recognisable"""
SUBPIXEL_BITS = 4
LIGHTNESS = (84.0, 70.0, 58.0)
CHROMA = 75.0
FIRST_HUE = 4.8
"""CIELAB; of those tried these keep the first 20 tracks farthest apart without a muddy tone among the first ten"""
GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))
"""a turn by it lands farthest from all hues used before, however many follow"""
TEXT_DARK: Bgr = (22, 18, 16)
TEXT_LIGHT: Bgr = (255, 255, 255)
OUTLINE: Bgr = TEXT_DARK
"""of skeletons, which would drown in clothes of their own colour"""

# Joints by their place in COCO's order.
LIMBS = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10),
    (3, 5), (4, 6), (1, 3), (2, 4), (0, 1), (0, 2), (1, 2),
)  # fmt: skip

_Alpha = NDArray[np.uint8]
_Rect = tuple[int, int, int, int]


class Drawable(Protocol):
    """What `draw_result` needs of a result: the size of its picture in pixels, and the instances on it."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def instances(self) -> list[Instance]: ...


def draw_result(picture_bgr: NDArray[np.uint8], result: Drawable) -> None:
    """Draw every instance of `result` into `picture_bgr`, in place.

    picture_bgr  (height, width, 3) uint8 BGR, C-contiguous: the source frame of the result

    Raises ValueError when the picture is not of the result's size.
    """
    if picture_bgr.shape != (result.height, result.width, 3) or picture_bgr.dtype != np.uint8:
        raise ValueError(
            f"picture must be ({result.height}, {result.width}, 3) uint8, got {picture_bgr.shape} {picture_bgr.dtype}"
        )
    scale = min(result.height, result.width) / REFERENCE_HEIGHT_PX
    line_px = max(1, round(LINE_PX * scale))
    font_px = max(MIN_FONT_PX, round(FONT_PX * scale))
    # the largest first, so that what stands in front of it (smaller, as a rule) stays visible
    instances = sorted(result.instances, key=lambda instance: -_area_px(instance))
    for instance in instances:
        if instance.mask is not None:
            _draw_mask(picture_bgr, instance, line_px)
    for instance in instances:
        _draw_box(picture_bgr, instance, line_px)
    for instance in instances:
        if instance.keypoints is not None:
            _draw_skeleton(picture_bgr, instance, scale)
    placed: list[_Rect] = []
    for instance in sorted(instances, key=lambda instance: instance.state == "tentative"):
        _draw_label(picture_bgr, instance, font_px, placed)


@lru_cache(maxsize=4096)
def track_colour(track_id: int | None) -> Bgr:
    """The colour of a track: the same on every frame and in every run; grey for an unconfirmed one."""
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


def _draw_mask(picture: NDArray[np.uint8], instance: Instance, line_px: int) -> None:
    if instance.mask is None:
        return
    height, width = picture.shape[:2]
    mask = decode_rle(instance.mask.counts.encode("ascii"), (height, width))
    # a pasted mask reaches one pixel of its 28x28 map beyond the box
    x1, y1, x2, y2 = instance.box_xyxy
    margin_x, margin_y = (x2 - x1) / 28 + 1, (y2 - y1) / 28 + 1
    left, top = max(math.floor(x1 - margin_x), 0), max(math.floor(y1 - margin_y), 0)
    right, bottom = min(math.ceil(x2 + margin_x), width), min(math.ceil(y2 + margin_y), height)
    if left >= right or top >= bottom:
        return
    crop = np.ascontiguousarray(mask[top:bottom, left:right]).view(np.uint8)
    region = picture[top:bottom, left:right]
    colour = track_colour(instance.track_id)
    tint = cv2.addWeighted(region, 1 - MASK_OPACITY, np.full_like(region, colour), MASK_OPACITY, 0)
    cv2.copyTo(tint, crop, region)
    contours, _ = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(region, contours, -1, colour, line_px, cv2.LINE_AA)


def _draw_box(picture: NDArray[np.uint8], instance: Instance, line_px: int) -> None:
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = instance.box_xyxy
    left, top = _clip(math.floor(x1), 0, width - 1), _clip(math.floor(y1), 0, height - 1)
    right, bottom = _clip(math.ceil(x2) - 1, left, width - 1), _clip(math.ceil(y2) - 1, top, height - 1)
    is_alone = instance.mask is None and instance.keypoints is None
    thickness_px = line_px if is_alone else max(1, line_px // 2)
    cv2.rectangle(picture, (left, top), (right, bottom), track_colour(instance.track_id), thickness_px, cv2.LINE_8)


def _draw_skeleton(picture: NDArray[np.uint8], instance: Instance, scale: float) -> None:
    """Limbs between joints that are seen, and those joints."""
    if instance.keypoints is None:
        return
    x1, y1, x2, y2 = instance.box_xyxy
    limb_px = max(1, round(min(LIMB_PX * scale, max(x2 - x1, y2 - y1) / LIMBS_PER_BOX)))
    unit = 1 << SUBPIXEL_BITS
    # OpenCV has the centre of the first pixel at 0, and shifts numbers of 32 bits
    at = [
        (round(min(max(x - 0.5, -1e5), 1e5) * unit), round(min(max(y - 0.5, -1e5), 1e5) * unit)) if score > 0 else None
        for x, y, score in instance.keypoints
    ]
    outline_px = limb_px / 2
    for margin_px, ink in ((outline_px, OUTLINE), (0.0, track_colour(instance.track_id))):
        for start, end in LIMBS:
            a, b = at[start], at[end]
            if a is not None and b is not None:
                cv2.line(picture, a, b, ink, limb_px + round(2 * margin_px), cv2.LINE_AA, SUBPIXEL_BITS)
        radius = round((1.4 * limb_px + margin_px) * unit)
        for joint in at:
            if joint is not None:
                cv2.circle(picture, joint, radius, ink, cv2.FILLED, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_label(picture: NDArray[np.uint8], instance: Instance, font_px: int, placed: list[_Rect]) -> None:
    """A chip at the first place about the box where it covers no other chip; none in a picture that is too small."""
    height, width = picture.shape[:2]
    name = instance.label if instance.track_id is None else f"{instance.label} #{instance.track_id}"
    pad = max(2, round(font_px * 0.3))
    parts = [_text_alpha(name, font_px), _text_alpha(f"{instance.score:.2f}", font_px)]
    gap = round(font_px * 0.4)
    chip_h = parts[0].shape[0] + 2 * (pad // 2)
    while parts and sum(part.shape[1] for part in parts) + gap * (len(parts) - 1) + 2 * pad > width:
        parts.pop()
    if not parts or chip_h > height:
        return
    chip_w = sum(part.shape[1] for part in parts) + gap * (len(parts) - 1) + 2 * pad

    left, top = _place(instance.box_xyxy, (chip_h, chip_w), (height, width), placed)
    placed.append((left, top, left + chip_w, top + chip_h))
    colour = track_colour(instance.track_id)
    text = np.array(_text_colour(colour), np.float32)
    chip = picture[top : top + chip_h, left : left + chip_w]
    chip[:] = colour
    x = pad
    for part in parts:
        target = chip[pad // 2 : pad // 2 + part.shape[0], x : x + part.shape[1]]
        alpha = part[:, :, None].astype(np.float32) / 255
        target[:] = np.rint(text * alpha + np.array(colour, np.float32) * (1 - alpha))
        x += part.shape[1] + gap


def _place(
    box_xyxy: tuple[float, float, float, float],
    chip_hw: tuple[int, int],
    picture_hw: tuple[int, int],
    placed: list[_Rect],
) -> tuple[int, int]:
    """Left and top of a chip: above the box, below it, inside at the top or the bottom; always in the picture."""
    (chip_h, chip_w), (height, width) = chip_hw, picture_hw
    x1, y1, x2, y2 = box_xyxy
    box_top, box_bottom = math.floor(y1), math.ceil(y2)
    tops = [box_top - chip_h, box_bottom, box_top, box_bottom - chip_h]
    lefts = [math.floor(x1), math.ceil(x2) - chip_w]
    inside = [
        (_clip(left, 0, width - chip_w), top) for top in tops if 0 <= top <= height - chip_h for left in lefts
    ] or [(_clip(lefts[0], 0, width - chip_w), _clip(box_top, 0, height - chip_h))]
    for left, top in inside:
        if not any(_overlap((left, top, left + chip_w, top + chip_h), other) for other in placed):
            return left, top
    return inside[0]


def _overlap(one: _Rect, other: _Rect) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text_colour(background: Bgr) -> Bgr:
    """Dark or light, whichever contrasts more (WCAG 2 relative luminance)."""
    linear = [value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in background]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    # the luminance whose contrast to white equals that to black: sqrt(1.05 * 0.05) - 0.05
    return TEXT_DARK if luminance > 0.179 else TEXT_LIGHT


@lru_cache(maxsize=8)
def _font(font_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(font_px)


@lru_cache(maxsize=2048)
def _text_alpha(text: str, font_px: int) -> _Alpha:
    """(height, width) uint8 coverage of one line of text; the height depends on the font alone."""
    font = _font(font_px)
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ag#|")
    image = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), text, fill=255, font=font)
    return np.asarray(image)


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))
