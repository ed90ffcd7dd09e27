from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ops import reference
from ops.assignment import match_pairs, solve_assignment
from ops.iou import overlapping_pairs

# Sums of a few dozen float64 numbers of order 1 in different orders.
TOLERANCE = 1e-9


def total(cost: NDArray[np.float64], col_of_row: NDArray[np.int64]) -> float:
    """Check that the columns form an assignment and return its cost."""
    rows = np.flatnonzero(col_of_row >= 0)
    assert len(set(col_of_row[rows].tolist())) == len(rows)
    return float(cost[rows, col_of_row[rows]].sum())


def random_cost(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    if kind == "ties":
        return rng.integers(0, 3, shape).astype(np.float64)
    if kind == "wide range":
        return np.exp(rng.normal(0.0, 8.0, shape)) / 1e6
    return rng.normal(0.0, 1.0, shape)


@pytest.mark.parametrize("kind", ["ties", "normal"])
def test_no_permutation_costs_less(kind: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        cost = random_cost(rng, kind, tuple(rng.integers(0, 6, 2)))
        assert total(cost, solve_assignment(cost)) == pytest.approx(reference.solve_assignment(cost), abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["ties", "normal", "wide range"])
def test_cost_equals_scipys(kind: str) -> None:
    rng = np.random.default_rng(4)
    for _ in range(2000):
        cost = random_cost(rng, kind, tuple(rng.integers(0, 16, 2)))
        col_of_row = solve_assignment(cost)
        assert (col_of_row >= 0).sum() == min(cost.shape)
        expected = cost[linear_sum_assignment(cost)].sum()
        assert total(cost, col_of_row) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


@pytest.mark.parametrize("shape", [(120, 120), (60, 150), (150, 60)], ids=str)
def test_large_matrices(shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(5).integers(0, 50, shape).astype(np.float64)
    assert total(cost, solve_assignment(cost)) == cost[linear_sum_assignment(cost)].sum()


@pytest.mark.parametrize("density", [0.05, 0.2, 0.7])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_matching_of_sparse_pairs_reaches_the_dense_optimum(density: float, ties: bool) -> None:
    rng = np.random.default_rng(6)
    for _ in range(1000):
        num_rows, num_cols = rng.integers(0, 20, 2)
        values = rng.integers(1, 4, (num_rows, num_cols)) / 4 if ties else rng.uniform(0.01, 1, (num_rows, num_cols))
        weight = np.where(rng.random((num_rows, num_cols)) < density, values, 0.0)
        rows, cols = rng.permutation(np.argwhere(weight)).T.copy()
        col_of_row = match_pairs(rows, cols, weight[rows, cols], num_rows, num_cols)
        matched = np.flatnonzero(col_of_row >= 0)
        assert (weight[matched, col_of_row[matched]] > 0.0).all(), "a pair outside the gate was matched"
        expected = weight[linear_sum_assignment(weight, maximize=True)].sum()
        assert total(weight, col_of_row) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_each_component_of_a_crowd_is_matched_optimally(ties: bool) -> None:
    """Predicted and detected boxes in crowds of several densities, gated at the tracker's IoU thresholds. In the crowds
    with ties, all boxes are on a coarse grid, and many coincide.
    """
    rng = np.random.default_rng(7)
    num_linked = 0
    for _ in range(3000):
        num_rows, num_cols = rng.integers(0, 40, 2)
        spread_px = np.exp(rng.uniform(4.0, 6.0))
        if ties:
            corners = 20.0 * rng.integers(0, max(1, spread_px // 20), (num_rows + num_cols, 2))
            boxes = np.hstack([corners, corners + 20.0 * rng.integers(1, 4, corners.shape)])
        else:
            corners = rng.uniform(0, spread_px, (num_rows + num_cols, 2))
            boxes = np.hstack([corners, corners + rng.uniform(20, 80, corners.shape)])
        rows, cols, iou = overlapping_pairs(boxes[:num_rows], boxes[num_rows:], rng.choice([0.1, 0.2, 0.4]))
        col_of_row = match_pairs(rows, cols, iou, num_rows, num_cols)

        weight = np.zeros((num_rows, num_cols))
        weight[rows, cols] = iou
        nodes = num_rows + num_cols
        links = coo_array((iou, (rows, num_rows + cols)), shape=(nodes, nodes))
        num_components, component = connected_components(links, directed=False)
        for number in range(num_components):
            own = weight[component[:num_rows] == number]
            if own.any():
                own_cols = own[:, component[num_rows:] == number]
                expected = own_cols[linear_sum_assignment(own_cols, maximize=True)].sum()
                assert total(own, col_of_row[component[:num_rows] == number]) == pytest.approx(expected, abs=TOLERANCE)
                num_linked += min(own_cols.shape) > 1
    assert num_linked > 2000, "too few components with a choice"


def test_two_medium_pairs_beat_one_heavy_pair() -> None:
    rows, cols = np.array([0, 0, 1]), np.array([0, 1, 0])
    np.testing.assert_array_equal(match_pairs(rows, cols, np.array([0.8, 0.5, 0.5]), 2, 2), [1, 0])
    np.testing.assert_array_equal(match_pairs(rows, cols, np.array([0.9, 0.4, 0.4]), 2, 2), [0, -1])


@pytest.mark.parametrize(
    ("cost", "message"),
    [(np.zeros(3), r"must be \(N, M\)"), (np.array([[1.0, np.nan]]), "finite"), (np.array([[np.inf]]), "finite")],
    ids=["vector", "nan", "infinity"],
)
def test_invalid_costs_raise(cost: NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solve_assignment(cost)
