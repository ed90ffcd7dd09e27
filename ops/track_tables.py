"""What the tracker knows of a stream's tracks, and the numbers it goes by, as records that compiled code can read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.mask_overlap import MASK_BYTES

Table = NDArray[Any]
"""a structured array; its fields are views: table["field"] is (C, …)"""

NUM_VOTES = 4
"""classes that a track remembers"""
MAX_PATH_POINTS = 16

# A living track. Tables hold them in the order of birth and have room for more.
TRACK = np.dtype(
    [
        # motion, as `ops.kalman` lays it out
        ("filter", "<f8", (4, 5)),
        # x1, y1, x2, y2 of the latest box less those of the filter's, which is the box of the whole object
        ("trim", "<f8", (4,)),
        # of the first and the latest detection, on the tracker's own clock
        ("first_seen_s", "<f8"),
        ("last_seen_s", "<f8"),
        # over all detections
        ("score_sum", "<f8"),
        # a class and the sum of the scores that it was seen with, 0 where the row is free
        ("votes", "<f8", (NUM_VOTES, 2)),
        # 0 while tentative
        ("track_id", "<i8"),
        # the one with the most votes
        ("class_id", "<i8"),
        # frames of the first and the latest detection
        ("first_seq", "<i8"),
        ("last_seq", "<i8"),
        ("num_hits", "<i8"),
        # frames since first_seq, x and y in pixels: path_length points from every path_stride-th detection
        ("path", "<f4", (MAX_PATH_POINTS, 3)),
        ("latest", "<f4", (3,)),
        ("path_length", "<i8"),
        ("path_stride", "<i8"),
        # packed bits of the latest detection's mask, all 0 without one
        ("mask", "u1", (MASK_BYTES,)),
        # to whole cache lines
        ("padding", "u1", (2,)),
    ]
)

# `pipeline.tracking.tracker.TrackSpan`, which documents the fields; of `path`, the first path_length points count.
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

# `pipeline.tracking.tracker.TrackerConfig`, which says what each is.
RULES = np.dtype(
    [
        (name, "<f8")
        for name in (
            "high_score", "birth_score", "low_score", "high_iou", "low_iou", "class_iou", "mask_weight",
            "lost_discount", "duplicate_iou", "duplicate_share", "confirm_s", "lost_s",
        )
    ]
)  # fmt: skip
