"""Assignment of boxes to levels of a feature pyramid by their size, identical for the kernels of all devices."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit

_ZERO = np.float32(0.0)

# Equation 1 of the FPN paper (Lin et al. 2017): a box of 224 x 224 pixels belongs to the level of stride 2^4.
# torchvision adds the epsilon for boxes that only rounding keeps below a level.
_CANONICAL_SIDE_PX = np.float32(224.0)
_CANONICAL_LEVEL = 4
_LEVEL_EPS = np.float32(1e-6)

# Boxes are processed by level, then by square tiles of this many cells, so that neighbouring boxes find their cells in
# the cache: 1000 boxes on 256 channels take 11 ms instead of 14.
_TILE_CELLS = np.float32(16.0)


@cache
def least_areas_px2(scales: tuple[float, ...]) -> tuple[float, ...]:
    """Smallest box area of each level, in square pixels, exactly representable in float32; 0 for the finest level.

    The level is floor(4 + log2(sqrt(area) / 224) + 1e-6) in float32. The thresholds are computed once on the host, so
    the kernels only compare areas and do not depend on how a device rounds a logarithm.
    """
    finest = int(-math.log2(scales[0]))
    areas = [_ZERO]
    for level in range(finest + 1, finest + len(scales)):
        area = _CANONICAL_SIDE_PX**2 * np.float32(4.0 ** (level - _CANONICAL_LEVEL))
        smaller = np.nextafter(area, _ZERO)
        while _level(smaller) >= np.float32(level):
            area, smaller = smaller, np.nextafter(smaller, _ZERO)
        areas.append(area)
    return tuple(float(area) for area in areas)


def _level(area_px2: np.float32) -> np.float32:
    """The level of a box area before it is rounded down."""
    octaves: np.float32 = np.log2(np.sqrt(area_px2) / _CANONICAL_SIDE_PX)
    return np.float32(_CANONICAL_LEVEL) + octaves + _LEVEL_EPS


@njit(cache=True, nogil=True, error_model="numpy")
def assign_levels(
    hws: NDArray[np.int64],
    scales: NDArray[np.float32],
    least_areas: NDArray[np.float32],
    boxes_xyxy: NDArray[np.float32],
    image_idx: NDArray[np.int64],
    is_valid: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The level of each box, -1 for none, and a sort key by level, image, row of tiles and column of tiles.

    hws (L, 2), scales (L,), least_areas (L,) as above, boxes_xyxy (N, 4), image_idx and is_valid (N,). Both results are
    (N,) int64.
    """
    num_levels = len(scales)
    level_of_box = np.full(len(boxes_xyxy), -1, np.int64)
    sort_key = np.zeros(len(boxes_xyxy), np.int64)
    for n in range(len(boxes_xyxy)):
        x1, y1, x2, y2 = boxes_xyxy[n]
        area = (x2 - x1) * (y2 - y1)
        if not is_valid[n] or not (area >= _ZERO or (num_levels == 1 and area < _ZERO)):
            continue
        level = 0
        while level + 1 < num_levels and area >= least_areas[level + 1]:
            level += 1
        level_of_box[n] = level
        sort_key[n] = (level << 56) + (image_idx[n] << 40)
        height, width = hws[level]
        tiles = scales[level] / _TILE_CELLS
        sort_key[n] += np.int64(min(max(y1 * tiles, _ZERO), np.float32(height))) << 20
        sort_key[n] += np.int64(min(max(x1 * tiles, _ZERO), np.float32(width)))
    return level_of_box, sort_key
