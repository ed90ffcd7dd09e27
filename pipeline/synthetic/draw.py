"""Anti-aliased drawing of one figure: a canvas to draw on, and the sprite it produces.

A canvas has separate planes for colour and shading. The colour plane is supersampled, so that its edges are sharp. The
shading plane is blurred, so that steps of brightness look like round surfaces. All points are picture coordinates, in
continuous pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.camera import Points

Colour = tuple[float, float, float]
Box = tuple[int, int, int, int]

_SHIFT = 4
"""fractional bits of the fixed-point coordinates that OpenCV takes"""
_UNIT = 1 << _SHIFT
_NEUTRAL = 128
"""brightness that leaves a colour unchanged"""

_CAP_STEPS = 7
_CAP_TURN = np.linspace(np.pi / 2, 3 * np.pi / 2, _CAP_STEPS)
_CAP = np.stack([np.cos(_CAP_TURN), np.sin(_CAP_TURN)], -1)


@dataclass(frozen=True)
class Sprite:
    """A drawn figure, clipped to the picture.

    box       (x0, y0, x1, y1) in whole pixels, inside the picture
    rgb       (y1 - y0, x1 - x0, 3) uint8 RGB, premultiplied by alpha
    alpha     (y1 - y0, x1 - x0) uint8, 255 is opaque
    solid     (y1 - y0, x1 - x0) bool, True for pixels of the object's mask
    """

    box: Box
    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8]
    solid: NDArray[np.bool_]


def tint(colour: Colour, factor: float) -> Colour:
    """The colour with its brightness multiplied by `factor`, clipped to 255."""
    return (min(colour[0] * factor, 255.0), min(colour[1] * factor, 255.0), min(colour[2] * factor, 255.0))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Linear interpolation: the first colour at `share` 0, the second at `share` 1."""
    a, b = np.array(first), np.array(second)
    red, green, blue = a + (b - a) * share
    return (float(red), float(green), float(blue))


def capsules(start: Points, end: Points, start_radius: Points, end_radius: Points) -> Points:
    """Outlines of K tapered capsules (bars with round ends), as convex polygons (K, 2 * _CAP_STEPS, 2).

    `start` and `end` are (K, 2) points, `start_radius` and `end_radius` (K,) radii.
    """
    axis = end - start
    length = np.hypot(axis[:, 0], axis[:, 1])
    axis[length < 1e-9] = (1.0, 0.0)
    axis /= np.maximum(length, 1e-9)[:, None]
    across = np.stack([-axis[:, 1], axis[:, 0]], -1)
    # The half circle around the start. The half circle around the end is its point reflection.
    cap = _CAP[:, :1] * axis[:, None] + _CAP[:, 1:] * across[:, None]
    outline = np.empty((len(start), 2 * _CAP_STEPS, 2))
    outline[:, :_CAP_STEPS] = start[:, None] + start_radius[:, None, None] * cap
    outline[:, _CAP_STEPS:] = end[:, None] - end_radius[:, None, None] * cap
    return outline


def ellipse(centre: Points, half_width: float, half_height: float, steps: int = 20) -> Points:
    """Outline of an axis-aligned ellipse, (steps, 2)."""
    turn = np.linspace(0, 2 * np.pi, steps, endpoint=False)
    return centre + np.stack([half_width * np.cos(turn), half_height * np.sin(turn)], -1)


class Canvas:
    """A transparent drawing surface over the part `box` of the picture.

    The colour plane has `supersample` times as many pixels per row and column as the picture.
    """

    def __init__(self, box: Box, supersample: int) -> None:
        self.box = box
        self._factor = supersample
        corner = np.array(box[:2], np.float64)
        self._origin = {factor: (corner * factor + 0.5) * _UNIT for factor in (1, supersample)}
        width, height = box[2] - box[0], box[3] - box[1]
        self._rgba = np.zeros((height * supersample, width * supersample, 4), np.uint8)
        self._shade = np.full((height, width), _NEUTRAL, np.uint8)
        self._filled: NDArray[np.uint8] | None = None

    def _fixed(self, points: Points, factor: int) -> NDArray[np.int32]:
        """Points in OpenCV's fixed-point coordinates: 1 / _UNIT pixels, from the centre of the first pixel."""
        return np.rint(points * (factor * _UNIT) - self._origin[factor]).astype(np.int32)

    def polygon(self, outline: Points, colour: Colour) -> None:
        """Fill a simple (not self-intersecting) polygon (N, 2) with a colour."""
        cv2.fillPoly(self._rgba, [self._fixed(outline, self._factor)], (*colour, 255.0), cv2.LINE_AA, _SHIFT)

    def line(self, path: Points, colour: Colour, width_px: float, *, closed: bool = False) -> None:
        """Draw a path (N, 2) of `width_px` picture pixels, at least one supersampled pixel."""
        thickness = max(1, round(width_px * self._factor))
        points = [self._fixed(path, self._factor)]
        cv2.polylines(self._rgba, points, closed, (*colour, 255.0), thickness, cv2.LINE_AA, _SHIFT)

    def shade(self, outline: Points, factor: float) -> None:
        """Set the brightness inside a polygon (N, 2): 1 leaves the colour unchanged, the maximum is 1.99."""
        level = min(factor * _NEUTRAL, 255.0)
        cv2.fillPoly(self._shade, [self._fixed(outline, 1)], level, cv2.LINE_8, _SHIFT)

    def add_to_mask(self, outline: Points) -> None:
        """Add a polygon (N, 2) to the object's mask without drawing it, such as the disc of a spoked wheel."""
        if self._filled is None:
            self._filled = np.zeros_like(self._shade)
        cv2.fillPoly(self._filled, [self._fixed(outline, 1)], 255, cv2.LINE_8, _SHIFT)

    def finish(self, shade_blur_px: float, texture: NDArray[np.uint8]) -> Sprite:
        """Scale the colours down, apply shading and texture, and return the sprite.

        `shade_blur_px` is the standard deviation of the blur of the shading, at least 0.3. `texture` is (height, width)
        uint8 and multiplies the brightness; 128 is neutral.
        """
        height, width = self._shade.shape
        rgba = cv2.resize(self._rgba, (width, height), interpolation=cv2.INTER_AREA)
        shade = cv2.GaussianBlur(self._shade, (0, 0), max(shade_blur_px, 0.3))
        light = cv2.multiply(shade, texture, scale=1 / _NEUTRAL)
        alpha = np.ascontiguousarray(rgba[..., 3])
        rgb = cv2.multiply(rgba[..., :3], cv2.merge([light, light, light]), scale=1 / _NEUTRAL)
        # Premultiplied colour must not exceed its alpha.
        rgb = cv2.min(rgb, cv2.merge([alpha, alpha, alpha]))
        solid = alpha >= 128
        if self._filled is not None:
            solid |= self._filled > 0
        return Sprite(self.box, np.asarray(rgb, np.uint8), np.asarray(alpha, np.uint8), solid)


def open_canvas(outline: Points, margin_px: float, width: int, height: int) -> Canvas | None:
    """A canvas that covers all points (N, 2) with a margin, clipped to the picture of `width` x `height` pixels.

    Returns None if the points and their margin lie outside the picture.
    """
    low, high = outline.min(axis=0) - margin_px, outline.max(axis=0) + margin_px
    x0, y0 = max(int(np.floor(low[0])), 0), max(int(np.floor(low[1])), 0)
    x1, y1 = min(int(np.ceil(high[0])), width), min(int(np.ceil(high[1])), height)
    if x1 <= x0 or y1 <= y0:
        return None
    small = high[1] - low[1] < 110
    return Canvas((x0, y0, x1, y1), 3 if small else 2)


def union_area_px(masks: Sequence[tuple[Box, NDArray[np.bool_]]]) -> int:
    """Number of pixels that at least one of the masks covers. Each mask comes with its box in the picture."""
    if len(masks) == 1:
        return int(np.count_nonzero(masks[0][1]))
    boxes = np.array([box for box, _ in masks])
    x0, y0 = boxes[:, 0].min(), boxes[:, 1].min()
    sheet = np.zeros((boxes[:, 3].max() - y0, boxes[:, 2].max() - x0), np.bool_)
    for (left, top, right, bottom), mask in masks:
        sheet[top - y0 : bottom - y0, left - x0 : right - x0] |= mask
    return int(np.count_nonzero(sheet))
