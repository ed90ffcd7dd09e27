"""Kalman filter over boxes: centre and size, each moving with constant velocity, with the real time step.

A filter is (4, 5) float64. Its rows are centre x, centre y, width, height in pixels of the source frame; its columns
are the value, its velocity per second, the variance of the value, their covariance, the variance of the velocity. The
four coordinates never mix (noise and observation are diagonal), so four 2x2 filters are the 8x8 one exactly:
`ops.reference.KalmanBox` is that one, with matrices; tests/unit/ops/test_kalman.py holds them equal.

Process noise is white acceleration of spectral density q = (ACCELERATION * scale)^2:
    Q(dt) = q [[dt^3 / 3, dt^2 / 2], [dt^2 / 2, dt]]        (Bar-Shalom, Li, Kirubarajan 2001, section 6.2.2)
so one step of dt equals any number of steps that add up to dt, at the same scale. `scale` is the mean of width and
height, at least one pixel. Sizes accelerate by SIZE_ACCELERATION.

The box of a filter is that of the whole object, the observed ones are of what is in sight. What passes behind
something loses one side after the other: a filter that takes every box at its word learns a motion that nobody makes,
and looks for the object in the wrong place when it comes out again. So a length (of width and height) that is
observed to be less than 1 - CUT_TOLERANCE of the filter's is taken for cut:
- what lacks is given back before the centre is observed, to the sides that moved inwards, in proportion;
- the length is observed with a variance that is greater by (CUT_NOISE * scale)^2 / dt. Hiding lasts: a second of
  frames says as little of the length at 30 a second as at 5.
A length that is observed to be more than the filter's was cut before: its variance first grows by the square of the
difference, so that it is believed at once.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

POSITION_NOISE = 0.05
"""standard deviation of an observed coordinate, in units of scale"""
START_VELOCITY = 1.0
"""standard deviation of the velocity of a new filter's centre, in units of scale per second"""
START_SIZE_VELOCITY = 0.1
"""the same of its size"""
ACCELERATION = 0.5
"""square root of the spectral density of the acceleration of the centre, in units of scale per second^1.5"""
SIZE_ACCELERATION = 0.1
"""the same of the size"""
CUT_TOLERANCE = 0.1
"""share of the filter's length that a box may lack before it counts as cut"""
CUT_NOISE = 0.18
"""noise of a cut length, in units of scale times second^0.5"""


Floats = NDArray[np.float64]


@njit(cache=True, error_model="numpy", forceinline=True)
def box_scale(width: float, height: float) -> float:
    """The length in pixels that noise is measured in."""
    return max(1.0, 0.5 * (abs(width) + abs(height)))


@njit(cache=True, error_model="numpy")
def start_filter(filter_: Floats, boxes_xyxy: Floats, j: int) -> None:
    """Begin a filter (4, 5) at rest on box j of (N, 4)."""
    scale = box_scale(boxes_xyxy[j, 2] - boxes_xyxy[j, 0], boxes_xyxy[j, 3] - boxes_xyxy[j, 1])
    for axis in range(4):
        filter_[axis, 0] = _observed(boxes_xyxy, j, axis)
        filter_[axis, 1] = 0.0
        filter_[axis, 2] = (POSITION_NOISE * scale) ** 2
        filter_[axis, 3] = 0.0
        filter_[axis, 4] = ((START_VELOCITY if axis < 2 else START_SIZE_VELOCITY) * scale) ** 2


@njit(cache=True, error_model="numpy", forceinline=True)
def predict_filter(filter_: Floats, dt_s: float) -> None:
    """Move a filter (4, 5) on by dt_s > 0 seconds."""
    scale = box_scale(filter_[2, 0], filter_[3, 0])
    of_value, of_both = dt_s**3 / 3.0, dt_s**2 / 2.0
    for axis in range(4):
        density = ((ACCELERATION if axis < 2 else SIZE_ACCELERATION) * scale) ** 2
        value, velocity, var_value, covariance, var_velocity = _row(filter_, axis)
        filter_[axis, 0] = value + dt_s * velocity
        filter_[axis, 2] = var_value + dt_s * (2.0 * covariance + dt_s * var_velocity) + density * of_value
        filter_[axis, 3] = covariance + dt_s * var_velocity + density * of_both
        filter_[axis, 4] = var_velocity + density * dt_s


@njit(cache=True, error_model="numpy", forceinline=True)
def correct_filter(filter_: Floats, boxes_xyxy: Floats, j: int, step_s: float) -> None:
    """Let a filter (4, 5) take in the observed box j of (N, 4); step_s > 0 is the interval between frames."""
    scale = box_scale(filter_[2, 0], filter_[3, 0])
    noise = (POSITION_NOISE * scale) ** 2
    for axis in range(2):
        low, high = boxes_xyxy[j, axis], boxes_xyxy[j, axis + 2]
        observed = high - low
        length = max(0.0, filter_[axis + 2, 0])
        lost_low = max(0.0, low - (filter_[axis, 0] - 0.5 * length))
        lost_high = max(0.0, filter_[axis, 0] + 0.5 * length - high)
        lack = length * (1.0 - CUT_TOLERANCE) - observed
        length_noise = noise
        if lack > 0.0 and lost_low + lost_high > 0.0:
            low -= lack * lost_low / (lost_low + lost_high)
            high += lack * lost_high / (lost_low + lost_high)
            length_noise += (CUT_NOISE * scale) ** 2 / step_s
        grown = max(0.0, observed - length)
        filter_[axis + 2, 2] += grown * grown
        _observe(filter_, axis, 0.5 * (low + high), noise)
        _observe(filter_, axis + 2, observed, length_noise)


@njit(cache=True, error_model="numpy", forceinline=True)
def _observe(filter_: Floats, axis: int, observed: float, noise: float) -> None:
    """The correction of one coordinate by an observation with this variance."""
    value, velocity, var_value, covariance, var_velocity = _row(filter_, axis)
    surprise = observed - value
    weight = 1.0 / (var_value + noise)
    gain_value = var_value * weight
    gain_velocity = covariance * weight
    filter_[axis, 0] = value + gain_value * surprise
    filter_[axis, 1] = velocity + gain_velocity * surprise
    filter_[axis, 2] = (1.0 - gain_value) * var_value
    filter_[axis, 3] = (1.0 - gain_value) * covariance
    filter_[axis, 4] = var_velocity - gain_velocity * covariance


@njit(cache=True, error_model="numpy", forceinline=True)
def _row(filter_: Floats, axis: int) -> tuple[float, float, float, float, float]:
    return filter_[axis, 0], filter_[axis, 1], filter_[axis, 2], filter_[axis, 3], filter_[axis, 4]


@njit(cache=True, error_model="numpy", forceinline=True)
def filter_box(filter_: Floats) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a filter (4, 5); a size that fell below 0 counts as 0."""
    half_width = 0.5 * max(0.0, filter_[2, 0])
    half_height = 0.5 * max(0.0, filter_[3, 0])
    x, y = filter_[0, 0], filter_[1, 0]
    return x - half_width, y - half_height, x + half_width, y + half_height


@njit(cache=True, error_model="numpy", forceinline=True)
def _observed(boxes_xyxy: Floats, j: int, axis: int) -> float:
    """Centre x, centre y, width or height of box j, by axis."""
    low = boxes_xyxy[j, axis % 2]
    high = boxes_xyxy[j, axis % 2 + 2]
    return float(0.5 * (low + high) if axis < 2 else high - low)
