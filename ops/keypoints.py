"""Keypoint decoding: the position of the maximum of each heatmap, resized to its box, on the CPU.

The rule is that of torchvision's `heatmaps_to_keypoints`. A heatmap of S x S cells is resized to the width and height
of its box, rounded up to whole pixels, by cubic convolution (Keys 1981) with a = -0.75, cell centres at +0.5, the
border replicated, no antialiasing. The keypoint is the centre of the pixel with the maximum (of several, the first in
row- major order), scaled back by the ratio of the true box size to the rounded one. tests/unit/ops/test_keypoints.py
compares with `ops.reference.keypoint` and with torchvision.

The resized heatmap is never stored. A branch-and-bound search skips most of it: between two neighbouring cell centres,
the two outer of the four cubic weights are at most 0 and sum to at least -0.1875, and all four sum to 1. The
interpolated value therefore exceeds the larger inner cell by at most 0.1875 times its difference to the smaller outer
cell. Applied along rows and then along columns, this bounds the tile of pixels between four cell centres, and only
tiles whose bound reaches the best value so far are evaluated: about 15 of the 3249 tiles of a heatmap with a peak. Not
parallel: 17 heatmaps of 56 x 56 cells take 0.1 ms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit

_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_NAN = np.float32(np.nan)

# Keys' parameter, with the value that OpenCV and torch use.
_A = np.float32(-0.75)

# The outer weights sum to a * t * (1 - t), whose magnitude is at most |a| / 4; plus a margin for rounding.
_OVERSHOOT = np.float32(0.1875 + 1e-5)

# Relative rounding error of the weighted sums: about 20 operations with 2^-24 each. It matters where the values of the
# cells are large compared with their differences.
_ROUNDING = np.float32(2e-6)

# A larger box cannot have been clipped to an image.
_MAX_SIDE_PX = np.float32(1e4)


def decode_keypoints(heatmaps: NDArray[np.float32], boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Decode heatmaps into keypoints: (N, K, 3) float32 [x, y, score], where score is the maximum.

    heatmaps     (N, K, S, S) float32 with S >= 1: K heatmaps for each box
    boxes_xyxy   (N, 4) float32, finite, in pixels with continuous edges; x and y are in the same coordinates. A width
    or
                 height below one pixel counts as one pixel; at most 10^4 pixels

    A heatmap that contains NaN or infinity gives NaN for all three values. Raises ValueError for wrong shapes or types
    and for boxes that are not finite or too large.
    """
    num = len(boxes_xyxy)
    if boxes_xyxy.shape != (num, 4) or boxes_xyxy.dtype != np.float32:
        raise ValueError(f"boxes_xyxy must be (N, 4) float32, got {boxes_xyxy.shape} {boxes_xyxy.dtype}")
    if heatmaps.ndim != 4 or len(heatmaps) != num or heatmaps.dtype != np.float32:
        raise ValueError(f"heatmaps must be ({num}, K, S, S) float32, got {heatmaps.shape} {heatmaps.dtype}")
    if heatmaps.shape[2] != heatmaps.shape[3] or heatmaps.shape[2] < 1:
        raise ValueError(f"heatmaps must be square and not empty, got {heatmaps.shape}")
    if not (np.abs(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) <= _MAX_SIDE_PX).all():
        raise ValueError(f"boxes must be finite and at most {_MAX_SIDE_PX:g} pixels wide and high")
    keypoints = np.empty((num, heatmaps.shape[1], 3), np.float32)
    _decode(np.ascontiguousarray(heatmaps), np.ascontiguousarray(boxes_xyxy), keypoints)
    return keypoints


@njit(cache=True, nogil=True, error_model="numpy")
def _decode(heatmaps: NDArray[np.float32], boxes_xyxy: NDArray[np.float32], keypoints: NDArray[np.float32]) -> None:
    side = heatmaps.shape[2]
    padded = np.empty((side + 4, side + 4), np.float32)
    bounds = np.empty((side + 1, side + 1), np.float32)
    column_bounds = np.empty(side + 1, np.float32)
    row_above = np.empty((side + 4, side + 1), np.float32)
    row_below = np.empty((side + 4, side + 1), np.float32)
    for n in range(len(boxes_xyxy)):
        x1, y1, x2, y2 = boxes_xyxy[n]
        width, height = max(x2 - x1, _ONE), max(y2 - y1, _ONE)
        num_columns, num_rows = int(np.ceil(width)), int(np.ceil(height))
        first_column, column_weights = _tiles_and_weights(side, num_columns)
        first_row, row_weights = _tiles_and_weights(side, num_rows)
        for k in range(heatmaps.shape[1]):
            if not _pad(heatmaps[n, k], padded):
                keypoints[n, k] = _NAN
                continue
            _bound(padded, row_above, row_below, bounds, column_bounds)
            row, column, score = _highest(
                padded, bounds, column_bounds, first_row, row_weights, first_column, column_weights
            )
            keypoints[n, k, 0] = (np.float32(column) + _HALF) * (width / np.float32(num_columns)) + x1
            keypoints[n, k, 1] = (np.float32(row) + _HALF) * (height / np.float32(num_rows)) + y1
            keypoints[n, k, 2] = score


@njit(cache=True, nogil=True, error_model="numpy")
def _tiles_and_weights(side: int, num_pixels: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Tiles and cubic weights along one axis.

    Returns first (side + 2,) int64 and weights (num_pixels, 4): the pixels first[t] <= p < first[t + 1] form tile t and
    are interpolated from the padded cells t to t + 3.
    """
    first = np.full(side + 2, num_pixels, np.int64)
    weights = np.empty((num_pixels, 4), np.float32)
    scale = np.float32(side) / np.float32(num_pixels)
    next_tile = 0
    for pixel in range(num_pixels):
        position = scale * (np.float32(pixel) + _HALF) - _HALF
        cell = np.floor(position)
        while next_tile <= int(cell) + 1:
            first[next_tile] = pixel
            next_tile += 1
        t = position - cell
        weights[pixel, 0] = _outer_weight(t + _ONE)
        weights[pixel, 1] = _inner_weight(t)
        weights[pixel, 2] = _inner_weight(_ONE - t)
        weights[pixel, 3] = _outer_weight(_ONE - t + _ONE)
    return first, weights


@njit(cache=True, nogil=True, error_model="numpy")
def _inner_weight(distance: np.float32) -> np.float32:
    """Cubic weight of a cell at a distance of 0 to 1 cells."""
    return ((_A + np.float32(2)) * distance - (_A + np.float32(3))) * distance * distance + _ONE


@njit(cache=True, nogil=True, error_model="numpy")
def _outer_weight(distance: np.float32) -> np.float32:
    """Cubic weight of a cell at a distance of 1 to 2 cells."""
    return ((_A * distance - np.float32(5) * _A) * distance + np.float32(8) * _A) * distance - np.float32(4) * _A


@njit(cache=True, nogil=True, error_model="numpy")
def _pad(heatmap: NDArray[np.float32], padded: NDArray[np.float32]) -> bool:
    """Copy the heatmap with its border replicated twice on each side. Returns whether all values are finite."""
    side = len(heatmap)
    sums = np.zeros(side, np.float32)
    for i in range(side):
        for j in range(side):
            value = heatmap[i, j]
            padded[i + 2, j + 2] = value
            sums[j] += _ZERO * value
        for j in range(2):
            padded[i + 2, j] = heatmap[i, 0]
            padded[i + 2, side + 2 + j] = heatmap[i, side - 1]
    for i in range(2):
        padded[i] = padded[2]
        padded[side + 2 + i] = padded[side + 1]
    return not np.isnan(sums).any()


@njit(cache=True, nogil=True, error_model="numpy")
def _bound(
    padded: NDArray[np.float32],
    row_above: NDArray[np.float32],
    row_below: NDArray[np.float32],
    bounds: NDArray[np.float32],
    column_bounds: NDArray[np.float32],
) -> None:
    """Upper bounds of the interpolated values.

    Writes bounds (side + 1, side + 1), one for each tile, and column_bounds (side + 1,), one for each column of tiles.
    row_above and row_below (side + 4, side + 1) are scratch space for the bounds along the rows.
    """
    num_tiles = len(bounds)
    column_bounds[:] = -np.inf
    for i in range(len(padded)):
        for j in range(num_tiles):
            a, b, c, d = padded[i, j], padded[i, j + 1], padded[i, j + 2], padded[i, j + 3]
            high, low = _higher(b, c), _lower(b, c)
            row_above[i, j] = high + _OVERSHOOT * _higher(high - _lower(a, d), _ZERO)
            row_below[i, j] = low - _OVERSHOOT * _higher(_higher(a, d) - low, _ZERO)
    for i in range(num_tiles):
        for j in range(num_tiles):
            high = _higher(row_above[i + 1, j], row_above[i + 2, j])
            low = _lower(row_below[i, j], row_below[i + 3, j])
            bounds[i, j] = high + _OVERSHOOT * _higher(high - low, _ZERO) + _ROUNDING * (abs(high) + abs(low))
        for j in range(num_tiles):
            column_bounds[j] = _higher(column_bounds[j], bounds[i, j])


@njit(cache=True, nogil=True, inline="always")
def _higher(a: np.float32, b: np.float32) -> np.float32:
    return a if a > b else b


@njit(cache=True, nogil=True, inline="always")
def _lower(a: np.float32, b: np.float32) -> np.float32:
    return a if a < b else b


@njit(cache=True, nogil=True, error_model="numpy")
def _highest(
    padded: NDArray[np.float32],
    bounds: NDArray[np.float32],
    column_bounds: NDArray[np.float32],
    first_row: NDArray[np.int64],
    row_weights: NDArray[np.float32],
    first_column: NDArray[np.int64],
    column_weights: NDArray[np.float32],
) -> tuple[int, int, np.float32]:
    """Row, column and value of the maximum; of several equal maxima, the first in row-major order."""
    num_tiles = len(bounds)
    start_j = _highest_bound(column_bounds, first_column)
    start_i = _highest_bound(bounds[:, start_j], first_row)
    best_row, best_column, best = _highest_of_tile(
        padded, start_i, start_j, first_row, row_weights, first_column, column_weights, -1, -1, np.float32(-np.inf)
    )
    for j in range(num_tiles):
        if column_bounds[j] < best or first_column[j] == first_column[j + 1]:
            continue
        for i in range(num_tiles):
            if bounds[i, j] >= best:
                best_row, best_column, best = _highest_of_tile(
                    padded, i, j, first_row, row_weights, first_column, column_weights, best_row, best_column, best
                )
    return best_row, best_column, best


@njit(cache=True, nogil=True, error_model="numpy")
def _highest_bound(bounds: NDArray[np.float32], first: NDArray[np.int64]) -> int:
    """Index of the highest bound among the tiles that contain pixels."""
    best, highest = 0, np.float32(-np.inf)
    for tile in range(len(bounds)):
        if bounds[tile] > highest and first[tile] < first[tile + 1]:
            best, highest = tile, bounds[tile]
    return best


@njit(cache=True, nogil=True, error_model="numpy")
def _highest_of_tile(
    padded: NDArray[np.float32],
    i: int,
    j: int,
    first_row: NDArray[np.int64],
    row_weights: NDArray[np.float32],
    first_column: NDArray[np.int64],
    column_weights: NDArray[np.float32],
    best_row: int,
    best_column: int,
    best: np.float32,
) -> tuple[int, int, np.float32]:
    """The best pixel so far, or a better one in tile (i, j). Interpolates along rows first, then along columns, as
    torch does.
    """
    for column in range(first_column[j], first_column[j + 1]):
        w0, w1, w2, w3 = column_weights[column]
        h0 = padded[i, j] * w0 + padded[i, j + 1] * w1 + padded[i, j + 2] * w2 + padded[i, j + 3] * w3
        h1 = padded[i + 1, j] * w0 + padded[i + 1, j + 1] * w1 + padded[i + 1, j + 2] * w2 + padded[i + 1, j + 3] * w3
        h2 = padded[i + 2, j] * w0 + padded[i + 2, j + 1] * w1 + padded[i + 2, j + 2] * w2 + padded[i + 2, j + 3] * w3
        h3 = padded[i + 3, j] * w0 + padded[i + 3, j + 1] * w1 + padded[i + 3, j + 2] * w2 + padded[i + 3, j + 3] * w3
        for row in range(first_row[i], first_row[i + 1]):
            value = (
                h0 * row_weights[row, 0]
                + h1 * row_weights[row, 1]
                + h2 * row_weights[row, 2]
                + h3 * row_weights[row, 3]
            )
            is_first = row < best_row or (row == best_row and column < best_column)
            if value > best or (value == best and is_first):
                best_row, best_column, best = row, column, value
    return best_row, best_column, best
