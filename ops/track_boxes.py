"""Predicted boxes of the tracks: the box of the whole object and the box of its visible part.

Compiled functions, called by `ops.track_step`. The trim of a track is the difference between its latest observed box
and the filter's box, which is the box of the whole object.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit
from ops.kalman import filter_box, predict_filter
from ops.track_tables import Table

Floats = NDArray[np.float64]

TRIM_SHARE = 0.7
"""share of the trim that is predicted for the next frame. The rest of it is transient: limbs, noise, or a neighbour
that no longer occludes the object
"""
TRIM_S = 0.3
"""time constant, in seconds, with which the predicted share of the trim decays while a track is lost"""

ROUNDING_S = 1e-6
"""tolerance, in seconds, for the rounding of sums of time steps"""


class PredictedBoxes(NamedTuple):
    """Predictions for T tracks on one frame; boxes are x1, y1, x2, y2.

    whole_xyxy    (T, 4) predicted boxes of the whole objects
    visible_xyxy  (T, 4) predicted boxes of their visible parts
    latest_xyxy   (T, 4) latest observed boxes, moved by the motion of the filters
    lost_s        (T,) time from the latest detection to the previous frame, 0 for tracks that were detected on it
    """

    whole_xyxy: Floats
    visible_xyxy: Floats
    latest_xyxy: Floats
    lost_s: Floats


@njit(cache=True, error_model="numpy")
def predict_boxes(tracks: Table, num_tracks: int, clock_s: float, step_s: float, with_masks: bool) -> PredictedBoxes:
    """Predict the filters of the first num_tracks tracks by step_s, to the time clock_s, and return their boxes.

    latest_xyxy is needed for mask IoUs only and stays uninitialised if with_masks is false.
    """
    boxes_xyxy = np.empty((3, num_tracks, 4))
    whole_xyxy, visible_xyxy, latest_xyxy = boxes_xyxy[0], boxes_xyxy[1], boxes_xyxy[2]
    lost_s = np.empty(num_tracks)
    for track in range(num_tracks):
        record = tracks[track]
        predict_filter(record["filter"], step_s)
        since_s = clock_s - step_s - record["last_seen_s"]
        lost_s[track] = 0.0 if since_s < ROUNDING_S else since_s
        share = TRIM_SHARE * np.exp(-since_s / TRIM_S) if lost_s[track] > 0.0 else TRIM_SHARE
        whole = filter_box(record["filter"])
        for axis in range(2):
            low, high = whole[axis], whole[axis + 2]
            trim_low, trim_high = record["trim"][axis], record["trim"][axis + 2]
            whole_xyxy[track, axis], whole_xyxy[track, axis + 2] = low, high
            _write_side(visible_xyxy, track, axis, low + share * trim_low, high + share * trim_high)
            if with_masks:
                _write_side(latest_xyxy, track, axis, low + trim_low, high + trim_high)
    return PredictedBoxes(whole_xyxy, visible_xyxy, latest_xyxy, lost_s)


@njit(cache=True, error_model="numpy", forceinline=True)
def _write_side(boxes_xyxy: Floats, track: int, axis: int, low: float, high: float) -> None:
    """Write an interval. If low > high, both ends are set to their mean."""
    middle = 0.5 * (low + high)
    boxes_xyxy[track, axis] = min(low, middle)
    boxes_xyxy[track, axis + 2] = max(high, middle)


@njit(cache=True, error_model="numpy", forceinline=True)
def store_trim(record: Any, boxes_xyxy: Floats, detection: int) -> None:
    """Store the trim of a track, after its filter was corrected by the detection."""
    whole, trim = filter_box(record["filter"]), record["trim"]
    for edge in range(4):
        trim[edge] = boxes_xyxy[detection, edge] - whole[edge]


@njit(cache=True, error_model="numpy")
def truncated_iou(whole_xyxy: Floats, track: int, boxes_xyxy: Floats, detection: int) -> float:
    """IoU of a whole object and a detection, one of which may be truncated along one axis.

    Along the truncated axis, the overlap is divided by the shorter of the two lengths instead of their union. Returns
    the maximum for both choices of the axis.
    """
    overlaps = np.empty(2)
    shares = np.empty(2)
    for axis in range(2):
        low = max(whole_xyxy[track, axis], boxes_xyxy[detection, axis])
        high = min(whole_xyxy[track, axis + 2], boxes_xyxy[detection, axis + 2])
        if high <= low:
            return 0.0
        length = whole_xyxy[track, axis + 2] - whole_xyxy[track, axis]
        other = boxes_xyxy[detection, axis + 2] - boxes_xyxy[detection, axis]
        overlaps[axis] = (high - low) / (length + other - (high - low))
        shares[axis] = (high - low) / min(length, other)
    return float(max(overlaps[0] * shares[1], shares[0] * overlaps[1]))
