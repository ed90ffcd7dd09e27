"""The area that two instance masks share, from their box-local cells: neither is drawn on the frame.

A mask is SIDE x SIDE cells, stretched over its box. Two of them are unions of rectangles, so the area they share is a
sum over pairs of cells, of the length that their columns share times the length that their rows share. Both grids lie
along the same axes: of 28 and 28 columns at most 55 pairs share any length, and as many of rows.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

SIDE = 28

_MOST_SEGMENTS = 2 * SIDE


def unpack_cells(mask_bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 28, 28) uint8 of 0 and 1, from (N, 98) as np.packbits packs them, rows first. Raises ValueError."""
    if mask_bits.ndim != 2 or mask_bits.shape[1] != SIDE * SIDE // 8:
        raise ValueError(f"mask_bits must be (N, {SIDE * SIDE // 8}), got {mask_bits.shape}")
    return np.unpackbits(mask_bits, axis=1).reshape(-1, SIDE, SIDE)


@njit(cache=True)
def mask_area(cells: NDArray[np.uint8], boxes_xyxy: NDArray[np.float64], i: int) -> float:
    """Area of mask i of (N, 28, 28) over box i of (N, 4), in px^2."""
    width = boxes_xyxy[i, 2] - boxes_xyxy[i, 0]
    height = boxes_xyxy[i, 3] - boxes_xyxy[i, 1]
    num = 0
    for row in range(SIDE):
        for col in range(SIDE):
            if cells[i, row, col]:
                num += 1
    return float(num * width * height / (SIDE * SIDE))


@njit(cache=True)
def shared_area(
    cells_a: NDArray[np.uint8], boxes_a_xyxy: NDArray[np.float64], i: int,
    cells_b: NDArray[np.uint8], boxes_b_xyxy: NDArray[np.float64], j: int,
) -> float:  # fmt: skip
    """Area in px^2 that mask i of a and mask j of b have in common. Boxes are x1, y1, x2, y2 with continuous edges."""
    num_cols, cols, col_lengths = _segments(boxes_a_xyxy, i, boxes_b_xyxy, j, 0)
    num_rows, rows, row_lengths = _segments(boxes_a_xyxy, i, boxes_b_xyxy, j, 1)
    area = 0.0
    for r in range(num_rows):
        row_a, row_b = rows[r, 0], rows[r, 1]
        length = 0.0
        for c in range(num_cols):
            if cells_a[i, row_a, cols[c, 0]] and cells_b[j, row_b, cols[c, 1]]:
                length += col_lengths[c]
        area += length * row_lengths[r]
    return area


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
