"""Intersection over union of axis-aligned boxes: every pair, or only the pairs whose boxes meet.

Boxes are x1, y1, x2, y2 with continuous edges: the area is (x2 - x1) * (y2 - y1). A box without area has IoU 0 with
everything, itself included. `ops.reference.box_iou` is the slow form; tests/unit/test_iou.py holds them equal.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


def box_iou(boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) float64 IoU of each of (N, 4) boxes with each of (M, 4). Raises ValueError for wrong shapes."""
    return _box_iou(_checked(boxes_a_xyxy, "boxes_a_xyxy"), _checked(boxes_b_xyxy, "boxes_b_xyxy"))


def overlapping_pairs(
    boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64], min_iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The pairs of (N, 4) and (M, 4) boxes that overlap with an IoU of at least min_iou.

    Returns a_idx (P,), b_idx (P,) int64 and iou (P,) float64, all above 0. Raises ValueError for wrong shapes.
    """
    return sweep_pairs(_checked(boxes_a_xyxy, "boxes_a_xyxy"), _checked(boxes_b_xyxy, "boxes_b_xyxy"), min_iou)


def _checked(boxes_xyxy: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    boxes = np.ascontiguousarray(boxes_xyxy, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must be (N, 4), got {boxes.shape}")
    return boxes


@njit(cache=True)
def iou_at(a: NDArray[np.float64], i: int, b: NDArray[np.float64], j: int) -> float:
    """IoU of box i of a with box j of b. Indices instead of rows, because numba counts references on every view."""
    width = min(a[i, 2], b[j, 2]) - max(a[i, 0], b[j, 0])
    height = min(a[i, 3], b[j, 3]) - max(a[i, 1], b[j, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    shared = width * height
    area_a = (a[i, 2] - a[i, 0]) * (a[i, 3] - a[i, 1])
    area_b = (b[j, 2] - b[j, 0]) * (b[j, 3] - b[j, 1])
    return float(shared / (area_a + area_b - shared))


@njit(cache=True)
def _box_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.empty((len(a), len(b)), np.float64)
    for i in range(len(a)):
        for j in range(len(b)):
            out[i, j] = iou_at(a, i, b, j)
    return out


@njit(cache=True)
def sweep_pairs(
    a: NDArray[np.float64], b: NDArray[np.float64], min_iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """`overlapping_pairs` without its checks, to be called from compiled code."""
    return sweep_sorted(a, np.argsort(a[:, 0], kind="mergesort"), b, np.argsort(b[:, 0], kind="mergesort"), min_iou)


@njit(cache=True)
def sweep_sorted(
    a: NDArray[np.float64],
    order_a: NDArray[np.int64],
    b: NDArray[np.float64],
    order_b: NDArray[np.int64],
    min_iou: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """`sweep_pairs` with the places of both sets by their left edges. The order of the pairs follows these two.

    A line sweeps over the left edges of both sets from left to right; a box is compared with those of the other set
    that the line still cuts: their right, upper and lower edges and areas lie side by side, because nearly all
    comparisons end at them.
    """
    num_a, num_b = len(order_a), len(order_b)
    open_idx = np.empty((2, max(num_a, num_b)), np.int64)
    open_edges = np.empty((2, max(num_a, num_b), 4), np.float64)
    num_open = np.zeros(2, np.int64)
    capacity = 4 * (num_a + num_b) + 16
    pairs = np.empty((2, capacity), np.int64)
    iou = np.empty(capacity, np.float64)
    num_pairs = next_a = next_b = 0
    while next_a < num_a or next_b < num_b:
        if next_b == num_b or (next_a < num_a and a[order_a[next_a], 0] <= b[order_b[next_b], 0]):
            side, index = 0, order_a[next_a]
            left, top, right, bottom = a[index, 0], a[index, 1], a[index, 2], a[index, 3]
            next_a += 1
        else:
            side, index = 1, order_b[next_b]
            left, top, right, bottom = b[index, 0], b[index, 1], b[index, 2], b[index, 3]
            next_b += 1
        area = (right - left) * (bottom - top)
        other = 1 - side
        if num_pairs + num_open[other] > capacity:
            capacity = 2 * capacity + num_open[other]
            pairs = _widened(pairs, capacity)
            iou = np.concatenate((iou, np.empty(capacity - len(iou))))
        still_open = 0
        for k in range(num_open[other]):
            if open_edges[other, k, 0] <= left:
                continue
            if still_open < k:
                open_idx[other, still_open] = open_idx[other, k]
                for edge in range(4):
                    open_edges[other, still_open, edge] = open_edges[other, k, edge]
            height = min(bottom, open_edges[other, still_open, 2]) - max(top, open_edges[other, still_open, 1])
            if height > 0.0:
                # the other box began further to the left
                shared = height * (min(right, open_edges[other, still_open, 0]) - left)
                value = shared / (area + open_edges[other, still_open, 3] - shared) if shared > 0.0 else 0.0
                if value > 0.0 and value >= min_iou:
                    pairs[side, num_pairs] = index
                    pairs[other, num_pairs] = open_idx[other, still_open]
                    iou[num_pairs] = value
                    num_pairs += 1
            still_open += 1
        num_open[other] = still_open
        place = num_open[side]
        open_idx[side, place] = index
        open_edges[side, place, 0] = right
        open_edges[side, place, 1] = top
        open_edges[side, place, 2] = bottom
        open_edges[side, place, 3] = area
        num_open[side] += 1
    return pairs[0, :num_pairs], pairs[1, :num_pairs], iou[:num_pairs]


@njit(cache=True)
def _widened(pairs: NDArray[np.int64], capacity: int) -> NDArray[np.int64]:
    wider = np.empty((2, capacity), np.int64)
    wider[:, : pairs.shape[1]] = pairs
    return wider
