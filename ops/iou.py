"""Intersection over union (IoU) of axis-aligned boxes: of every pair, or only of pairs that overlap.

Boxes are x1, y1, x2, y2 with continuous edges: the area is (x2 - x1) * (y2 - y1). A box without area has IoU 0 with
every box, including itself. tests/unit/ops/test_iou.py compares with `ops.reference.box_iou`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit
from ops.lanes import LANES, NUM_EDGES, lowest_bit, meeting_lanes


def box_iou(boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) float64 IoU of each of (N, 4) boxes with each of (M, 4). Raises ValueError for wrong shapes."""
    return _box_iou(_checked(boxes_a_xyxy, "boxes_a_xyxy"), _checked(boxes_b_xyxy, "boxes_b_xyxy"))


def overlapping_pairs(
    boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64], min_iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The pairs of (N, 4) and (M, 4) boxes that overlap with an IoU of at least min_iou.

    Returns a_idx (P,) and b_idx (P,) int64 and iou (P,) float64 > 0. Raises ValueError for wrong shapes and for boxes
    that are not finite.
    """
    a, b = _checked(boxes_a_xyxy, "boxes_a_xyxy"), _checked(boxes_b_xyxy, "boxes_b_xyxy")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("boxes must be finite, got NaN or infinity")
    return pairs_in_strips(a, b, into_strips(b), min_iou)


def _checked(boxes_xyxy: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    boxes = np.ascontiguousarray(boxes_xyxy, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} must be (N, 4), got {boxes.shape}")
    return boxes


@njit(cache=True, error_model="numpy", forceinline=True)
def iou_at(a: NDArray[np.float64], i: int, b: NDArray[np.float64], j: int) -> float:
    """IoU of box i of a and box j of b. Takes indices, because numba counts references for every view of a row."""
    width = min(a[i, 2], b[j, 2]) - max(a[i, 0], b[j, 0])
    height = min(a[i, 3], b[j, 3]) - max(a[i, 1], b[j, 1])
    if width <= 0.0 or height <= 0.0:
        return 0.0
    shared = width * height
    area_a = (a[i, 2] - a[i, 0]) * (a[i, 3] - a[i, 1])
    area_b = (b[j, 2] - b[j, 0]) * (b[j, 3] - b[j, 1])
    return float(shared / (area_a + area_b - shared))


@njit(cache=True, error_model="numpy")
def _box_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    out = np.empty((len(a), len(b)), np.float64)
    for i in range(len(a)):
        for j in range(len(b)):
            out[i, j] = iou_at(a, i, b, j)
    return out


class Strips(NamedTuple):
    """Spatial index: N boxes sorted by their left edges x1, with N equally wide vertical strips as buckets.

    order      (N,) int64 indices of the boxes, by ascending x1
    edges      (5, N + 8) float64: the boxes in that order, in the layout of `ops.lanes`, and eight boxes without area
    begins     (N + 1,) int64: position in `order` where each strip begins, and N
    low        the smallest x1, where the first strip begins
    per_pixel  number of strips per pixel
    widest     the largest width of a box
    """

    order: NDArray[np.int64]
    edges: NDArray[np.float64]
    begins: NDArray[np.int64]
    low: float
    per_pixel: float
    widest: float


@njit(cache=True, error_model="numpy")
def into_strips(boxes_xyxy: NDArray[np.float64]) -> Strips:
    """Index boxes (N, 4), which must be finite. The order is stable.

    A counting sort by strip, then an insertion sort: O(N) unless many boxes share a strip.
    """
    num = len(boxes_xyxy)
    low, high, widest = np.inf, -np.inf, 0.0
    for k in range(num):
        low = min(low, boxes_xyxy[k, 0])
        high = max(high, boxes_xyxy[k, 0])
        widest = max(widest, boxes_xyxy[k, 2] - boxes_xyxy[k, 0])
    per_pixel = num / max(high - low, 1e-9)
    strip_of = np.empty(num, np.int64)
    # Counting sort. The offsets are shifted by one: placing the boxes advances each offset to the end of its strip.
    begins = np.zeros(num + 2, np.int64)
    for k in range(num):
        strip_of[k] = _strip(boxes_xyxy[k, 0], low, per_pixel, num)
        begins[strip_of[k] + 2] += 1
    for strip in range(2, num + 2):
        begins[strip] += begins[strip - 1]
    order = np.empty(num, np.int64)
    for k in range(num):
        order[begins[strip_of[k] + 1]] = k
        begins[strip_of[k] + 1] += 1
    for end in range(1, num):
        box, k = order[end], end
        while k > 0 and boxes_xyxy[order[k - 1], 0] > boxes_xyxy[box, 0]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = box
    edges = np.zeros((NUM_EDGES, num + LANES))
    strips = Strips(order, edges, begins[: num + 1], low, per_pixel, widest)
    for k in range(num):
        fill_edges(strips, k, boxes_xyxy)
    return strips


@njit(cache=True, error_model="numpy", forceinline=True)
def fill_edges(strips: Strips, k: int, boxes_xyxy: NDArray[np.float64]) -> None:
    """Write the edges and the area of the k-th box in the order."""
    box, edges = strips.order[k], strips.edges
    for edge in range(4):
        edges[edge, k] = boxes_xyxy[box, edge]
    width, height = boxes_xyxy[box, 2] - boxes_xyxy[box, 0], boxes_xyxy[box, 3] - boxes_xyxy[box, 1]
    edges[4, k] = width * height


@njit(cache=True, error_model="numpy", forceinline=True)
def _strip(x: float, low: float, per_pixel: float, num: int) -> int:
    """Index of the strip that contains x, clamped to the existing strips. NaN maps to strip 0."""
    strip = (x - low) * per_pixel
    return int(min(strip, num - 1.0)) if strip > 0.0 else 0


@njit(cache=True, error_model="numpy", forceinline=True)
def in_reach(strips: Strips, left: float, right: float) -> tuple[int, int]:
    """Half-open range of positions in `order` that contains every box that overlaps left <= x <= right."""
    num = len(strips.order)
    if num == 0:
        return 0, 0
    begin = strips.begins[_strip(left - strips.widest, strips.low, strips.per_pixel, num)]
    end = strips.begins[_strip(right, strips.low, strips.per_pixel, num) + 1]
    return begin, end


@njit(cache=True, error_model="numpy")
def pairs_in_strips(
    a: NDArray[np.float64], b: NDArray[np.float64], strips: Strips, min_iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """`overlapping_pairs` without validation; strips index b. Pairs are sorted by a_idx, then as in strips."""
    capacity = 4 * (len(a) + len(b)) + LANES
    while True:
        a_idx, b_idx = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
        iou = np.empty(capacity, np.float64)
        num_pairs = _write_pairs(a, b, strips, min_iou, a_idx, b_idx, iou)
        if num_pairs >= 0:
            return a_idx[:num_pairs], b_idx[:num_pairs], iou[:num_pairs]
        capacity *= 4


@njit(cache=True, error_model="numpy")
def _write_pairs(
    a: NDArray[np.float64], b: NDArray[np.float64], strips: Strips, min_iou: float,
    a_idx: NDArray[np.int64], b_idx: NDArray[np.int64], iou: NDArray[np.float64],
) -> int:  # fmt: skip
    """Write the pairs and return their number, or -1 if the output arrays may be too small."""
    # Conservative test without a division for shared / (area_a + area_b - shared) >= min_iou; iou_at decides.
    factor = (1.0 + min_iou) / min_iou * (1.0 + 1e-9) if min_iou > 0.0 else np.inf
    order, edges = strips.order, strips.edges
    num_pairs = 0
    for i in range(len(a)):
        left, top, right, bottom = a[i, 0], a[i, 1], a[i, 2], a[i, 3]
        area = (right - left) * (bottom - top)
        begin, end = in_reach(strips, left, right)
        if num_pairs + end - begin + LANES > len(iou):
            return -1
        for first in range(begin, end, LANES):
            lanes = meeting_lanes(edges, first, left, top, right, bottom, area, factor)
            while lanes:
                j = order[first + lowest_bit(lanes)]
                lanes &= lanes - 1
                a_idx[num_pairs] = i
                b_idx[num_pairs] = j
                iou[num_pairs] = iou_at(a, i, b, j)
                num_pairs += iou[num_pairs] >= min_iou
    return num_pairs
