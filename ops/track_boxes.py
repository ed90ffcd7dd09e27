"""Where a track is looked for: the box of the whole object, and the part of it that was in sight.

Compiled; called by `ops.track_step`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ops.track_tables import Table

Floats = NDArray[np.float64]

TRIM_SHARE = 0.7
"""of what the latest box was smaller or larger than the whole object's, how much is expected of the next: the rest is
limbs, noise, and what a neighbour hides no more
"""
TRIM_S = 0.3
"""seconds out of sight in which that share falls to 1 / e"""


@njit(cache=True)
def visible_boxes(tracks: Table, whole_xyxy: Floats, unseen_s: Floats) -> Floats:
    """(M, 4) x1, y1, x2, y2 that are expected to be observed of M tracks that were last seen so long before the latest
    frame; whole_xyxy (M, 4) are the boxes of their filters on this frame.
    """
    shares = np.full(len(whole_xyxy), TRIM_SHARE)
    for track in range(len(whole_xyxy)):
        if unseen_s[track] > 0.0:
            shares[track] *= np.exp(-unseen_s[track] / TRIM_S)
    return trimmed_boxes(tracks, whole_xyxy, shares)


@njit(cache=True)
def trimmed_boxes(tracks: Table, whole_xyxy: Floats, shares: Floats) -> Floats:
    """(M, 4): the boxes of the filters with this share of the tracks' trims. With all of it, they are the latest boxes
    that were observed, moved as the filters have moved.
    """
    boxes_xyxy = np.empty_like(whole_xyxy)
    trims = tracks["trim"]
    for track in range(len(whole_xyxy)):
        for axis in range(2):
            low = whole_xyxy[track, axis] + shares[track] * trims[track, axis]
            high = whole_xyxy[track, axis + 2] + shares[track] * trims[track, axis + 2]
            boxes_xyxy[track, axis] = min(low, 0.5 * (low + high))
            boxes_xyxy[track, axis + 2] = max(high, 0.5 * (low + high))
    return boxes_xyxy


@njit(cache=True)
def keep_trim(tracks: Table, track: int, boxes_xyxy: Floats, detection: int) -> None:
    """After the correction of its filter by the box of the detection."""
    filters, trims = tracks["filter"], tracks["trim"]
    for axis in range(2):
        half = 0.5 * max(0.0, filters[track, axis + 2, 0])
        trims[track, axis] = boxes_xyxy[detection, axis] - (filters[track, axis, 0] - half)
        trims[track, axis + 2] = boxes_xyxy[detection, axis + 2] - (filters[track, axis, 0] + half)


@njit(cache=True)
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
