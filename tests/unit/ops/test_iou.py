from __future__ import annotations

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from ops import reference
from ops.iou import box_iou, into_strips, overlapping_pairs, pairs_in_strips
from ops.lanes import meeting_lanes


def random_boxes(rng: np.random.Generator, num: int, extent: int) -> NDArray[np.float64]:
    """Boxes with integer edges, so that many touch, coincide or have no area."""
    corners = np.sort(rng.integers(0, extent, (num, 2, 2)), axis=1)
    return corners.reshape(num, 4).astype(np.float64)


def test_known_values() -> None:
    boxes = np.array([[0, 0, 4, 4]])
    others = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 3, 3], [2, 2, 2, 4], [9, 9, 10, 10]])
    np.testing.assert_array_equal(box_iou(boxes, others), [[1.0, 8 / 24, 0.0, 4 / 16, 0.0, 0.0]])


def test_boxes_without_area_have_iou_0() -> None:
    point = np.array([[3.0, 3.0, 3.0, 3.0]])
    assert box_iou(point, point)[0, 0] == 0.0
    assert len(overlapping_pairs(point, point, 0.0)[2]) == 0


@pytest.mark.parametrize("extent", [6, 40], ids=["crowded", "sparse"])
def test_every_pair_agrees_with_the_reference(extent: int) -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        boxes, others = (
            random_boxes(rng, int(rng.integers(12)), extent),
            random_boxes(rng, int(rng.integers(12)), extent),
        )
        np.testing.assert_array_equal(box_iou(boxes, others), reference.box_iou(boxes, others))


@pytest.mark.parametrize("min_iou", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("extent", [6, 40, 400], ids=["crowded", "mixed", "sparse"])
def test_every_pair_is_found_once(extent: int, min_iou: float) -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        boxes, others = (
            random_boxes(rng, int(rng.integers(40)), extent),
            random_boxes(rng, int(rng.integers(40)), extent),
        )
        a_idx, b_idx, iou = overlapping_pairs(boxes, others, min_iou)
        assert len({*zip(a_idx.tolist(), b_idx.tolist(), strict=True)}) == len(iou)
        found = np.zeros((len(boxes), len(others)))
        found[a_idx, b_idx] = iou
        expected = box_iou(boxes, others)
        np.testing.assert_array_equal(found, np.where(expected >= min_iou, expected, 0.0))


def uneven_boxes(rng: np.random.Generator, kind: str, num: int) -> NDArray[np.float64]:
    """Return boxes that are distributed unevenly over the strips."""
    boxes = random_boxes(rng, num, 200) + rng.choice([0.0, 0.25], (num, 1))
    if kind == "one left edge":
        boxes[:, 2] += 50.0 - boxes[:, 0]
        boxes[:, 0] = 50.0
    elif num and kind == "an outlier":
        boxes[rng.integers(num)] += 1e7
    elif num and kind == "one over the others":
        boxes[rng.integers(num)] = [-1e3, -1e3, 1e3, 1e3]
    return boxes


@pytest.mark.parametrize("kind", ["one left edge", "an outlier", "one over the others"])
def test_boxes_that_share_a_strip(kind: str) -> None:
    rng = np.random.default_rng(8)
    for _ in range(60):
        boxes, others = uneven_boxes(rng, kind, int(rng.integers(40))), uneven_boxes(rng, kind, int(rng.integers(40)))
        a_idx, b_idx, iou = overlapping_pairs(boxes, others, 0.1)
        assert len({*zip(a_idx.tolist(), b_idx.tolist(), strict=True)}) == len(iou)
        found = np.zeros((len(boxes), len(others)))
        found[a_idx, b_idx] = iou
        expected = box_iou(boxes, others)
        np.testing.assert_array_equal(found, np.where(expected >= 0.1, expected, 0.0))


def test_strips_sort_the_boxes_by_their_left_edges() -> None:
    boxes = random_boxes(np.random.default_rng(9), 50, 30)
    strips = into_strips(boxes)
    np.testing.assert_array_equal(strips.order, np.argsort(boxes[:, 0], kind="stable"))
    np.testing.assert_array_equal(strips.edges[:4, :50].T, boxes[strips.order])
    assert not strips.edges[:, 50:].any()


@njit
def compiled_lanes(edges: NDArray[np.float64], first: int, box: NDArray[np.float64], factor: float) -> int:
    area = (box[2] - box[0]) * (box[3] - box[1])
    return meeting_lanes(edges, first, box[0], box[1], box[2], box[3], area, factor)


@pytest.mark.parametrize("factor", [np.inf, 4.0, 12.0])
def test_eight_lanes_equal_eight_comparisons(factor: float) -> None:
    rng = np.random.default_rng(10)
    num_met = 0
    for _ in range(200):
        strips, box = into_strips(random_boxes(rng, 20, 12)), random_boxes(rng, 1, 12)[0]
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        for first in (0, 5, 20):
            expected = meeting_lanes(strips.edges, first, *box.tolist(), area, factor)
            assert compiled_lanes(strips.edges, first, box, factor) == expected
            num_met += expected.bit_count()
    assert num_met > 100, "too few overlapping boxes"


def test_more_pairs_than_the_initial_capacity() -> None:
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (60, 1))
    assert len(overlapping_pairs(boxes, boxes, 0.5)[2]) == 60 * 60


@pytest.mark.parametrize("x2", [np.nan, np.inf])
def test_boxes_that_are_not_finite_raise(x2: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        overlapping_pairs(np.zeros((1, 4)), np.array([[0.0, 0.0, x2, 1.0]]), 0.1)


def test_nan_boxes_overlap_nothing() -> None:
    """A prediction can become NaN, and compiled code must not index outside its arrays."""
    boxes = random_boxes(np.random.default_rng(11), 20, 30)
    for nowhere in (np.nan, np.inf, -np.inf):
        assert len(pairs_in_strips(np.full((3, 4), nowhere), boxes, into_strips(boxes), 0.1)[2]) == 0


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 2, 4)])
def test_wrong_shapes_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"boxes_b_xyxy must be \(N, 4\)"):
        box_iou(np.zeros((1, 4)), np.zeros(shape))
