from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ops import reference
from ops.iou import box_iou, overlapping_pairs


def random_boxes(rng: np.random.Generator, num: int, extent: int) -> NDArray[np.float64]:
    """Boxes with whole-numbered edges, so that many touch, coincide or have no area."""
    corners = np.sort(rng.integers(0, extent, (num, 2, 2)), axis=1)
    return corners.reshape(num, 4).astype(np.float64)


def test_known_values() -> None:
    boxes = np.array([[0, 0, 4, 4]])
    others = np.array([[0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [1, 1, 3, 3], [2, 2, 2, 4], [9, 9, 10, 10]])
    np.testing.assert_array_equal(box_iou(boxes, others), [[1.0, 8 / 24, 0.0, 4 / 16, 0.0, 0.0]])


def test_boxes_without_area_overlap_nothing() -> None:
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
def test_the_sweep_finds_every_pair_once(extent: int, min_iou: float) -> None:
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


def test_more_pairs_than_boxes_fit() -> None:
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (60, 1))
    assert len(overlapping_pairs(boxes, boxes, 0.5)[2]) == 60 * 60


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 2, 4)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"boxes_b_xyxy must be \(N, 4\)"):
        box_iou(np.zeros((1, 4)), np.zeros(shape))
