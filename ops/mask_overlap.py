"""Area, centroid and overlap of instance masks from their box-local bits: none is drawn on the frame.

A mask is SIDE x SIDE cells, stretched over its box. Two of them are unions of rectangles, so the area they share is a
sum over pairs of cells, of the length that their columns share times the length that their rows share. Both grids lie
along the same axes: of 28 and 28 columns at most 55 pairs share any length, and as many of rows.

`bits` are (N, 98) uint8, the cells as np.packbits packs them, rows first; boxes (N, 4) float64 x1, y1, x2, y2 in pixels
with continuous edges. Compiled, unchecked.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

SIDE = 28
MASK_BYTES = SIDE * SIDE // 8

_MOST_SEGMENTS = 2 * SIDE
# of four cells: the sum of the places, from the left, of those that are set
_PLACES_OF_FOUR = np.array([sum(3 - k for k in range(4) if value >> k & 1) for value in range(16)], np.int64)
_BITS_OF_BYTE = np.array([value.bit_count() for value in range(256)], np.int64)


@njit(cache=True)
def mask_area(bits: NDArray[np.uint8], boxes_xyxy: NDArray[np.float64], i: int) -> float:
    """Area of mask i over box i, in px^2."""
    width = boxes_xyxy[i, 2] - boxes_xyxy[i, 0]
    height = boxes_xyxy[i, 3] - boxes_xyxy[i, 1]
    num = 0
    for k in range(MASK_BYTES):
        num += _BITS_OF_BYTE[bits[i, k]]
    return float(num * width * height / (SIDE * SIDE))


@njit(cache=True)
def mask_centroid(bits: NDArray[np.uint8], boxes_xyxy: NDArray[np.float64], i: int) -> tuple[float, float]:
    """x, y in pixels: the mean place of mask i over box i; the middle of the box where the mask is empty, or where
    there are no masks: bits (0, 98).
    """
    num = sum_row = sum_col = 0
    if len(bits):
        for k in range(2 * MASK_BYTES):  # four cells lie in one row, seven times four are a row
            byte = np.int64(bits[i, k // 2])
            four = byte >> 4 if k % 2 == 0 else byte & 15
            count = _BITS_OF_BYTE[four]
            num += count
            sum_row += (k // 7) * count
            sum_col += 4 * (k % 7) * count + _PLACES_OF_FOUR[four]
    across = (sum_col / num + 0.5) / SIDE if num else 0.5
    down = (sum_row / num + 0.5) / SIDE if num else 0.5
    left, top = boxes_xyxy[i, 0], boxes_xyxy[i, 1]
    return left + across * (boxes_xyxy[i, 2] - left), top + down * (boxes_xyxy[i, 3] - top)


@njit(cache=True)
def shared_area(
    bits_a: NDArray[np.uint8], boxes_a_xyxy: NDArray[np.float64], i: int,
    bits_b: NDArray[np.uint8], boxes_b_xyxy: NDArray[np.float64], j: int,
) -> float:  # fmt: skip
    """Area in px^2 that mask i of a and mask j of b have in common."""
    num_cols, cols, col_lengths = _segments(boxes_a_xyxy, i, boxes_b_xyxy, j, 0)
    num_rows, rows, row_lengths = _segments(boxes_a_xyxy, i, boxes_b_xyxy, j, 1)
    if num_cols == 0 or num_rows == 0:
        return 0.0
    cells_a, cells_b = _cells(bits_a, i), _cells(bits_b, j)
    area = 0.0
    for r in range(num_rows):
        row_a, row_b = rows[r, 0], rows[r, 1]
        length = 0.0
        for c in range(num_cols):
            if cells_a[row_a, cols[c, 0]] and cells_b[row_b, cols[c, 1]]:
                length += col_lengths[c]
        area += length * row_lengths[r]
    return area


@njit(cache=True)
def _cells(bits: NDArray[np.uint8], i: int) -> NDArray[np.uint8]:
    """(28, 28) uint8 of 0 and 1: mask i, unpacked."""
    cells = np.empty(SIDE * SIDE, np.uint8)
    for k in range(MASK_BYTES):
        byte = bits[i, k]
        for bit in range(8):
            cells[8 * k + bit] = (byte >> (7 - bit)) & 1
    return cells.reshape(SIDE, SIDE)


@njit(cache=True)
def _segments(
    boxes_a_xyxy: NDArray[np.float64], i: int, boxes_b_xyxy: NDArray[np.float64], j: int, axis: int
) -> tuple[int, NDArray[np.int64], NDArray[np.float64]]:
    """The pieces that both grids cut the common side of the boxes into, along x (axis 0) or y (axis 1).

    Returns their number, the cells of a and b that each lies in (56, 2), and the lengths (56,).
    """
    cells = np.empty((_MOST_SEGMENTS, 2), np.int64)
    lengths = np.empty(_MOST_SEGMENTS)
    low_a, low_b = boxes_a_xyxy[i, axis], boxes_b_xyxy[j, axis]
    step_a = (boxes_a_xyxy[i, axis + 2] - low_a) / SIDE
    step_b = (boxes_b_xyxy[j, axis + 2] - low_b) / SIDE
    at = max(low_a, low_b)
    end = min(boxes_a_xyxy[i, axis + 2], boxes_b_xyxy[j, axis + 2])
    num = 0
    if step_a <= 0.0 or step_b <= 0.0 or end <= at:
        return num, cells, lengths
    cell_a = min(int((at - low_a) / step_a), SIDE - 1)
    cell_b = min(int((at - low_b) / step_b), SIDE - 1)
    while at < end and cell_a < SIDE and cell_b < SIDE:
        edge_a = low_a + (cell_a + 1) * step_a
        edge_b = low_b + (cell_b + 1) * step_b
        nearest = min(edge_a, edge_b, end)
        if nearest > at:
            cells[num, 0] = cell_a
            cells[num, 1] = cell_b
            lengths[num] = nearest - at
            num += 1
            at = nearest
        if edge_a <= nearest:
            cell_a += 1
        if edge_b <= nearest:
            cell_b += 1
    return num, cells, lengths
