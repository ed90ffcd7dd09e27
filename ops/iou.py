"""Intersection over union of axis-aligned boxes: every pair, or only the pairs whose boxes meet.

Boxes are x1, y1, x2, y2 with continuous edges: the area is (x2 - x1) * (y2 - y1). A box without area has IoU 0 with
everything, itself included. `ops.reference.box_iou` is the slow form; tests/unit/ops/test_iou.py holds them equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ops.lanes import LANES, NUM_EDGES, lowest_bit, meeting_lanes


def box_iou(boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) float64 IoU of each of (N, 4) boxes with each of (M, 4). Raises ValueError for wrong shapes."""
    return _box_iou(_checked(boxes_a_xyxy, "boxes_a_xyxy"), _checked(boxes_b_xyxy, "boxes_b_xyxy"))


def overlapping_pairs(
    boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64], min_iou: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The pairs of (N, 4) and (M, 4) boxes that overlap with an IoU of at least min_iou.

    Returns a_idx (P,), b_idx (P,) int64 and iou (P,) float64, all above 0. Raises ValueError for wrong shapes and for
    boxes that are not finite.
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
    """IoU of box i of a with box j of b. Indices instead of rows, because numba counts references on every view."""
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
    """N boxes by their left edges, which equally wide strips of the picture tell apart, on average one box to a strip.

    order      (N,) int64 places of the boxes, by rising left edge
    edges      (5, N + 8) float64, the boxes in that order as `ops.lanes` reads them, and eight without area
    begins     (N + 1,) int64, where each strip begins in `order`, and the end
    low        the least left edge, which begins the first strip
    per_pixel  strips to a pixel; the last one has everything to its right
    widest     the greatest width
    """

    order: NDArray[np.int64]
    edges: NDArray[np.float64]
    begins: NDArray[np.int64]
    low: float
    per_pixel: float
    widest: float


@njit(cache=True, error_model="numpy")
def into_strips(boxes_xyxy: NDArray[np.float64]) -> Strips:
    """Of boxes (N, 4) that are finite; equal left edges keep their order. A counting sort over the strips and a sort by
    insertion over what is left: O(N) unless many boxes share a strip.
    """
    num = len(boxes_xyxy)
    low, high, widest = np.inf, -np.inf, 0.0
    for k in range(num):
        low = min(low, boxes_xyxy[k, 0])
        high = max(high, boxes_xyxy[k, 0])
        widest = max(widest, boxes_xyxy[k, 2] - boxes_xyxy[k, 0])
    per_pixel = num / max(high - low, 1e-9)
    strip_of = np.empty(num, np.int64)
    # a place further on until the boxes have been put in order, when each has moved to its own end
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
        place, k = order[end], end
        while k > 0 and boxes_xyxy[order[k - 1], 0] > boxes_xyxy[place, 0]:
            order[k] = order[k - 1]
            k -= 1
        order[k] = place
    edges = np.zeros((NUM_EDGES, num + LANES))
    strips = Strips(order, edges, begins[: num + 1], low, per_pixel, widest)
    for k in range(num):
        fill_edges(strips, k, boxes_xyxy)
    return strips


@njit(cache=True, error_model="numpy", forceinline=True)
def fill_edges(strips: Strips, k: int, boxes_xyxy: NDArray[np.float64]) -> None:
    """Bring the edges of the box that is k-th in the order up to date."""
    box, edges = strips.order[k], strips.edges
    for edge in range(4):
        edges[edge, k] = boxes_xyxy[box, edge]
    width, height = boxes_xyxy[box, 2] - boxes_xyxy[box, 0], boxes_xyxy[box, 3] - boxes_xyxy[box, 1]
    edges[4, k] = width * height


@njit(cache=True, error_model="numpy", forceinline=True)
def _strip(x: float, low: float, per_pixel: float, num: int) -> int:
    place = (x - low) * per_pixel
    # what is no number lies in the first
    return int(min(place, num - 1.0)) if place > 0.0 else 0


@njit(cache=True, error_model="numpy", forceinline=True)
def in_reach(strips: Strips, left: float, right: float) -> tuple[int, int]:
    """Places in the order, from the first to before the last, of all boxes that meet what lies between two x."""
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
    """`overlapping_pairs` of finite boxes, b being those in the strips; by rising a_idx, then as the strips have b."""
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
    """The number of pairs, or -1 where there may be too many for the arrays."""
    # shared / (area_a + area_b - shared) >= min_iou, without the division; a little less strict, for its rounding
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
