"""Area, centroid and intersection of box-local masks: by hand, and compared with finely rasterised masks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from ops.mask_format import MASK_SIDE
from ops.mask_overlap import mask_area, mask_centroid, shared_area


def packed(cells: ArrayLike) -> NDArray[np.uint8]:
    """Pack (N, 28, 28) or (28, 28) into (N, 98)."""
    return np.packbits(np.asarray(cells, np.uint8).reshape(-1, MASK_SIDE * MASK_SIDE), axis=1)


def overlap(cells_a: ArrayLike, box_a: ArrayLike, cells_b: ArrayLike, box_b: ArrayLike) -> float:
    masks = [packed(cells) for cells in (cells_a, cells_b)]
    boxes = [np.asarray(box, np.float64).reshape(1, 4) for box in (box_a, box_b)]
    found = shared_area(masks[0], boxes[0], 0, masks[1], boxes[1], 0)
    assert shared_area(masks[1], boxes[1], 0, masks[0], boxes[0], 0) == pytest.approx(found, abs=1e-9)
    return float(found)


FULL = np.ones((MASK_SIDE, MASK_SIDE), np.uint8)
LEFT = np.zeros((MASK_SIDE, MASK_SIDE), np.uint8)
LEFT[:, : MASK_SIDE // 2] = 1
TOP = LEFT.T.copy()


def test_known_values() -> None:
    box = (10, 20, 66, 48)
    assert overlap(FULL, box, FULL, box) == pytest.approx(56 * 28)
    assert overlap(LEFT, box, FULL, box) == pytest.approx(28 * 28)
    assert overlap(LEFT, box, 1 - LEFT, box) == 0
    assert overlap(LEFT, box, TOP, box) == pytest.approx(28 * 14)
    # a box of 10 x 4 in the upper left quarter, and one of which half lies in the left half
    assert overlap(LEFT, box, FULL, (12, 22, 22, 26)) == pytest.approx(40)
    assert overlap(LEFT, box, FULL, (33, 22, 43, 26)) == pytest.approx(20)
    assert overlap(FULL, box, FULL, (60, 40, 70, 60)) == pytest.approx(6 * 8)


@pytest.mark.parametrize("other", [(66, 20, 80, 48), (100, 100, 120, 120), (30, 30, 30, 40), (30, 30, 40, 30)])
def test_disjoint_or_without_area(other: tuple[int, ...]) -> None:
    assert overlap(FULL, (10, 20, 66, 48), FULL, other) == 0


@pytest.mark.parametrize("seed", range(40))
def test_equals_rasterised_masks(seed: int) -> None:
    """Every edge of a cell lies on the raster, so rasterisation is exact."""
    rng = np.random.default_rng(seed)
    boxes, drawn, masks = [], [], []
    for _ in range(2):
        corner, cell = rng.integers(0, 60, 2), rng.integers(1, 5, 2)
        mask = (rng.random((MASK_SIDE, MASK_SIDE)) < rng.uniform(0.2, 0.9)).astype(np.uint8)
        canvas = np.zeros((60 + MASK_SIDE * 4, 60 + MASK_SIDE * 4), np.uint8)
        size = MASK_SIDE * cell
        canvas[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]] = mask.repeat(cell[1], 0).repeat(
            cell[0], 1
        )
        boxes.append(np.concatenate([corner, corner + size]) / 16)
        drawn.append(canvas)
        masks.append(mask)
    expected = (drawn[0] & drawn[1]).sum() / 256
    assert overlap(masks[0], boxes[0], masks[1], boxes[1]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_full_masks_have_the_intersection_of_their_boxes(seed: int) -> None:
    """Boxes at any position and of any size."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-50, 2000, (2, 2))
    sizes = np.exp(rng.uniform(-6, 8, (2, 2)))
    corners[1] = corners[0] + rng.uniform(-0.5, 0.8, 2) * sizes[0]
    low, high = corners.max(0), (corners + sizes).min(0)
    boxes = np.hstack([corners, corners + sizes])
    assert overlap(FULL, boxes[0], FULL, boxes[1]) == pytest.approx(np.prod((high - low).clip(0)), rel=1e-9, abs=1e-9)


def test_area_and_centroid() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 2, (4, MASK_SIDE, MASK_SIDE), np.uint8)
    cells[3] = 0
    bits = packed(cells)
    boxes: NDArray[np.float64] = np.array([[0, 0, 28, 28], [5, 5, 61, 33], [1, 1, 1, 9], [2, 2, 4, 4]], np.float64)
    areas = [mask_area(bits, boxes, i) for i in range(4)]
    assert areas == pytest.approx([cells[0].sum(), 2 * cells[1].sum(), 0, 0])
    rows, cols = np.nonzero(cells[0])
    assert mask_centroid(bits, boxes, 0) == pytest.approx((cols.mean() + 0.5, rows.mean() + 0.5))
    rows, cols = np.nonzero(cells[1])
    assert mask_centroid(bits, boxes, 1) == pytest.approx((5 + 2 * cols.mean() + 1, 5 + rows.mean() + 0.5))
    assert mask_centroid(bits, boxes, 3) == (3, 3), "the centroid of an empty mask is the centre of its box"
    assert mask_centroid(bits[:0], boxes, 1) == (33, 19)
