"""Structured dtypes for the tracker's compiled code: tracks, summaries of tracks, and the configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.mask_format import MASK_BYTES

Table = NDArray[Any]
"""a structured array (C,); table["field"] is a view (C, …) of one field"""

NUM_VOTES = 4
"""number of classes for which a track stores votes"""
MAX_PATH_POINTS = 16

# A track. Tables store tracks in the order in which they began, followed by unused rows.
TRACK = np.dtype(
    [
        # Kalman filter in the layout of `ops.kalman`
        ("filter", "<f8", (4, 5)),
        # latest observed box minus the filter's box, which is the box of the whole object: x1, y1, x2, y2
        ("trim", "<f8", (4,)),
        # times of the first and the latest detection on the tracker's clock
        ("first_seen_s", "<f8"),
        ("last_seen_s", "<f8"),
        # sum of the scores of all detections
        ("score_sum", "<f8"),
        # (class ID, sum of scores) of the classes that were voted for; a sum of 0 marks a free row
        ("votes", "<f8", (NUM_VOTES, 2)),
        # 0 while the track is tentative
        ("track_id", "<i8"),
        # class with the highest sum of scores
        ("class_id", "<i8"),
        # frame numbers of the first and the latest detection
        ("first_seq", "<i8"),
        ("last_seq", "<i8"),
        ("num_hits", "<i8"),
        # (frames since first_seq, x, y in pixels) of every path_stride-th detection; path_length points are used
        ("path", "<f4", (MAX_PATH_POINTS, 3)),
        ("latest", "<f4", (3,)),
        ("path_length", "<i8"),
        ("path_stride", "<i8"),
        # packed bits of the latest detection's mask; all 0 without masks
        ("mask", "u1", (MASK_BYTES,)),
        # fills the record up to whole cache lines
        ("padding", "u1", (2,)),
    ]
)

# The fields of `pipeline.tracking.tracker.TrackSpan`, which documents them. path_length points of `path` are used.
SPAN = np.dtype(
    [
        ("track_id", "<i8"),
        ("class_id", "<i8"),
        ("first_seq", "<i8"),
        ("last_seq", "<i8"),
        ("duration_s", "<f8"),
        ("num_detections", "<i8"),
        ("mean_score", "<f8"),
        ("path_length", "<i8"),
        ("path", [("frame_seq", "<i8"), ("x", "<f8"), ("y", "<f8")], (MAX_PATH_POINTS + 1,)),
    ]
)

# The thresholds of `pipeline.tracking.tracker.TrackerConfig`, which documents them.
RULES = np.dtype(
    [
        (name, "<f8")
        for name in (
            "high_score", "birth_score", "low_score", "high_score_iou", "low_score_iou", "class_iou", "mask_weight",
            "lost_discount", "duplicate_iou", "duplicate_share", "confirm_s", "lost_s",
        )
    ]
)  # fmt: skip
