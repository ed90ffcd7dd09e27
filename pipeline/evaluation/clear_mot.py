"""Tracking metrics: MOTA of CLEAR MOT (Bernardin and Stiefelhagen 2008) and IDF1 (Ristani et al. 2016).

With IoUs of boxes they are the metrics of MOTChallenge. With IoUs of masks, MOTA is the MOTSA of MOTS (Voigtlaender et
al. 2019).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.assignment import solve_assignment

MIN_IOU = 0.5
"""lowest IoU of a match between an object and a track"""

# Bonus for a match of the previous frame. It is larger than every sum of IoUs of a frame, so such matches are kept
# before the sum of IoUs is maximised, as CLEAR MOT demands.
_CONTINUITY_BONUS = 1e4


@dataclass(frozen=True, slots=True)
class TrackedFrame:
    """The ground truth objects and the tracks of one frame, without ignored ones.

    truth_ids   (N,) int64: ids of the objects, the same over all frames
    track_ids   (M,) int64: ids of the tracks
    ious        (N, M) float64; 0 between different classes
    """

    truth_ids: NDArray[np.int64]
    track_ids: NDArray[np.int64]
    ious: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrackingMetrics:
    """Totals over all frames.

    num_objects    ground truth objects, counted in every frame
    num_missed     objects without a match (false negatives)
    num_false      track instances without a match (false positives)
    num_switches   identity switches: matches of an object with another track than in its last match
    mota           1 - (num_missed + num_false + num_switches) / num_objects; NaN without objects
    idf1           F1 score of the instances that the best one-to-one assignment of tracks to objects identifies; NaN
                   without objects and tracks
    """

    num_objects: int
    num_missed: int
    num_false: int
    num_switches: int
    mota: float
    idf1: float


def tracking_metrics(frames: Iterable[TrackedFrame]) -> TrackingMetrics:
    """The metrics of a sequence of frames in order. An object and a track can match at an IoU of at least MIN_IOU.

    For MOTA, a match of the previous frame is kept while it is possible; the other objects are matched so that the sum
    of IoUs is largest. For IDF1, tracks are assigned to objects one to one so that the number of common frames is
    largest.
    """
    num_objects = num_instances = num_matches = num_switches = 0
    last_track: dict[int, int] = {}
    """object -> track of its last match"""
    matches: dict[int, int] = {}
    """object -> track, in the previous frame"""
    num_common: defaultdict[tuple[int, int], int] = defaultdict(int)
    for frame in frames:
        truth_ids, track_ids = frame.truth_ids.tolist(), frame.track_ids.tolist()
        num_objects += len(truth_ids)
        num_instances += len(track_ids)
        allowed = frame.ious >= MIN_IOU
        for row, col in np.argwhere(allowed).tolist():
            num_common[truth_ids[row], track_ids[col]] += 1
        continued = np.array([[matches.get(truth) == track for track in track_ids] for truth in truth_ids])
        gain = np.where(allowed, frame.ious, 0.0)
        if gain.size:
            gain += _CONTINUITY_BONUS * (allowed & continued)
        matches = {
            truth_ids[row]: track_ids[col]
            for row, col in enumerate(solve_assignment(-gain).tolist())
            if col >= 0 and gain[row, col] > 0
        }
        num_matches += len(matches)
        num_switches += sum(last_track.get(truth, track) != track for truth, track in matches.items())
        last_track |= matches
    num_missed, num_false = num_objects - num_matches, num_instances - num_matches
    total = num_objects + num_instances
    return TrackingMetrics(
        num_objects=num_objects,
        num_missed=num_missed,
        num_false=num_false,
        num_switches=num_switches,
        mota=1 - (num_missed + num_false + num_switches) / num_objects if num_objects else float("nan"),
        idf1=2 * _max_common_frames(num_common) / total if total else float("nan"),
    )


def _max_common_frames(num_common: dict[tuple[int, int], int]) -> int:
    """The number of common frames of the best one-to-one assignment of tracks to objects."""
    rows = {truth: row for row, truth in enumerate(dict.fromkeys(truth for truth, _ in num_common))}
    cols = {track: col for col, track in enumerate(dict.fromkeys(track for _, track in num_common))}
    counts = np.zeros((len(rows), len(cols)))
    for (truth, track), count in num_common.items():
        counts[rows[truth], cols[track]] = count
    col_of_row = solve_assignment(-counts)
    assigned = np.flatnonzero(col_of_row >= 0)
    return int(counts[assigned, col_of_row[assigned]].sum())
