"""The slow, plainly correct form of every kernel, for tests and benchmarks to compare with; nothing else imports it.

Letters in shapes, here and in every docstring:

B   images in a batch                 N, M   boxes, detections; rows and columns of a matrix
C   channels, or capacity of a table  K      instances that are kept
H   height in pixels                  P      pairs
W   width in pixels                   T      tracks
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ops import kalman


def box_iou(boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) float64: intersection over union of each pair; 0 where the union has no area."""
    out = np.zeros((len(boxes_a_xyxy), len(boxes_b_xyxy)))
    for i, (ax1, ay1, ax2, ay2) in enumerate(boxes_a_xyxy):
        for j, (bx1, by1, bx2, by2) in enumerate(boxes_b_xyxy):
            shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
            if union > 0.0:
                out[i, j] = shared / union
    return out


def solve_assignment(cost: NDArray[np.float64]) -> float:
    """The least total of min(N, M) entries of (N, M) cost, no two in a row or a column: every choice is tried."""
    matrix = cost if cost.shape[0] <= cost.shape[1] else cost.T
    num_rows, num_cols = matrix.shape
    return min(
        float(sum(matrix[row, col] for row, col in enumerate(cols))) for cols in permutations(range(num_cols), num_rows)
    )


class KalmanBox:
    """A box filter with its 8x8 matrices: centre x, centre y, width, height, then their velocities per second."""

    def __init__(self, box_xyxy: NDArray[np.float64]) -> None:
        observed = self._observed(box_xyxy)
        scale = self._scale(observed[2], observed[3])
        self.mean = np.concatenate((observed, np.zeros(4)))
        self.covariance = np.diag(
            [(kalman.POSITION_NOISE * scale) ** 2] * 4 + [(kalman.START_VELOCITY * scale) ** 2] * 4
        )

    def predict(self, dt_s: float) -> None:
        """x <- F x, P <- F P F' + Q."""
        density = (kalman.ACCELERATION * self._scale(self.mean[2], self.mean[3])) ** 2
        identity = np.eye(4)
        transition = np.block([[identity, dt_s * identity], [np.zeros((4, 4)), identity]])
        noise = density * np.block(
            [[dt_s**3 / 3 * identity, dt_s**2 / 2 * identity], [dt_s**2 / 2 * identity, dt_s * identity]]
        )
        self.mean = transition @ self.mean
        self.covariance = transition @ self.covariance @ transition.T + noise

    def correct(self, box_xyxy: NDArray[np.float64]) -> None:
        """K = P H' (H P H' + R)^-1, x <- x + K (z - H x), P <- (I - K H) P."""
        observed = self._observed(box_xyxy)
        observation = np.hstack([np.eye(4), np.zeros((4, 4))])
        noise = np.eye(4) * (kalman.POSITION_NOISE * self._scale(observed[2], observed[3])) ** 2
        innovation = observation @ self.covariance @ observation.T + noise
        gain = self.covariance @ observation.T @ np.linalg.inv(innovation)
        self.mean = self.mean + gain @ (observed - observation @ self.mean)
        self.covariance = (np.eye(8) - gain @ observation) @ self.covariance

    @staticmethod
    def _observed(box_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        x1, y1, x2, y2 = box_xyxy
        return np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])

    @staticmethod
    def _scale(width: float, height: float) -> float:
        return max(1.0, (abs(width) + abs(height)) / 2)
