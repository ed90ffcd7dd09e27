"""Labels of instances: chips (filled rectangles with text: class, track ID and score), placed where they hide the
fewest objects.

Coordinates are whole pixels. Rectangles are int32 arrays [..., 4] of left, top, right and bottom; right and bottom are
exclusive.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.contract.results import Instance

Bgr = tuple[int, int, int]

FONT_PX = 17
"""size of the text in a picture whose shorter side is REFERENCE_SIDE_PX"""
REFERENCE_SIDE_PX = 720
FONT_GROWTH = 0.8
"""the text size is proportional to the shorter side of the picture to this power: large pictures are shown larger or
looked at more closely, so their text may be relatively smaller"""
MIN_FONT_PX = 9
"""the smallest text that can be read"""
SCORE_MAX_WIDTHS = 1.6
"""the score is left out where it would make the chip wider than this multiple of its box"""
COVER_CELL_PX = 4
"""side of the cells of `CoverMap`; the placement of labels needs no finer grid"""
CHIP_WEIGHT = 8.0
"""cost of a pixel of another label, when a pixel of an object costs 1"""
TEXT_DARK: Bgr = (22, 18, 16)
TEXT_LIGHT: Bgr = (255, 255, 255)

_Alpha = NDArray[np.uint8]
_Rects = NDArray[np.int32]


class CoverMap:
    """How many objects cover each part of a picture, summed over any rectangle in constant time."""

    def __init__(self, picture_hw: tuple[int, int]) -> None:
        height, width = (-(-side // COVER_CELL_PX) for side in picture_hw)
        self._counts = np.zeros((height, width), np.uint8)
        self._integral: NDArray[np.int32] | None = None

    def add(self, left: int, top: int, mask: NDArray[np.uint8]) -> None:
        """Add an object: `mask` is (h, w) uint8 of 0 and 1, its first pixel at (left, top)."""
        first_row, first_column = -top % COVER_CELL_PX, -left % COVER_CELL_PX
        cells = mask[first_row::COVER_CELL_PX, first_column::COVER_CELL_PX]
        row, column = -(-top // COVER_CELL_PX), -(-left // COVER_CELL_PX)
        self._counts[row : row + cells.shape[0], column : column + cells.shape[1]] += cells
        self._integral = None

    def covered_px(self, rects: _Rects) -> NDArray[np.int32]:
        """Number of object pixels inside each of the (N, 4) rectangles, to the precision of a cell.

        A pixel that n objects cover counts n times.
        """
        if self._integral is None:
            self._integral = np.asarray(cv2.integral(self._counts), np.int32)
        left, top = rects[:, 0] // COVER_CELL_PX, rects[:, 1] // COVER_CELL_PX
        right, bottom = -(-rects[:, 2] // COVER_CELL_PX), -(-rects[:, 3] // COVER_CELL_PX)
        sums = self._integral
        cells = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        return np.asarray(cells * COVER_CELL_PX**2, np.int32)


class LabelPainter:
    """Draws the labels of one picture, each where it hides the least of the objects and of the labels before it."""

    def __init__(self, picture_bgr: NDArray[np.uint8], cover: CoverMap) -> None:
        self._picture = picture_bgr
        self._cover = cover
        self._placed = np.zeros((0, 4), np.int32)
        scale = min(picture_bgr.shape[:2]) / REFERENCE_SIDE_PX
        self._font_px: int = max(MIN_FONT_PX, round(FONT_PX * scale**FONT_GROWTH))

    def draw(self, instance: Instance, colour: Bgr) -> None:
        """Draw the label of one instance; none in a picture that is too small for it."""
        height, width = self._picture.shape[:2]
        parts = self._parts(instance)
        chip_h, chip_w = self._chip_hw(parts)
        if parts and chip_h <= height and chip_w <= width:
            rect = self._place(instance.box_xyxy, (chip_h, chip_w))
            self._placed = np.concatenate([self._placed, rect[None]])
            self._paint(rect, parts, colour)

    def _parts(self, instance: Instance) -> list[_Alpha]:
        """The texts of the chip: name and score, or what fits."""
        name = instance.label if instance.track_id is None else f"{instance.label} #{instance.track_id}"
        parts = [text_alpha(name, self._font_px), text_alpha(f"{instance.score:.2f}", self._font_px)]
        x1, _, x2, _ = instance.box_xyxy
        picture_w, chip_w = self._picture.shape[1], self._chip_hw(parts)[1]
        if chip_w > picture_w or self._chip_hw(parts[:1])[1] < chip_w > SCORE_MAX_WIDTHS * (x2 - x1):
            parts.pop()
        return parts

    def _chip_hw(self, parts: list[_Alpha]) -> tuple[int, int]:
        height = max((part.shape[0] for part in parts), default=0) + 2 * (self._pad // 2)
        return height, sum(part.shape[1] for part in parts) + self._gap * (len(parts) - 1) + 2 * self._pad

    @property
    def _pad(self) -> int:
        return max(2, round(0.3 * self._font_px))

    @property
    def _gap(self) -> int:
        return round(self._font_px * 0.4)

    def _place(self, box_xyxy: tuple[float, float, float, float], chip_hw: tuple[int, int]) -> _Rects:
        """The cheapest place around the box or inside it; among equals the first: above the box, on the left."""
        rects = self._candidates(box_xyxy, chip_hw)
        costs = self._cover.covered_px(rects) + CHIP_WEIGHT * _shared_px(rects, self._placed).sum(axis=1)
        best: _Rects = rects[costs.argmin()]
        return best

    def _candidates(self, box_xyxy: tuple[float, float, float, float], chip_hw: tuple[int, int]) -> _Rects:
        (chip_h, chip_w), (height, width) = chip_hw, self._picture.shape[:2]
        left, top, right, bottom = _whole(box_xyxy)
        aligned = [left, right - chip_w, (left + right - chip_w) // 2]
        places = [(x, y) for y in (top - chip_h, bottom, top, bottom - chip_h) for x in aligned]
        beside = [top, (top + bottom - chip_h) // 2, top - chip_h, bottom]
        places += [(x, y) for y in beside for x in (right, left - chip_w)]
        # a place beyond the upper or lower edge of the picture is left out; one beyond its sides is moved inside
        inside = [place for place in places if 0 <= place[1] <= height - chip_h] or [(left, top)]
        corners = np.clip(np.array(inside, np.int64), 0, [width - chip_w, height - chip_h])
        return np.concatenate([corners, corners + np.array([chip_w, chip_h])], axis=1).astype(np.int32)

    def _paint(self, rect: _Rects, parts: list[_Alpha], colour: Bgr) -> None:
        left, top, right, bottom = rect.tolist()
        chip = self._picture[top:bottom, left:right]
        chip[:] = colour
        ink, ground = np.array(text_colour(colour), np.float32), np.array(colour, np.float32)
        x, y = self._pad, self._pad // 2
        for part in parts:
            target = chip[y : y + part.shape[0], x : x + part.shape[1]]
            alpha = part[:, :, None].astype(np.float32) / 255
            target[:] = np.rint(ink * alpha + ground * (1 - alpha))
            x += part.shape[1] + self._gap


def text_colour(background: Bgr) -> Bgr:
    """Dark or light, whichever contrasts more with the background (relative luminance of WCAG 2)."""
    linear = [value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in background]
    luminance = 0.0722 * linear[0] + 0.7152 * linear[1] + 0.2126 * linear[2]
    # at sqrt(1.05 * 0.05) - 0.05 the contrast with white equals that with black
    return TEXT_DARK if luminance > 0.179 else TEXT_LIGHT


@lru_cache(maxsize=2048)
def text_alpha(text: str, font_px: int) -> _Alpha:
    """(height, width) uint8: coverage of each pixel by one line of text; the height depends on the font alone."""
    font = _font(font_px)
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ag#|")
    image = Image.new("L", (math.ceil(right - left), math.ceil(bottom - top)))
    ImageDraw.Draw(image).text((-left, -top), text, fill=255, font=font)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _font(font_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(font_px)


def _whole(box_xyxy: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = box_xyxy
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def _shared_px(rects: _Rects, others: _Rects) -> NDArray[np.int32]:
    """(N, M): pixels that each of N rectangles shares with each of M others."""
    low = np.maximum(rects[:, None, :2], others[None, :, :2])
    high = np.minimum(rects[:, None, 2:], others[None, :, 2:])
    return np.asarray(np.clip(high - low, 0, None).prod(axis=2), np.int32)
