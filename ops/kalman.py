"""Kalman filter over boxes: centre and size, each moving with constant velocity, with the real time step.

A filter is (4, 5) float64. Its rows are centre x, centre y, width, height in pixels of the source frame; its columns
are the value, its velocity per second, the variance of the value, their covariance, the variance of the velocity. The
four coordinates never mix (noise and observation are diagonal), so four 2x2 filters are the 8x8 one exactly:
`ops.reference.KalmanBox` is that one, with matrices; tests/unit/test_kalman.py holds them equal.

Process noise is white acceleration of spectral density q = (ACCELERATION * scale)^2:
    Q(dt) = q [[dt^3 / 3, dt^2 / 2], [dt^2 / 2, dt]]        (Bar-Shalom, Li, Kirubarajan 2001, section 6.2.2)
so one step of dt equals any number of steps that add up to dt, at the same scale. `scale` is the mean of width and
height, at least one pixel.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

POSITION_NOISE = 0.05
"""standard deviation of an observed coordinate, in units of scale"""
START_VELOCITY = 0.5
"""standard deviation of the velocity of a new filter, in units of scale per second"""
ACCELERATION = 1.0
"""square root of the spectral density of the acceleration, in units of scale per second^1.5"""


@njit(cache=True)
def box_scale(width: float, height: float) -> float:
    """The length in pixels that noise is measured in."""
    return max(1.0, 0.5 * (abs(width) + abs(height)))


@njit(cache=True)
def start_filter(filters: NDArray[np.float64], i: int, boxes_xyxy: NDArray[np.float64], j: int) -> None:
    """Begin filter i of (M, 4, 5) at rest on box j of (N, 4)."""
    scale = box_scale(boxes_xyxy[j, 2] - boxes_xyxy[j, 0], boxes_xyxy[j, 3] - boxes_xyxy[j, 1])
    for axis in range(4):
        filters[i, axis, 0] = _observed(boxes_xyxy, j, axis)
        filters[i, axis, 1] = 0.0
        filters[i, axis, 2] = (POSITION_NOISE * scale) ** 2
        filters[i, axis, 3] = 0.0
        filters[i, axis, 4] = (START_VELOCITY * scale) ** 2


@njit(cache=True)
def predict_filters(filters: NDArray[np.float64], num: int, dt_s: float) -> None:
    """Move the first num filters of (M, 4, 5) on by dt_s > 0 seconds."""
    for i in range(num):
        density = (ACCELERATION * box_scale(filters[i, 2, 0], filters[i, 3, 0])) ** 2
        for axis in range(4):
            value, velocity, var_value, covariance, var_velocity = filters[i, axis]
            filters[i, axis, 0] = value + dt_s * velocity
            filters[i, axis, 2] = var_value + dt_s * (2.0 * covariance + dt_s * var_velocity) + density * dt_s**3 / 3.0
            filters[i, axis, 3] = covariance + dt_s * var_velocity + density * dt_s**2 / 2.0
            filters[i, axis, 4] = var_velocity + density * dt_s


@njit(cache=True)
def correct_filter(filters: NDArray[np.float64], i: int, boxes_xyxy: NDArray[np.float64], j: int) -> None:
    """Let filter i of (M, 4, 5) take in the observed box j of (N, 4)."""
    scale = box_scale(boxes_xyxy[j, 2] - boxes_xyxy[j, 0], boxes_xyxy[j, 3] - boxes_xyxy[j, 1])
    noise = (POSITION_NOISE * scale) ** 2
    for axis in range(4):
        value, velocity, var_value, covariance, var_velocity = filters[i, axis]
        surprise = _observed(boxes_xyxy, j, axis) - value
        gain_value = var_value / (var_value + noise)
        gain_velocity = covariance / (var_value + noise)
        filters[i, axis, 0] = value + gain_value * surprise
        filters[i, axis, 1] = velocity + gain_velocity * surprise
        filters[i, axis, 2] = (1.0 - gain_value) * var_value
        filters[i, axis, 3] = (1.0 - gain_value) * covariance
        filters[i, axis, 4] = var_velocity - gain_velocity * covariance


@njit(cache=True)
def filter_boxes(filters: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """The boxes of the first num filters, (num, 4) float64 x1, y1, x2, y2; a size that fell below 0 counts as 0."""
    boxes_xyxy = np.empty((num, 4))
    for i in range(num):
        half_width = 0.5 * max(0.0, filters[i, 2, 0])
        half_height = 0.5 * max(0.0, filters[i, 3, 0])
        boxes_xyxy[i, 0] = filters[i, 0, 0] - half_width
        boxes_xyxy[i, 1] = filters[i, 1, 0] - half_height
        boxes_xyxy[i, 2] = filters[i, 0, 0] + half_width
        boxes_xyxy[i, 3] = filters[i, 1, 0] + half_height
    return boxes_xyxy


@njit(cache=True)
def _observed(boxes_xyxy: NDArray[np.float64], j: int, axis: int) -> float:
    """Centre x, centre y, width or height of box j, by axis."""
    low = boxes_xyxy[j, axis % 2]
    high = boxes_xyxy[j, axis % 2 + 2]
    return float(0.5 * (low + high) if axis < 2 else high - low)
