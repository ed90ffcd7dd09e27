"""Kalman filter of a box: centre and size, with a constant-velocity model and the real time step.

A filter is (4, 5) float64. Its rows are centre x, centre y, width and height in pixels of the source frame; its columns
are the value, the velocity per second, the variance of the value, the covariance of value and velocity, and the
variance of the velocity. Process noise and observation noise are diagonal, so the four coordinates are independent, and
four filters with 2x2 covariances equal one with an 8x8 covariance: tests/unit/ops/test_kalman.py compares with
`ops.reference.KalmanBox`.

Process noise is white acceleration of spectral density q = (ACCELERATION * scale)^2:
    Q(dt) = q [[dt^3 / 3, dt^2 / 2], [dt^2 / 2, dt]]        (Bar-Shalom, Li, Kirubarajan 2001, section 6.2.2)
so one step of dt equals any number of steps that add up to dt, at the same scale. `scale` is the mean of width and
height, at least one pixel. The process noise of width and height uses SIZE_ACCELERATION.

The state describes the whole object, while an observed box contains only its visible part. An object that passes behind
another one loses one side after the other; a filter that took the observed boxes as they are would learn a motion that
the object does not make, and would predict it in the wrong place when it reappears. A width or height that is observed
to be less than 1 - CUT_TOLERANCE of the predicted one is therefore treated as truncated by occlusion:
- before the centre is observed, the missing length is added to the sides that moved inwards, in proportion;
- the length is observed with a variance that is larger by (CUT_NOISE * scale)^2 / dt. An occlusion lasts, so the
  observations of one second carry the same information about the length at 30 frames per second as at 5.
A length that is observed to be larger than the predicted one was truncated before: its variance is increased by the
square of the difference, so that the filter adopts the observation at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit

POSITION_NOISE = 0.05
"""standard deviation of an observed coordinate, in units of scale"""
START_VELOCITY = 1.0
"""standard deviation of the velocity of a new filter's centre, in units of scale per second"""
START_SIZE_VELOCITY = 0.1
"""standard deviation of the velocity of a new filter's width and height, in units of scale per second"""
ACCELERATION = 0.5
"""square root of the spectral density of the acceleration of the centre, in units of scale per second^1.5"""
SIZE_ACCELERATION = 0.1
"""square root of the spectral density of the acceleration of width and height, in units of scale per second^1.5"""
CUT_TOLERANCE = 0.1
"""share of the predicted length that an observation may lack before it is treated as truncated"""
CUT_NOISE = 0.18
"""noise of a truncated length, in units of scale times second^0.5"""


Floats = NDArray[np.float64]


@njit(cache=True, error_model="numpy", forceinline=True)
def box_scale(width: float, height: float) -> float:
    """The length, in pixels, to which all noise is proportional."""
    return max(1.0, 0.5 * (abs(width) + abs(height)))


@njit(cache=True, error_model="numpy")
def start_filter(filter_: Floats, boxes_xyxy: Floats, j: int) -> None:
    """Initialise a filter (4, 5) from box j of (N, 4), with velocity 0."""
    scale = box_scale(boxes_xyxy[j, 2] - boxes_xyxy[j, 0], boxes_xyxy[j, 3] - boxes_xyxy[j, 1])
    for axis in range(4):
        filter_[axis, 0] = _observed(boxes_xyxy, j, axis)
        filter_[axis, 1] = 0.0
        filter_[axis, 2] = (POSITION_NOISE * scale) ** 2
        filter_[axis, 3] = 0.0
        filter_[axis, 4] = ((START_VELOCITY if axis < 2 else START_SIZE_VELOCITY) * scale) ** 2


@njit(cache=True, error_model="numpy", forceinline=True)
def predict_filter(filter_: Floats, dt_s: float) -> None:
    """Predict step: advance a filter (4, 5) by dt_s > 0 seconds."""
    scale = box_scale(filter_[2, 0], filter_[3, 0])
    value_noise, covariance_noise = dt_s**3 / 3.0, dt_s**2 / 2.0
    for axis in range(4):
        density = ((ACCELERATION if axis < 2 else SIZE_ACCELERATION) * scale) ** 2
        value, velocity, var_value, covariance, var_velocity = _row(filter_, axis)
        filter_[axis, 0] = value + dt_s * velocity
        filter_[axis, 2] = var_value + dt_s * (2.0 * covariance + dt_s * var_velocity) + density * value_noise
        filter_[axis, 3] = covariance + dt_s * var_velocity + density * covariance_noise
        filter_[axis, 4] = var_velocity + density * dt_s


@njit(cache=True, error_model="numpy", forceinline=True)
def correct_filter(filter_: Floats, boxes_xyxy: Floats, j: int, step_s: float) -> None:
    """Update step: correct a filter (4, 5) by the observed box j of (N, 4); step_s > 0 is the time between frames."""
    scale = box_scale(filter_[2, 0], filter_[3, 0])
    noise = (POSITION_NOISE * scale) ** 2
    for axis in range(2):
        low, high = boxes_xyxy[j, axis], boxes_xyxy[j, axis + 2]
        observed = high - low
        length = max(0.0, filter_[axis + 2, 0])
        inward_low = max(0.0, low - (filter_[axis, 0] - 0.5 * length))
        inward_high = max(0.0, filter_[axis, 0] + 0.5 * length - high)
        missing = length * (1.0 - CUT_TOLERANCE) - observed
        length_noise = noise
        if missing > 0.0 and inward_low + inward_high > 0.0:
            low -= missing * inward_low / (inward_low + inward_high)
            high += missing * inward_high / (inward_low + inward_high)
            length_noise += (CUT_NOISE * scale) ** 2 / step_s
        grown = max(0.0, observed - length)
        filter_[axis + 2, 2] += grown * grown
        _observe(filter_, axis, 0.5 * (low + high), noise)
        _observe(filter_, axis + 2, observed, length_noise)


@njit(cache=True, error_model="numpy", forceinline=True)
def _observe(filter_: Floats, axis: int, observed: float, noise: float) -> None:
    """Update one coordinate with an observation whose variance is noise."""
    value, velocity, var_value, covariance, var_velocity = _row(filter_, axis)
    innovation = observed - value
    inverse_variance = 1.0 / (var_value + noise)
    gain_value = var_value * inverse_variance
    gain_velocity = covariance * inverse_variance
    filter_[axis, 0] = value + gain_value * innovation
    filter_[axis, 1] = velocity + gain_velocity * innovation
    filter_[axis, 2] = (1.0 - gain_value) * var_value
    filter_[axis, 3] = (1.0 - gain_value) * covariance
    filter_[axis, 4] = var_velocity - gain_velocity * covariance


@njit(cache=True, error_model="numpy", forceinline=True)
def _row(filter_: Floats, axis: int) -> tuple[float, float, float, float, float]:
    return filter_[axis, 0], filter_[axis, 1], filter_[axis, 2], filter_[axis, 3], filter_[axis, 4]


@njit(cache=True, error_model="numpy", forceinline=True)
def filter_box(filter_: Floats) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a filter (4, 5); a negative width or height counts as 0."""
    half_width = 0.5 * max(0.0, filter_[2, 0])
    half_height = 0.5 * max(0.0, filter_[3, 0])
    x, y = filter_[0, 0], filter_[1, 0]
    return x - half_width, y - half_height, x + half_width, y + half_height


@njit(cache=True, error_model="numpy", forceinline=True)
def _observed(boxes_xyxy: Floats, j: int, axis: int) -> float:
    """Centre x, centre y, width or height of box j, for axis 0 to 3."""
    low = boxes_xyxy[j, axis % 2]
    high = boxes_xyxy[j, axis % 2 + 2]
    return float(0.5 * (low + high) if axis < 2 else high - low)
