"""Linear assignment: of a dense cost matrix, and maximum-weight matching of sparse weighted pairs.

The solver is the shortest augmenting path method with potentials (Jonker and Volgenant 1987, without its initialisation
phases; Crouse 2016 for rectangular matrices): O(n^2 m) for n <= m. tests/unit/ops/test_assignment.py compares it with
`ops.reference.solve_assignment`, which tries every permutation, and with SciPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit


def solve_assignment(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Minimum-cost assignment of the rows of an (N, M) cost matrix to its columns.

    Returns the column of each row, (N,) int64; -1 for the rows without a column if N > M. Raises ValueError unless cost
    is a matrix of finite numbers.
    """
    matrix = np.ascontiguousarray(cost, np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"cost must be (N, M), got {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("cost must be finite, got NaN or infinity")
    return _assign(matrix)


@njit(cache=True)
def _assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """`solve_assignment` without validation."""
    num_rows, num_cols = cost.shape
    if num_rows <= num_cols:
        return _shortest_paths(cost)
    col_of_row = np.full(num_rows, -1, np.int64)
    for col, row in enumerate(_shortest_paths(np.ascontiguousarray(cost.T))):
        col_of_row[row] = col
    return col_of_row


@njit(cache=True)
def _shortest_paths(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """The column of each row of a finite (N, M) cost matrix with N <= M.

    Rows are added one at a time. Dijkstra's algorithm on the reduced costs finds the shortest augmenting path to a free
    column. The potentials keep every reduced cost non-negative and that of every assigned pair 0.
    """
    num_rows, num_cols = cost.shape
    row_potential = np.zeros(num_rows)
    col_potential = np.zeros(num_cols)
    row_of_col = np.full(num_cols, -1, np.int64)
    col_of_row = np.full(num_rows, -1, np.int64)
    distance = np.empty(num_cols)
    reached_from = np.empty(num_cols, np.int64)
    done = np.empty(num_cols, np.bool_)
    for start in range(num_rows):
        distance[:] = np.inf
        done[:] = False
        row = start
        path_length = 0.0
        while True:
            nearest = -1
            nearest_distance = np.inf
            for col in range(num_cols):
                if done[col]:
                    continue
                length = path_length + cost[row, col] - row_potential[row] - col_potential[col]
                if length < distance[col]:
                    distance[col] = length
                    reached_from[col] = row
                # A free column ends the search, so it is preferred among columns at equal distance.
                if distance[col] < nearest_distance or (distance[col] == nearest_distance and row_of_col[col] < 0):
                    nearest_distance = distance[col]
                    nearest = col
            done[nearest] = True
            path_length = nearest_distance
            if row_of_col[nearest] < 0:
                break
            row = row_of_col[nearest]
        row_potential[start] += path_length
        for col in range(num_cols):
            if done[col] and col != nearest:
                row_potential[row_of_col[col]] += path_length - distance[col]
                col_potential[col] -= path_length - distance[col]
        col = nearest
        while True:
            row = reached_from[col]
            row_of_col[col] = row
            col, col_of_row[row] = col_of_row[row], col
            if row == start:
                break
    return col_of_row


@njit(cache=True)
def match_pairs(
    rows: NDArray[np.int64], cols: NDArray[np.int64], weights: NDArray[np.float64], num_rows: int, num_cols: int
) -> NDArray[np.int64]:
    """Maximum-weight matching of rows and columns among the given pairs.

    rows (P,), cols (P,) and weights (P,) > 0 list each allowed pair once. Returns the column of each row,
    (num_rows,) int64, -1 for an unmatched row. Arguments are not validated: call it from compiled code. Among matchings
    of equal weight, the choice depends only on the order of the pairs.

    Pairs that belong to every optimum are taken first, which leaves few. Each connected component of the rest is solved
    as a dense assignment of its own.
    """
    col_of_row = np.full(num_rows, -1, np.int64)
    remaining = _take_dominant(rows, cols, weights, num_cols, col_of_row)
    if len(remaining) == 0:
        return col_of_row
    rows, cols, weights = rows[remaining], cols[remaining], weights[remaining]
    component = _components(rows, cols, num_rows, num_cols)
    order = np.argsort(component, kind="mergesort")
    local_of_row = np.full(num_rows, -1, np.int64)
    local_of_col = np.full(num_cols, -1, np.int64)
    begin = 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and component[order[end]] == component[order[begin]]:
            end += 1
        members = order[begin:end]
        member_rows = _local_indices(rows[members], local_of_row)
        member_cols = _local_indices(cols[members], local_of_col)
        # A pair that is not allowed costs 0, like leaving both unmatched; an allowed pair costs less.
        cost = np.zeros((len(member_rows), len(member_cols)))
        for k in members:
            cost[local_of_row[rows[k]], local_of_col[cols[k]]] = -weights[k]
        for row, col in enumerate(_assign(cost)):
            if col >= 0 and cost[row, col] < 0.0:
                col_of_row[member_rows[row]] = member_cols[col]
        begin = end
    return col_of_row


@njit(cache=True)
def _take_dominant(
    rows: NDArray[np.int64], cols: NDArray[np.int64], weights: NDArray[np.float64], num_cols: int,
    col_of_row: NDArray[np.int64],
) -> NDArray[np.int64]:  # fmt: skip
    """Match the dominant pairs, which belong to every optimum, and return the indices of the remaining pairs.

    A pair is dominant if it weighs more than the best other pair of its row and the best other pair of its column
    together: in a matching without it, it could replace at most these two and increase the weight. Taking a pair
    removes the other pairs of its row and column, which can make more pairs dominant; this repeats until none is.
    """
    # Nodes of the bipartite graph: the rows, then the columns.
    num_rows = len(col_of_row)
    weights_of = np.zeros((2, num_rows + num_cols))
    best, second = weights_of[0], weights_of[1]
    is_taken = np.zeros(num_rows + num_cols, np.bool_)
    left = np.arange(len(rows))
    while True:
        for k in left:
            row, col, weight = rows[k], num_rows + cols[k], weights[k]
            second[row], best[row] = max(second[row], min(best[row], weight)), max(best[row], weight)
            second[col], best[col] = max(second[col], min(best[col], weight)), max(best[col], weight)
        any_taken = False
        for k in left:
            row, col, weight = rows[k], num_rows + cols[k], weights[k]
            if weight == best[row] and weight == best[col] and weight > second[row] + second[col]:
                col_of_row[row] = cols[k]
                is_taken[row] = is_taken[col] = any_taken = True
        num_left = 0
        for k in left:
            row, col = rows[k], num_rows + cols[k]
            if not is_taken[row] and not is_taken[col]:
                left[num_left] = k
                num_left += 1
                best[row] = second[row] = best[col] = second[col] = 0.0
        left = left[:num_left]
        if num_left == 0 or not any_taken:
            return left


@njit(cache=True)
def _local_indices(nodes: NDArray[np.int64], local_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct nodes in order of first occurrence. Writes the index of each to local_of, which is -1 for others."""
    members = np.empty(len(nodes), np.int64)
    num_members = 0
    for node in nodes:
        if local_of[node] < 0:
            local_of[node] = num_members
            members[num_members] = node
            num_members += 1
    return members[:num_members]


@njit(cache=True)
def _components(rows: NDArray[np.int64], cols: NDArray[np.int64], num_rows: int, num_cols: int) -> NDArray[np.int64]:
    """Connected component of each pair, (P,) int64, given by its smallest node. Nodes are rows, then columns."""
    parent = np.arange(num_rows + num_cols)
    for k in range(len(rows)):
        first = _root(parent, rows[k])
        second = _root(parent, num_rows + cols[k])
        parent[max(first, second)] = min(first, second)
    component = np.empty(len(rows), np.int64)
    for k in range(len(rows)):
        component[k] = _root(parent, rows[k])
    return component


@njit(cache=True)
def _root(parent: NDArray[np.int64], node: int) -> int:
    """Representative of a node's set, with path halving (Tarjan and van Leeuwen 1984)."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node
