"""The compiled part of the tracker: one call that takes the table of a stream's tracks over one frame."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ops.iou import iou_at
from ops.kalman import correct_filter, filter_boxes, predict_filters, start_filter
from ops.mask_overlap import mask_area, mask_centroid, shared_area
from ops.track_association import Bits, Floats, Ints, associate
from ops.track_boxes import keep_trim, trimmed_boxes, visible_boxes
from ops.track_tables import MAX_PATH_POINTS, NUM_VOTES, Table

ROUNDING_S = 1e-6
"""what a sum of time steps may differ by from the interval it stands for"""


@njit(cache=True)
def step_tracks(
    tracks: Table, num_tracks: int, num_confirmed: int, rules: Table, boxes_xyxy: NDArray[np.float32],
    scores: NDArray[np.float32], class_ids: NDArray[np.int32], mask_bits: Bits,
    frame_seq: int, clock_s: float, step_s: float,
) -> tuple[int, int, int, Ints, Ints, Table]:  # fmt: skip
    """One frame. The table must have room for every detection to become a track.

    boxes_xyxy (N, 4), scores (N,), class_ids (N,); mask_bits (N, 98), or (0, 98) where there are no masks.

    Returns the number of living tracks, the number of tracks ever confirmed, the place of a detection whose numbers
    cannot be (then nothing was changed) or -1; of the K detections to show, rising, (K, 4) int64: the place, the id of
    the track, its class and its age in frames; the tracks (S,) that were confirmed on this frame; the records (E,) of
    those that ended.
    """
    bad = _first_bad(boxes_xyxy, scores)
    if bad >= 0:
        return num_tracks, num_confirmed, bad, np.empty((0, 4), np.int64), np.empty(0, np.int64), tracks[:0].copy()
    boxes, weights, classes = boxes_xyxy.astype(np.float64), scores.astype(np.float64), class_ids.astype(np.int64)
    num_tracks, ended = _drop_lost(tracks, num_tracks, rules, clock_s, step_s)
    filters = tracks["filter"]
    predict_filters(filters, num_tracks, step_s)
    unseen_s = clock_s - step_s - tracks["last_seen_s"][:num_tracks]
    unseen_s = np.where(unseen_s < ROUNDING_S, 0.0, unseen_s)
    whole_xyxy = filter_boxes(filters, num_tracks)
    visible_xyxy = visible_boxes(tracks, whole_xyxy, unseen_s)
    latest_xyxy = trimmed_boxes(tracks, whole_xyxy, np.ones(num_tracks)) if len(mask_bits) else visible_xyxy
    ranked = _ranked(boxes, weights, classes)
    track_of = associate(
        tracks, visible_xyxy, whole_xyxy, latest_xyxy, unseen_s,
        boxes, weights, classes, mask_bits, ranked, rules,
    )  # fmt: skip
    for detection in range(len(weights)):
        if track_of[detection] >= 0:
            correct_filter(filters, track_of[detection], boxes, detection, step_s)
            keep_trim(tracks, track_of[detection], boxes, detection)
    num_tracks = _give_births(
        tracks, num_tracks, boxes, weights, classes, mask_bits, ranked, rules, frame_seq, clock_s, track_of
    )

    shown = np.flatnonzero(track_of >= 0)
    is_new = np.zeros(num_tracks, np.bool_)
    for detection in range(len(weights)):
        track = track_of[detection]
        if track < 0:
            continue
        tracks["last_seq"][track] = frame_seq
        tracks["last_seen_s"][track] = clock_s
        tracks["score_sum"][track] += weights[detection]
        tracks["num_hits"][track] += 1
        _vote(tracks, track, classes[detection], weights[detection])
        _remember(tracks, track, boxes, mask_bits, detection, frame_seq)
        is_new[track] = tracks["track_id"][track] == 0 and _is_proved(tracks, track, rules)
    started = np.flatnonzero(is_new)
    for k in range(len(started)):
        num_confirmed += 1
        tracks["track_id"][started[k]] = num_confirmed
    rows = np.empty((len(shown), 4), np.int64)
    for k in range(len(shown)):
        track = track_of[shown[k]]
        rows[k, 0] = shown[k]
        rows[k, 1] = tracks["track_id"][track]
        rows[k, 2] = tracks["class_id"][track]
        rows[k, 3] = frame_seq - tracks["first_seq"][track] + 1
    return num_tracks, num_confirmed, -1, rows, started, ended


@njit(cache=True)
def _first_bad(boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32]) -> int:
    """The first detection with a number that is not finite, x2 < x1 or y2 < y1; -1 for none."""
    for k in range(len(scores)):
        x1, y1, x2, y2 = boxes_xyxy[k, 0], boxes_xyxy[k, 1], boxes_xyxy[k, 2], boxes_xyxy[k, 3]
        if not (np.isfinite(x1 + y1 + x2 + y2) and np.isfinite(scores[k]) and x1 <= x2 and y1 <= y2):
            return k
    return -1


@njit(cache=True)
def _drop_lost(tracks: Table, num_tracks: int, rules: Table, clock_s: float, step_s: float) -> tuple[int, Table]:
    """Close the table up over the tracks that are over: confirmed ones after lost_s, tentative ones after confirm_s,
    but not before they were looked for once.

    Returns how many stay, and the records of the confirmed ones that went.
    """
    patience_s = max(step_s, rules[0]["confirm_s"]) + ROUNDING_S
    lost_s = rules[0]["lost_s"] + ROUNDING_S
    is_over = np.zeros(num_tracks, np.bool_)
    any_over = False
    for track in range(num_tracks):
        unseen_s = clock_s - tracks["last_seen_s"][track]
        is_over[track] = unseen_s > (lost_s if tracks["track_id"][track] > 0 else patience_s)
        any_over = any_over or is_over[track]
    if not any_over:
        return num_tracks, tracks[:0].copy()
    ended = tracks[:num_tracks][is_over & (tracks["track_id"][:num_tracks] > 0)]
    num_kept = 0
    for track in range(num_tracks):
        if not is_over[track]:
            if num_kept < track:
                tracks[num_kept] = tracks[track]
            num_kept += 1
    return num_kept, ended


@njit(cache=True)
def _is_proved(tracks: Table, track: int, rules: Table) -> bool:
    """Whether a tentative track has been seen for long enough, for how sure its detections are, to get its id.

    confirm_s is for a mean score half-way from high_score to 1; a surer one waits less, one of high_score for ever.
    """
    num_hits = tracks["num_hits"][track]
    if num_hits < 2:
        return False
    mean_score = tracks["score_sum"][track] / num_hits
    seen_s = tracks["last_seen_s"][track] - tracks["first_seen_s"][track] + ROUNDING_S
    return bool(seen_s * (mean_score - rules[0]["high_score"]) >= rules[0]["confirm_s"] * (1.0 - mean_score))


@njit(cache=True)
def _vote(tracks: Table, track: int, class_id: int, score: float) -> None:
    """Adds the score to the votes of the class, which takes the place of the weakest where it has none."""
    votes = tracks["votes"]
    place = 0
    for k in range(NUM_VOTES):
        if votes[track, k, 1] > 0.0 and votes[track, k, 0] == class_id:
            place = k
            break
        if votes[track, k, 1] < votes[track, place, 1]:
            place = k
    if votes[track, place, 0] != class_id:
        votes[track, place, 0] = class_id
        votes[track, place, 1] = 0.0
    votes[track, place, 1] += score
    for k in range(NUM_VOTES):
        if votes[track, k, 0] == tracks["class_id"][track] and votes[track, k, 1] >= votes[track, place, 1]:
            return
    tracks["class_id"][track] = class_id


@njit(cache=True)
def _remember(tracks: Table, track: int, boxes_xyxy: Floats, mask_bits: Bits, detection: int, frame_seq: int) -> None:
    """Keeps the mask, and the place: on the path, which is thinned to every second point whenever it is full."""
    x, y = mask_centroid(mask_bits, boxes_xyxy, detection)
    if len(mask_bits):
        tracks["mask"][track] = mask_bits[detection]
    latest, path = tracks["latest"], tracks["path"]
    latest[track, 0] = frame_seq - tracks["first_seq"][track]
    latest[track, 1] = x
    latest[track, 2] = y
    if (tracks["num_hits"][track] - 1) % tracks["path_stride"][track]:
        return
    length = tracks["path_length"][track]
    path[track, length] = latest[track]
    length += 1
    if length == MAX_PATH_POINTS:
        length //= 2
        for k in range(length):
            path[track, k] = path[track, 2 * k]
        tracks["path_stride"][track] *= 2
    tracks["path_length"][track] = length


@njit(cache=True)
def _give_births(
    tracks: Table, num_tracks: int, boxes_xyxy: Floats, scores: Floats, class_ids: Ints, mask_bits: Bits,
    ranked: Ints, rules: Table, frame_seq: int, clock_s: float, track_of: Ints,
) -> int:  # fmt: skip
    """Begin a track for each detection of birth_score or more without one, the surest first, unless it has no area or
    copies one that has a track.

    Returns the number of tracks; writes track_of as `associate` does.
    """
    free = np.empty(len(ranked), np.int64)
    num_free = 0
    for detection in ranked:
        width = boxes_xyxy[detection, 2] - boxes_xyxy[detection, 0]
        height = boxes_xyxy[detection, 3] - boxes_xyxy[detection, 1]
        if track_of[detection] < 0 and scores[detection] >= rules[0]["birth_score"] and width > 0.0 and height > 0.0:
            free[num_free] = detection
            num_free += 1
    if num_free == 0:
        return num_tracks
    free = free[:num_free]
    owned = np.empty(len(track_of), np.int64)
    matched = np.flatnonzero(track_of >= 0)
    num_owned = len(matched)
    owned[:num_owned] = matched
    for detection in free[np.argsort(-scores[free], kind="mergesort")]:
        is_copy = False
        for other in owned[:num_owned]:
            if _is_copy(boxes_xyxy, class_ids, mask_bits, detection, other, rules):
                is_copy = True
                break
        if is_copy:
            continue
        start_filter(tracks["filter"], num_tracks, boxes_xyxy, detection)
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
        owned[num_owned] = detection
        num_owned += 1
    return num_tracks


@njit(cache=True)
def _is_copy(boxes_xyxy: Floats, class_ids: Ints, mask_bits: Bits, detection: int, other: int, rules: Table) -> bool:
    """Whether `detection` is `other` seen again, or a part of it: of one class by box, or with its mask inside the
    other mask; of any class where the masks are nearly the same pixels.
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


@njit(cache=True)
def _ranked(boxes_xyxy: Floats, scores: Floats, class_ids: Ints) -> Ints:
    """(N,) places of the detections by left edge; equal ones by the other edges, score and class, so that only twins
    are left in doubt.
    """
    order = np.argsort(boxes_xyxy[:, 0], kind="mergesort")
    for end in range(1, len(order)):
        place = order[end]
        k = end
        while k > 0 and _ranks_before(boxes_xyxy, scores, class_ids, place, order[k - 1]):
            order[k] = order[k - 1]
            k -= 1
        order[k] = place
    return order


@njit(cache=True)
def _ranks_before(boxes_xyxy: Floats, scores: Floats, class_ids: Ints, first: int, second: int) -> bool:
    for edge in range(4):
        if boxes_xyxy[first, edge] != boxes_xyxy[second, edge]:
            return bool(boxes_xyxy[first, edge] < boxes_xyxy[second, edge])
    if scores[first] != scores[second]:
        return bool(scores[first] > scores[second])
    return bool(class_ids[first] < class_ids[second])
