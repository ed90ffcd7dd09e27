"""Area, centroid and intersection of instance masks, computed from their box-local bits without rasterising them.

A mask is a grid of MASK_SIDE x MASK_SIDE cells, stretched over its box, so it is a union of rectangles. The
intersection area of two masks is the sum over pairs of set cells of the product of the overlaps of their columns and of
their rows. Both grids are axis-aligned: of 28 and 28 columns, at most 55 pairs overlap, and equally many of the rows.

`bits` are (N, 98) uint8: the cells in row-major order, packed by np.packbits. Boxes are (N, 4) float64 x1, y1, x2, y2
in pixels with continuous edges. Arguments are not validated: call these functions from compiled code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit
from ops.mask_format import MASK_BYTES, MASK_SIDE

_MAX_SEGMENTS = 2 * MASK_SIDE
# For each pattern of four cells: the sum of the indices, from the left, of the set cells.
_INDEX_SUM_OF_FOUR = np.array([sum(3 - k for k in range(4) if value >> k & 1) for value in range(16)], np.int64)
_POPCOUNT = np.array([value.bit_count() for value in range(256)], np.int64)


@njit(cache=True)
def mask_area(bits: NDArray[np.uint8], boxes_xyxy: NDArray[np.float64], i: int) -> float:
    """Area of mask i over box i, in px^2."""
    width = boxes_xyxy[i, 2] - boxes_xyxy[i, 0]
    height = boxes_xyxy[i, 3] - boxes_xyxy[i, 1]
    num = 0
    for k in range(MASK_BYTES):
        num += _POPCOUNT[bits[i, k]]
    return float(num * width * height / (MASK_SIDE * MASK_SIDE))


@njit(cache=True)
def mask_centroid(bits: NDArray[np.uint8], boxes_xyxy: NDArray[np.float64], i: int) -> tuple[float, float]:
    """Centroid (x, y) of mask i over box i, in pixels; the centre of the box if the mask is empty or absent."""
    num = sum_row = sum_col = 0
    if len(bits):
        for k in range(2 * MASK_BYTES):  # in groups of four cells, seven groups per row
            byte = np.int64(bits[i, k // 2])
            four = byte >> 4 if k % 2 == 0 else byte & 15
            count = _POPCOUNT[four]
            num += count
            sum_row += (k // 7) * count
            sum_col += 4 * (k % 7) * count + _INDEX_SUM_OF_FOUR[four]
    across = (sum_col / num + 0.5) / MASK_SIDE if num else 0.5
    down = (sum_row / num + 0.5) / MASK_SIDE if num else 0.5
    left, top = boxes_xyxy[i, 0], boxes_xyxy[i, 1]
    return left + across * (boxes_xyxy[i, 2] - left), top + down * (boxes_xyxy[i, 3] - top)


@njit(cache=True)
def shared_area(
    bits_a: NDArray[np.uint8], boxes_a_xyxy: NDArray[np.float64], i: int,
    bits_b: NDArray[np.uint8], boxes_b_xyxy: NDArray[np.float64], j: int,
) -> float:  # fmt: skip
    """Intersection area, in px^2, of mask i of a and mask j of b."""
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
    """Mask i unpacked: (28, 28) uint8 of 0 and 1."""
    cells = np.empty(MASK_SIDE * MASK_SIDE, np.uint8)
    for k in range(MASK_BYTES):
        byte = bits[i, k]
        for bit in range(8):
            cells[8 * k + bit] = (byte >> (7 - bit)) & 1
    return cells.reshape(MASK_SIDE, MASK_SIDE)


@njit(cache=True)
def _segments(
    boxes_a_xyxy: NDArray[np.float64], i: int, boxes_b_xyxy: NDArray[np.float64], j: int, axis: int
) -> tuple[int, NDArray[np.int64], NDArray[np.float64]]:
    """The segments into which the cell edges of both grids divide the overlap of the boxes along x (axis 0) or y (axis
    1).

    Returns the number of segments, (56, 2) the cells of a and b that contain each segment, and (56,) their lengths.
    """
    cells = np.empty((_MAX_SEGMENTS, 2), np.int64)
    lengths = np.empty(_MAX_SEGMENTS)
    low_a, low_b = boxes_a_xyxy[i, axis], boxes_b_xyxy[j, axis]
    step_a = (boxes_a_xyxy[i, axis + 2] - low_a) / MASK_SIDE
    step_b = (boxes_b_xyxy[j, axis + 2] - low_b) / MASK_SIDE
    position = max(low_a, low_b)
    end = min(boxes_a_xyxy[i, axis + 2], boxes_b_xyxy[j, axis + 2])
    num = 0
    if step_a <= 0.0 or step_b <= 0.0 or end <= position:
        return num, cells, lengths
    cell_a = min(int((position - low_a) / step_a), MASK_SIDE - 1)
    cell_b = min(int((position - low_b) / step_b), MASK_SIDE - 1)
    while position < end and cell_a < MASK_SIDE and cell_b < MASK_SIDE:
        edge_a = low_a + (cell_a + 1) * step_a
        edge_b = low_b + (cell_b + 1) * step_b
        nearest = min(edge_a, edge_b, end)
        if nearest > position:
            cells[num, 0] = cell_a
            cells[num, 1] = cell_b
            lengths[num] = nearest - position
            num += 1
            position = nearest
        if edge_a <= nearest:
            cell_a += 1
        if edge_b <= nearest:
            cell_b += 1
    return num, cells, lengths
