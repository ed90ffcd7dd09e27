"""Where a track is looked for: the box of the whole object, and the part of it that was in sight.

Compiled; called by `ops.track_step`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ops.kalman import filter_box, predict_filter
from ops.track_tables import Table

Floats = NDArray[np.float64]

TRIM_SHARE = 0.7
"""of what the latest box was smaller or larger than the whole object's, how much is expected of the next: the rest is
limbs, noise, and what a neighbour hides no more
"""
TRIM_S = 0.3
"""seconds out of sight in which that share falls to 1 / e"""

ROUNDING_S = 1e-6
"""what a sum of time steps may differ by from the interval it stands for"""


class Expected(NamedTuple):
    """Where M tracks are expected on a frame; boxes x1, y1, x2, y2.

    whole_xyxy    (M, 4) of the whole objects
    visible_xyxy  (M, 4) what is expected to be observed of them
    latest_xyxy   (M, 4) the latest boxes that were observed, moved as the filters have moved
    unseen_s      (M,) how long before the frame before they were last seen
    """

    whole_xyxy: Floats
    visible_xyxy: Floats
    latest_xyxy: Floats
    unseen_s: Floats


@njit(cache=True, error_model="numpy")
def expect(tracks: Table, num_tracks: int, clock_s: float, step_s: float, with_masks: bool) -> Expected:
    """Move the filters of the first num_tracks tracks on by the step that ends at the clock. Without masks nobody asks
    for latest_xyxy, which is not filled then.
    """
    boxes_xyxy = np.empty((3, num_tracks, 4))
    whole_xyxy, visible_xyxy, latest_xyxy = boxes_xyxy[0], boxes_xyxy[1], boxes_xyxy[2]
    unseen_s = np.empty(num_tracks)
    for track in range(num_tracks):
        record = tracks[track]
        predict_filter(record["filter"], step_s)
        since_s = clock_s - step_s - record["last_seen_s"]
        unseen_s[track] = 0.0 if since_s < ROUNDING_S else since_s
        share = TRIM_SHARE * np.exp(-since_s / TRIM_S) if unseen_s[track] > 0.0 else TRIM_SHARE
        whole = filter_box(record["filter"])
        for axis in range(2):
            low, high = whole[axis], whole[axis + 2]
            trim_low, trim_high = record["trim"][axis], record["trim"][axis + 2]
            whole_xyxy[track, axis], whole_xyxy[track, axis + 2] = low, high
            _write_side(visible_xyxy, track, axis, low + share * trim_low, high + share * trim_high)
            if with_masks:
                _write_side(latest_xyxy, track, axis, low + trim_low, high + trim_high)
    return Expected(whole_xyxy, visible_xyxy, latest_xyxy, unseen_s)


@njit(cache=True, error_model="numpy", forceinline=True)
def _write_side(boxes_xyxy: Floats, track: int, axis: int, low: float, high: float) -> None:
    """From low to high, or their mean twice where they have changed places."""
    middle = 0.5 * (low + high)
    boxes_xyxy[track, axis] = min(low, middle)
    boxes_xyxy[track, axis + 2] = max(high, middle)


@njit(cache=True, error_model="numpy", forceinline=True)
def keep_trim(record: Any, boxes_xyxy: Floats, detection: int) -> None:
    """After the correction of the track's filter by the box of the detection."""
    whole, trim = filter_box(record["filter"]), record["trim"]
    for edge in range(4):
        trim[edge] = boxes_xyxy[detection, edge] - whole[edge]


@njit(cache=True, error_model="numpy")
def cut_overlap(whole_xyxy: Floats, track: int, boxes_xyxy: Floats, detection: int) -> float:
    """IoU of the whole object with a box, when what one of them lacks along one axis counts as cut off: there the
    overlap is measured against the shorter of the two lengths. The better of the two axes.
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
