"""Tracking figures: MOTA as CLEAR MOT counts it (Bernardin and Stiefelhagen 2008), IDF1 (Ristani et al. 2016).

With IoUs of boxes they are those of MOTChallenge; with IoUs of masks, MOTA is the MOTSA of MOTS (Voigtlaender et al.
2019).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.assignment import solve_assignment

MIN_IOU = 0.5
"""of an object and the track that follows it"""

# Above every sum of IoUs that a frame can hold: who is followed already stays followed before anything else counts.
_STAYS = 1e4


@dataclass(frozen=True, slots=True)
class TrackedFrame:
    """One frame, as far as it counts.

    truth_ids   (N,) int64, of the objects, the same one over all frames
    track_ids   (M,) int64, of the tracks
    ious        (N, M) float64, 0 between different classes
    """

    truth_ids: NDArray[np.int64]
    track_ids: NDArray[np.int64]
    ious: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TrackingFigures:
    """Over all frames.

    num_objects    objects of the truth, counted in each frame anew
    num_missed     of those nobody followed; num_false: instances that followed nobody
    num_switches   times an object was followed by another track than the last time it was followed
    mota           1 - (missed + false + switches) / objects, NaN without objects
    idf1           share of instances and objects that agree when each object belongs to one track for good, NaN
                   without any
    """

    num_objects: int
    num_missed: int
    num_false: int
    num_switches: int
    mota: float
    idf1: float


def tracking_figures(frames: Iterable[TrackedFrame]) -> TrackingFigures:
    """An object and a track may be paired at an IoU of MIN_IOU or more. Frames come in order.

    For MOTA a pair of the frame before stays together while it may; the others are paired at the largest total IoU.
    For IDF1 the one-to-one assignment of objects to tracks is that with the most frames in common.
    """
    num_objects = num_instances = num_pairs = num_switches = 0
    follower: dict[int, int] = {}
    """object -> the track that followed it last"""
    before: dict[int, int] = {}
    together: defaultdict[tuple[int, int], int] = defaultdict(int)
    for frame in frames:
        truth_ids, track_ids = frame.truth_ids.tolist(), frame.track_ids.tolist()
        num_objects += len(truth_ids)
        num_instances += len(track_ids)
        allowed = frame.ious >= MIN_IOU
        for row, col in np.argwhere(allowed).tolist():
            together[truth_ids[row], track_ids[col]] += 1
        stays = np.array([[before.get(truth) == track for track in track_ids] for truth in truth_ids])
        worth = np.where(allowed, frame.ious, 0.0)
        if worth.size:
            worth += _STAYS * (allowed & stays)
        before = {
            truth_ids[row]: track_ids[col]
            for row, col in enumerate(solve_assignment(-worth).tolist())
            if col >= 0 and worth[row, col] > 0
        }
        num_pairs += len(before)
        num_switches += sum(follower.get(truth, track) != track for truth, track in before.items())
        follower |= before
    num_missed, num_false = num_objects - num_pairs, num_instances - num_pairs
    total = num_objects + num_instances
    return TrackingFigures(
        num_objects=num_objects,
        num_missed=num_missed,
        num_false=num_false,
        num_switches=num_switches,
        mota=1 - (num_missed + num_false + num_switches) / num_objects if num_objects else float("nan"),
        idf1=2 * _most_in_common(together) / total if total else float("nan"),
    )


def _most_in_common(together: dict[tuple[int, int], int]) -> int:
    """Frames in common of the best one-to-one assignment."""
    rows = {truth: row for row, truth in enumerate(dict.fromkeys(truth for truth, _ in together))}
    cols = {track: col for col, track in enumerate(dict.fromkeys(track for _, track in together))}
    counts = np.zeros((len(rows), len(cols)))
    for (truth, track), count in together.items():
        counts[rows[truth], cols[track]] = count
    partner = solve_assignment(-counts)
    chosen = np.flatnonzero(partner >= 0)
    return int(counts[chosen, partner[chosen]].sum())
