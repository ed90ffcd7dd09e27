"""The compiled step of the tracker: updates the table of a stream's tracks with the detections of one frame."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from ops.iou import Strips, fill_edges, in_reach, into_strips, iou_at
from ops.jit import njit
from ops.kalman import correct_filter, start_filter
from ops.lanes import LANES, lowest_bit, meeting_lanes
from ops.mask_format import MASK_BYTES
from ops.mask_overlap import mask_area, mask_centroid, shared_area
from ops.track_association import Bits, Classes, Floats, Ints, Scores, associate
from ops.track_boxes import ROUNDING_S, predict_boxes, store_trim
from ops.track_tables import MAX_PATH_POINTS, NUM_VOTES, RULES, SPAN, TRACK, Table

_DETECTION_ARRAYS = [(types.float32, 2), (types.float32, 1), (types.int32, 1), (types.uint8, 2)]
"""element type and number of dimensions of boxes, scores, classes and mask bits"""


@njit(cache=True, error_model="numpy")
def step_tracks(
    tracks: Table, num_tracks: int, num_confirmed: int, rules: Table, boxes_xyxy: NDArray[np.float32],
    scores: Scores, class_ids: Classes, mask_bits: Bits,
    frame_seq: int, clock_s: float, step_s: float, rows: Ints, spans: Table,
) -> tuple[int, int, int, int, int, int]:  # fmt: skip
    """Track one frame.

    tracks and spans must have room for num_tracks + N records. boxes_xyxy is (N, 4), scores and class_ids are (N,),
    mask_bits is (N, 98), or (0, 98) without masks; rows is (4, N).

    Writes the first K columns of rows, one for each detection with a track, in ascending order: index of the detection,
    track ID, class of the track, age of the track in frames. Writes to spans the E tracks that ended, then the S tracks
    that were confirmed.

    Returns the index of an invalid detection (then nothing is changed) or -1, the number of tracks, the number of
    tracks ever confirmed, K, E and S.
    """
    bad = _first_bad(boxes_xyxy, scores)
    if bad >= 0:
        return bad, num_tracks, num_confirmed, 0, 0, 0
    rule = rules[0]
    boxes = boxes_xyxy.astype(np.float64)
    num_tracks, num_ended = _drop_lost(tracks, num_tracks, rules, clock_s, step_s, spans)
    predicted = predict_boxes(tracks, num_tracks, clock_s, step_s, len(mask_bits) > 0)
    strips = into_strips(boxes)
    _sort_ties(strips, boxes, scores, class_ids)
    track_of = associate(tracks, predicted, boxes, scores, class_ids, mask_bits, strips, rules)
    num_tracks = _begin_tracks(
        tracks, num_tracks, boxes, scores, class_ids, mask_bits, strips, rules, frame_seq, clock_s, track_of
    )

    num_tracked = 0
    is_new = np.zeros(num_tracks, np.bool_)
    for detection in range(len(scores)):
        track = track_of[detection]
        if track < 0:
            continue
        record = tracks[track]
        if record["num_hits"] > 0:
            correct_filter(record["filter"], boxes, detection, step_s)
            store_trim(record, boxes, detection)
        record["last_seq"] = frame_seq
        record["last_seen_s"] = clock_s
        record["score_sum"] += scores[detection]
        record["num_hits"] += 1
        _vote(record, class_ids[detection], scores[detection])
        _store_position(record, boxes, mask_bits, detection, frame_seq)
        is_new[track] = record["track_id"] == 0 and _is_confirmed(record, rule)
        rows[0, num_tracked] = detection
        num_tracked += 1
    num_started = 0
    for track in range(num_tracks):
        if is_new[track]:
            num_confirmed += 1
            tracks[track]["track_id"] = num_confirmed
            write_span(tracks, track, spans, num_ended + num_started)
            num_started += 1
    for k in range(num_tracked):
        record = tracks[track_of[rows[0, k]]]
        rows[1, k] = record["track_id"]
        rows[2, k] = record["class_id"]
        rows[3, k] = frame_seq - record["first_seq"] + 1
    return -1, num_tracks, num_confirmed, num_tracked, num_ended, num_started


@functools.cache
def compiled_step() -> Callable[..., tuple[int, int, int, int, int, int]]:
    """The entry point of `step_tracks`, compiled for C-contiguous arrays, read-only or not.

    The entry point does not check its arguments: the arrays must have the declared dtypes, dimensions and contiguity.
    Calling it directly skips numba's type dispatch, which takes a noticeable part of each call, and avoids a second
    compilation for read-only arrays.
    """
    step: Any = step_tracks
    if not hasattr(step, "compile"):  # NUMBA_DISABLE_JIT=1
        return step_tracks
    detection_types = [types.Array(dtype, ndim, "C", readonly=True) for dtype, ndim in _DETECTION_ARRAYS]
    tracks, rules, spans = (from_dtype(dtype)[::1] for dtype in (TRACK, RULES, SPAN))
    number, seconds = types.int64, types.float64
    signature = (tracks, number, number, rules, *detection_types, number, seconds, seconds, types.int64[:, ::1], spans)
    step.compile(signature)
    entry_point: Callable[..., tuple[int, int, int, int, int, int]] = step.overloads[signature].entry_point
    return entry_point


@njit(cache=True, error_model="numpy")
def write_span(tracks: Table, track: int, spans: Table, place: int) -> None:
    """Write the summary of a track to spans[place]."""
    record, span = tracks[track], spans[place]
    span["track_id"] = record["track_id"]
    span["class_id"] = record["class_id"]
    span["first_seq"] = record["first_seq"]
    span["last_seq"] = record["last_seq"]
    span["duration_s"] = record["last_seen_s"] - record["first_seen_s"]
    span["num_detections"] = record["num_hits"]
    span["mean_score"] = record["score_sum"] / record["num_hits"]
    points, latest, path = record["path"], record["latest"], span["path"]
    length = record["path_length"]
    for k in range(length):
        path[k]["frame_seq"] = record["first_seq"] + np.int64(points[k, 0])
        path[k]["x"] = points[k, 1]
        path[k]["y"] = points[k, 2]
    if points[length - 1, 0] != latest[0]:
        path[length]["frame_seq"] = record["first_seq"] + np.int64(latest[0])
        path[length]["x"] = latest[1]
        path[length]["y"] = latest[2]
        length += 1
    span["path_length"] = length


@njit(cache=True, error_model="numpy", forceinline=True)
def _first_bad(boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32]) -> int:
    """Index of the first detection with a value that is not finite, with x2 < x1 or with y2 < y1; -1 for none."""
    for k in range(len(scores)):
        x1, y1, x2, y2 = boxes_xyxy[k, 0], boxes_xyxy[k, 1], boxes_xyxy[k, 2], boxes_xyxy[k, 3]
        if not (np.isfinite(x1 + y1 + x2 + y2) and np.isfinite(scores[k]) and x1 <= x2 and y1 <= y2):
            return k
    return -1


@njit(cache=True, error_model="numpy")
def _drop_lost(
    tracks: Table, num_tracks: int, rules: Table, clock_s: float, step_s: float, spans: Table
) -> tuple[int, int]:
    """Remove the tracks that have been lost for too long and compact the table.

    A confirmed track ends after lost_s. A tentative track ends after confirm_s, but not before one frame was searched
    for it. Returns the number of remaining tracks and the number of confirmed tracks that ended, which are written to
    spans.
    """
    tentative_lost_s = max(step_s, rules[0]["confirm_s"]) + ROUNDING_S
    lost_s = rules[0]["lost_s"] + ROUNDING_S
    num_kept = num_ended = 0
    for track in range(num_tracks):
        is_confirmed = tracks[track]["track_id"] > 0
        if clock_s - tracks[track]["last_seen_s"] <= (lost_s if is_confirmed else tentative_lost_s):
            if num_kept < track:
                tracks[num_kept] = tracks[track]
            num_kept += 1
        elif is_confirmed:
            write_span(tracks, track, spans, num_ended)
            num_ended += 1
    return num_kept, num_ended


@njit(cache=True, error_model="numpy", forceinline=True)
def _is_confirmed(record: Any, rule: Any) -> bool:
    """Whether a tentative track is confirmed: seen for long enough, given the mean score of its detections.

    The required time is confirm_s at a mean score half-way from high_score to 1. It falls with the mean score and is
    infinite at high_score.
    """
    if record["num_hits"] < 2:
        return False
    mean_score = record["score_sum"] / record["num_hits"]
    seen_s = record["last_seen_s"] - record["first_seen_s"] + ROUNDING_S
    return bool(seen_s * (mean_score - rule["high_score"]) >= rule["confirm_s"] * (1.0 - mean_score))


@njit(cache=True, error_model="numpy", forceinline=True)
def _vote(record: Any, class_id: int, score: float) -> None:
    """Add the score to the votes of the class and update the track's class. A class without votes replaces the class
    with the lowest sum.
    """
    votes = record["votes"]
    if votes[0, 1] > 0.0 and votes[0, 0] == class_id and record["class_id"] == class_id:
        votes[0, 1] += score
        return
    place = 0
    for k in range(NUM_VOTES):
        if votes[k, 1] > 0.0 and votes[k, 0] == class_id:
            place = k
            break
        if votes[k, 1] < votes[place, 1]:
            place = k
    if votes[place, 0] != class_id:
        votes[place, 0] = class_id
        votes[place, 1] = 0.0
    votes[place, 1] += score
    for k in range(NUM_VOTES):
        if votes[k, 0] == record["class_id"] and votes[k, 1] >= votes[place, 1]:
            return
    record["class_id"] = class_id


@njit(cache=True, error_model="numpy", forceinline=True)
def _store_position(record: Any, boxes_xyxy: Floats, mask_bits: Bits, detection: int, frame_seq: int) -> None:
    """Store the mask and the position of the detection. When the path is full, every second point is removed."""
    x, y = mask_centroid(mask_bits, boxes_xyxy, detection)
    if len(mask_bits):
        mask = record["mask"]
        for k in range(MASK_BYTES):
            mask[k] = mask_bits[detection, k]
    latest, path = record["latest"], record["path"]
    latest[0] = frame_seq - record["first_seq"]
    latest[1] = x
    latest[2] = y
    # path_stride is a power of two
    if (record["num_hits"] - 1) & (record["path_stride"] - 1):
        return
    length = record["path_length"]
    for axis in range(3):
        path[length, axis] = latest[axis]
    length += 1
    if length == MAX_PATH_POINTS:
        length //= 2
        for k in range(length):
            for axis in range(3):
                path[k, axis] = path[2 * k, axis]
        record["path_stride"] *= 2
    record["path_length"] = length


@njit(cache=True, error_model="numpy")
def _begin_tracks(
    tracks: Table, num_tracks: int, boxes_xyxy: Floats, scores: Scores, class_ids: Classes, mask_bits: Bits,
    strips: Strips, rules: Table, frame_seq: int, clock_s: float, track_of: Ints,
) -> int:  # fmt: skip
    """Begin a track for each unmatched detection with a score of birth_score or more, in descending order of score.

    Detections without area and duplicates of detections with a track are skipped. Updates track_of (N,), the track of
    each detection, and returns the number of tracks.
    """
    free = np.empty(len(scores), np.int64)
    num_free = 0
    for detection in strips.order:
        width = boxes_xyxy[detection, 2] - boxes_xyxy[detection, 0]
        height = boxes_xyxy[detection, 3] - boxes_xyxy[detection, 1]
        if track_of[detection] < 0 and scores[detection] >= rules[0]["birth_score"] and width > 0.0 and height > 0.0:
            free[num_free] = detection
            num_free += 1
    if num_free == 0:
        return num_tracks
    free = free[:num_free]
    for detection in free[np.argsort(-scores[free], kind="mergesort")]:
        if _is_duplicate_of_any(boxes_xyxy, class_ids, mask_bits, detection, strips, track_of, rules):
            continue
        start_filter(tracks[num_tracks]["filter"], boxes_xyxy, detection)
        tracks["trim"][num_tracks] = 0.0
        tracks["first_seen_s"][num_tracks] = clock_s
        tracks["score_sum"][num_tracks] = 0.0
        tracks["votes"][num_tracks] = 0.0
        tracks["track_id"][num_tracks] = 0
        tracks["class_id"][num_tracks] = class_ids[detection]
        tracks["first_seq"][num_tracks] = frame_seq
        tracks["num_hits"][num_tracks] = 0
        tracks["path"][num_tracks] = 0.0
        tracks["path_length"][num_tracks] = 0
        tracks["path_stride"][num_tracks] = 1
        tracks["mask"][num_tracks] = 0
        track_of[detection] = num_tracks
        num_tracks += 1
    return num_tracks


@njit(cache=True, error_model="numpy")
def _is_duplicate_of_any(
    boxes_xyxy: Floats,
    class_ids: Classes,
    mask_bits: Bits,
    detection: int,
    strips: Strips,
    track_of: Ints,
    rules: Table,
) -> bool:
    """Whether `detection` duplicates a detection that has a track."""
    left, top, right, bottom = boxes_xyxy[detection]
    begin, end = in_reach(strips, left, right)
    for first in range(begin, end, LANES):
        # an infinite factor selects every box with an intersection
        lanes = meeting_lanes(strips.edges, first, left, top, right, bottom, 0.0, np.inf)
        while lanes:
            other = strips.order[first + lowest_bit(lanes)]
            lanes &= lanes - 1
            if track_of[other] >= 0 and _is_duplicate(boxes_xyxy, class_ids, mask_bits, detection, other, rules):
                return True
    return False


@njit(cache=True, error_model="numpy")
def _is_duplicate(
    boxes_xyxy: Floats, class_ids: Classes, mask_bits: Bits, detection: int, other: int, rules: Table
) -> bool:
    """Whether `detection` is a duplicate or a part of `other`.

    It is, if both have the same class and their box IoU is above duplicate_iou, if both have the same class and more
    than duplicate_share of its mask lies inside the other mask, or if the mask IoU is above duplicate_iou, whatever the
    class.
    """
    iou = iou_at(boxes_xyxy, other, boxes_xyxy, detection)
    if iou == 0.0:
        return False
    same_class = class_ids[detection] == class_ids[other]
    if same_class and iou > rules[0]["duplicate_iou"]:
        return True
    if len(mask_bits) == 0:
        return False
    shared = shared_area(mask_bits, boxes_xyxy, detection, mask_bits, boxes_xyxy, other)
    area = mask_area(mask_bits, boxes_xyxy, detection)
    if same_class and shared > rules[0]["duplicate_share"] * area:
        return True
    return bool(shared > rules[0]["duplicate_iou"] * (area + mask_area(mask_bits, boxes_xyxy, other) - shared))


@njit(cache=True, error_model="numpy")
def _sort_ties(strips: Strips, boxes_xyxy: Floats, scores: Scores, class_ids: Classes) -> None:
    """Sort detections with the same left edge by their other edges, scores and classes, so that the order does not
    depend on the order of the input, except for identical detections.
    """
    order = strips.order
    for end in range(1, len(order)):
        k = end
        while k > 0 and _ranks_before(boxes_xyxy, scores, class_ids, order[k], order[k - 1]):
            order[k - 1], order[k] = order[k], order[k - 1]
            fill_edges(strips, k, boxes_xyxy)
            k -= 1
        if k < end:
            fill_edges(strips, k, boxes_xyxy)


@njit(cache=True, error_model="numpy")
def _ranks_before(boxes_xyxy: Floats, scores: Scores, class_ids: Classes, first: int, second: int) -> bool:
    """Whether detection `first` comes before `second`: by ascending edges, descending score, ascending class ID."""
    for edge in range(4):
        if boxes_xyxy[first, edge] != boxes_xyxy[second, edge]:
            return bool(boxes_xyxy[first, edge] < boxes_xyxy[second, edge])
    if scores[first] != scores[second]:
        return bool(scores[first] > scores[second])
    return bool(class_ids[first] < class_ids[second])
