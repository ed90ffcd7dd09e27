"""Textures of house fronts."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.draw import Colour, mix, tint
from pipeline.synthetic.noise import cloud_noise

Image = NDArray[np.uint8]

_PLASTERS: tuple[Colour, ...] = (
    (206, 194, 168), (186, 150, 122), (168, 172, 170), (214, 206, 190), (150, 98, 80), (196, 178, 134), (160, 166, 150),
)  # fmt: skip
_AWNINGS: tuple[Colour, ...] = ((112, 44, 42), (48, 74, 64), (58, 66, 92), (150, 140, 120))
_GROUND_FLOOR_M, _FLOOR_M = 3.6, 3.0


def shift_light(texture: Image, factor: float, lift: float) -> Image:
    """The texture with its grey levels multiplied by `factor`, plus `lift` grey levels of haze."""
    shifted: Image = np.clip(texture.astype(np.float32) * factor + lift, 0, 255).astype(np.uint8)
    return shifted


def facade(rng: np.random.Generator, width_m: float, height_m: float, detail: float) -> Image:
    """A random house front: (height_m * detail, width_m * detail, 3) uint8 RGB with `detail` pixels per metre."""
    house = _House(rng, width_m, height_m, detail)
    house.storeys()
    house.ground_floor()
    return house.finish()


class _House:
    def __init__(self, rng: np.random.Generator, width_m: float, height_m: float, detail: float) -> None:
        self._rng, self._width, self._height, self._detail = rng, width_m, height_m, detail
        self._sheet = np.empty((max(int(height_m * detail), 8), max(int(width_m * detail), 8), 3), np.uint8)
        self._wall = _PLASTERS[int(rng.integers(len(_PLASTERS)))]
        self._sheet[:] = self._wall

    def _rect(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """Fill a rectangle. `x` and `y` are its lower left corner in metres from the lower left corner of the front."""
        scale, top = self._detail * 16, self._height
        corners = [(x, top - y), (x + width, top - y), (x + width, top - y - height), (x, top - y - height)]
        points = np.rint(np.array(corners) * scale - 8).astype(np.int32)
        cv2.fillPoly(self._sheet, [points], colour, cv2.LINE_AA, 4)

    def _glass(self, x: float, y: float, width: float, height: float) -> None:
        """A window pane: dark, with a reflection of the sky in its upper part, in some windows with curtains."""
        base = self._rng.uniform(0.8, 1.25)
        self._rect(x, y, width, height, (52 * base, 60 * base, 66 * base))
        self._rect(x, y + height * 0.55, width, height * 0.45, (92 * base, 104 * base, 112 * base))
        if self._rng.random() < 0.45:
            share = float(self._rng.uniform(0.2, 0.4))
            for left in (x, x + width * (1 - share)):
                self._rect(left, y, width * share, height, (158 * base * 0.9, 152 * base * 0.9, 142 * base * 0.9))

    def storeys(self) -> None:
        """Draw the upper storeys: rows of windows with frames, sills and shadows."""
        rng, wall = self._rng, self._wall
        columns = max(2, round(self._width / 2.3))
        pitch = self._width / columns
        wide, high = min(float(rng.uniform(1.0, 1.3)), pitch * 0.6), float(rng.uniform(1.45, 1.75))
        trim = mix(tint(wall, 1.15), (240, 240, 236), 0.15)
        dark = tint(wall, 0.62)
        y = _GROUND_FLOOR_M
        self._rect(0, y - 0.12, self._width, 0.26, trim)
        self._rect(0, y - 0.2, self._width, 0.08, dark)
        while y + 0.6 < self._height:
            for column in range(columns):
                x = pitch * (column + 0.5) - wide / 2
                self._rect(x - 0.14, y + 0.76, wide + 0.28, high + 0.28, trim)
                self._rect(x - 0.03, y + 0.87, wide + 0.06, high + 0.06, dark)
                for half in range(2):
                    self._glass(x + 0.05 + half * wide / 2, y + 0.92, wide / 2 - 0.08, high - 0.1)
                self._rect(x - 0.18, y + 0.7, wide + 0.36, 0.1, trim)
                self._rect(x - 0.16, y + 0.6, wide + 0.32, 0.1, dark)
            y += _FLOOR_M

    def ground_floor(self) -> None:
        """Draw the ground floor: a plinth, a door, and shop windows with an awning or ordinary windows."""
        rng, width = self._rng, self._width
        dark = tint(self._wall, 0.55)
        stone = tint(self._wall, 0.78)
        door_x = float(rng.uniform(0.1, 0.75)) * (width - 1.6)
        shop = rng.random() < 0.6
        self._rect(0, 0, width, 0.5, stone)
        low, high, gap = (0.55, 2.2, 0.3) if shop else (1.0, 1.7, 0.9)
        for start, end in ((0.45, door_x - 0.3), (door_x + 1.45, width - 0.45)):
            panes = int((end - start + gap) / (1.9 + gap if shop else 1.2 + gap))
            for k in range(panes):
                pane = (end - start + gap) / panes - gap if shop else 1.2
                x = start + k * (pane + gap)
                self._rect(x - 0.08, low - 0.08, pane + 0.16, high + 0.16, dark)
                self._glass(x, low, pane, high)
        colour = _AWNINGS[int(rng.integers(len(_AWNINGS)))]
        if shop:
            self._rect(0.25, 2.85, width - 0.5, 0.5, colour)
            self._rect(0.25, 2.75, width - 0.5, 0.1, tint(colour, 0.5))
        self._rect(door_x, 0, 1.15, 2.45, dark)
        self._rect(door_x + 0.1, 0.05, 0.95, 2.3, tint(colour, 0.8))
        self._rect(door_x + 0.25, 1.2, 0.65, 0.95, (60, 68, 74))

    def finish(self) -> Image:
        """Return the house front with stains and grain, darker towards the ground."""
        height, width = self._sheet.shape[:2]
        stains = cv2.resize(cloud_noise(self._rng, 48, 96), (width, height), interpolation=cv2.INTER_CUBIC)
        fine = self._rng.standard_normal((height, width), np.float32)
        rise = np.clip(np.arange(height)[::-1] / self._detail / 1.5, 0, 1)[:, None].astype(np.float32)
        light = (0.86 + 0.14 * rise) * (1 + 0.2 * (stains - 0.5) + 0.03 * fine)
        return np.clip(self._sheet * light[..., None], 0, 255).astype(np.uint8)
