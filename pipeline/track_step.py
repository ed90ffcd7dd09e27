"""The compiled part of the tracker: one call that takes the tables of a stream's tracks over one frame.

The tables have a row for each living track, in the order of birth, and room for more:

filters   (C, 4, 5) float64, motion, as `ops.kalman` lays it out
sightings (C, 3) float64, FIRST_SEEN_S and LAST_SEEN_S on the tracker's own clock, SCORE_SUM of all detections
records   (C, 5) int64: TRACK_ID (0 while tentative), CLASS_ID, FIRST_SEQ and LAST_SEQ (frames of the first and the
          latest detection), NUM_HITS (detections so far)

Nothing is checked here: `pipeline.tracker` is the border.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ops.assignment import match_pairs
from ops.iou import iou_at, sweep_pairs
from ops.kalman import correct_filter, filter_boxes, predict_filters, start_filter
from ops.mask_overlap import mask_area, shared_area

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cells = NDArray[np.uint8]

FIRST_SEEN_S, LAST_SEEN_S, SCORE_SUM = range(3)
TRACK_ID, CLASS_ID, FIRST_SEQ, LAST_SEQ, NUM_HITS = range(5)

ROUNDING_S = 1e-6
"""what a sum of time steps may differ by from the interval it stands for"""


@njit(cache=True)
def step_tracks(
    filters: Floats, sightings: Floats, records: Ints, num_tracks: int, num_confirmed: int,
    boxes_xyxy: Floats, scores: Floats, class_ids: Ints, cells: Cells, frame_seq: int, clock_s: float, step_s: float,
    high_score: float, low_score: float, high_iou: float, low_iou: float, duplicate_iou: float, duplicate_share: float,
    confirm_s: float, lost_s: float,
) -> tuple[int, int, Ints, Ints, Ints, Ints, Ints]:  # fmt: skip
    """One frame. The tables must have room for every detection to become a track; cells are (N, 28, 28) uint8, the
    masks as `ops.mask_overlap` has them, or (0, 28, 28) where the detections have none.

    Returns the number of living tracks, the number of tracks ever confirmed, the places (K,) of the detections to
    show, rising, their track ids (K,) and ages in frames (K,), and the records of tracks that started (S, 5) and
    ended (E, 5).
    """
    num_tracks, ended = _end_lost(filters, sightings, records, num_tracks, clock_s, step_s, confirm_s, lost_s)
    predict_filters(filters, num_tracks, step_s)
    ranked = _ranked(boxes_xyxy, scores, class_ids)
    high = ranked[scores[ranked] >= high_score]
    low = ranked[(scores[ranked] < high_score) & (scores[ranked] >= low_score)]

    # a track that has proved itself chooses before one that has not
    predicted_xyxy = filter_boxes(filters, num_tracks)
    confirmed = records[:num_tracks, TRACK_ID] > 0
    proved = np.flatnonzero(confirmed)
    tentative = np.flatnonzero(~confirmed)
    track_of = np.full(len(scores), -1, np.int64)
    _associate(predicted_xyxy, records, proved, boxes_xyxy, class_ids, high, high_iou, frame_seq, track_of)
    _associate(predicted_xyxy, records, tentative, boxes_xyxy, class_ids, high, high_iou, frame_seq, track_of)
    _associate(predicted_xyxy, records, proved, boxes_xyxy, class_ids, low, low_iou, frame_seq, track_of)
    for detection in range(len(scores)):
        if track_of[detection] >= 0:
            correct_filter(filters, track_of[detection], boxes_xyxy, detection)
    num_tracks = _give_births(
        filters, sightings, records, num_tracks, boxes_xyxy, class_ids, cells, high, duplicate_iou, duplicate_share,
        frame_seq, track_of,
    )  # fmt: skip

    shown = np.flatnonzero(track_of >= 0)
    for place in shown:
        sightings[track_of[place], SCORE_SUM] += scores[place]
    started = np.zeros(num_tracks, np.bool_)
    for track in range(num_tracks):
        if records[track, LAST_SEQ] != frame_seq:
            continue
        if records[track, NUM_HITS] == 0:
            sightings[track, FIRST_SEEN_S] = clock_s
        sightings[track, LAST_SEEN_S] = clock_s
        records[track, NUM_HITS] += 1
        mean_score = sightings[track, SCORE_SUM] / records[track, NUM_HITS]
        wait_s = confirm_s * min((1.0 - mean_score) / max(1.0 - high_score, 1e-9), 1.0)
        old_enough = clock_s - sightings[track, FIRST_SEEN_S] >= wait_s - ROUNDING_S
        if records[track, TRACK_ID] == 0 and records[track, NUM_HITS] >= 2 and old_enough:
            num_confirmed += 1
            records[track, TRACK_ID] = num_confirmed
            started[track] = True

    track_ids = records[track_of[shown], TRACK_ID]
    ages_frames = frame_seq - records[track_of[shown], FIRST_SEQ] + 1
    return num_tracks, num_confirmed, shown, track_ids, ages_frames, records[:num_tracks][started], ended


@njit(cache=True)
def _end_lost(
    filters: Floats, sightings: Floats, records: Ints, num_tracks: int,
    clock_s: float, step_s: float, confirm_s: float, lost_s: float,
) -> tuple[int, Ints]:  # fmt: skip
    """Close the tables up over the tracks that are over: confirmed ones after lost_s, tentative ones after confirm_s,
    but not before they were looked for once.

    Returns how many stay, and the records (E, 5) of the confirmed ones that went.
    """
    ended = np.empty((num_tracks, records.shape[1]), np.int64)
    num_ended = 0
    num_kept = 0
    for track in range(num_tracks):
        unseen_s = clock_s - sightings[track, LAST_SEEN_S]
        if records[track, TRACK_ID] > 0:
            alive = unseen_s <= lost_s + ROUNDING_S
        else:
            alive = unseen_s <= max(step_s, confirm_s) + ROUNDING_S
        if alive:
            filters[num_kept] = filters[track]
            sightings[num_kept] = sightings[track]
            records[num_kept] = records[track]
            num_kept += 1
        elif records[track, TRACK_ID] > 0:
            ended[num_ended] = records[track]
            num_ended += 1
    return num_kept, ended[:num_ended]


@njit(cache=True)
def _associate(
    predicted_xyxy: Floats, records: Ints, tracks: Ints, boxes_xyxy: Floats, class_ids: Ints, detections: Ints,
    min_iou: float, frame_seq: int, track_of: Ints,
) -> None:  # fmt: skip
    """Match those of `tracks` and `detections` that are still alone, at the largest total IoU among equal classes.

    Writes track_of (N,), the track of each detection or -1, and LAST_SEQ of the tracks.
    """
    tracks = tracks[records[tracks, LAST_SEQ] != frame_seq]
    detections = detections[track_of[detections] < 0]
    a_idx, b_idx, iou = sweep_pairs(predicted_xyxy[tracks], boxes_xyxy[detections], min_iou)
    allowed = records[tracks[a_idx], CLASS_ID] == class_ids[detections[b_idx]]
    matches = match_pairs(a_idx[allowed], b_idx[allowed], iou[allowed], len(tracks), len(detections))
    for track_place, detection_place in enumerate(matches):
        if detection_place >= 0:
            track_of[detections[detection_place]] = tracks[track_place]
            records[tracks[track_place], LAST_SEQ] = frame_seq


@njit(cache=True)
def _give_births(
    filters: Floats, sightings: Floats, records: Ints, num_tracks: int, boxes_xyxy: Floats, class_ids: Ints,
    cells: Cells, high: Ints, duplicate_iou: float, duplicate_share: float, frame_seq: int, track_of: Ints,
) -> int:  # fmt: skip
    """Begin a track for each detection of `high` without one, unless it has no area or copies one that has a track.

    Returns the number of tracks; writes track_of as `_associate` does.
    """
    owned = np.empty(len(track_of), np.int64)
    matched = np.flatnonzero(track_of >= 0)
    num_owned = len(matched)
    owned[:num_owned] = matched
    for detection in high:
        width = boxes_xyxy[detection, 2] - boxes_xyxy[detection, 0]
        height = boxes_xyxy[detection, 3] - boxes_xyxy[detection, 1]
        if track_of[detection] >= 0 or width <= 0.0 or height <= 0.0:
            continue
        is_copy = False
        for other in owned[:num_owned]:
            is_copy = is_copy or _is_copy(
                boxes_xyxy, class_ids, cells, detection, other, duplicate_iou, duplicate_share
            )
        if is_copy:
            continue
        start_filter(filters, num_tracks, boxes_xyxy, detection)
        records[num_tracks] = 0
        sightings[num_tracks] = 0.0
        records[num_tracks, CLASS_ID] = class_ids[detection]
        records[num_tracks, FIRST_SEQ] = frame_seq
        records[num_tracks, LAST_SEQ] = frame_seq
        track_of[detection] = num_tracks
        num_tracks += 1
        owned[num_owned] = detection
        num_owned += 1
    return num_tracks


@njit(cache=True)
def _is_copy(
    boxes_xyxy: Floats, class_ids: Ints, cells: Cells, detection: int, other: int,
    duplicate_iou: float, duplicate_share: float,
) -> bool:  # fmt: skip
    """Whether `detection` is `other` seen again, or a part of it: of one class by box, or with its mask inside the
    other mask; of any class where the masks are nearly the same pixels.
    """
    same_class = class_ids[detection] == class_ids[other]
    iou = iou_at(boxes_xyxy, other, boxes_xyxy, detection)
    if same_class and iou > duplicate_iou:
        return True
    if len(cells) == 0 or iou == 0.0:
        return False
    shared = shared_area(cells, boxes_xyxy, detection, cells, boxes_xyxy, other)
    area = mask_area(cells, boxes_xyxy, detection)
    if same_class and shared > duplicate_share * area:
        return True
    return bool(shared > duplicate_iou * (area + mask_area(cells, boxes_xyxy, other) - shared))


@njit(cache=True)
def _ranked(boxes_xyxy: Floats, scores: Floats, class_ids: Ints) -> Ints:
    """(N,) places of the detections by falling score; equal scores by class, then by box: only twins are left in doubt.

    Insertion sort: detections come by falling score, and then it looks at each once.
    """
    order = np.arange(len(scores))
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
    if scores[first] != scores[second]:
        return bool(scores[first] > scores[second])
    if class_ids[first] != class_ids[second]:
        return bool(class_ids[first] < class_ids[second])
    for edge in range(4):
        if boxes_xyxy[first, edge] != boxes_xyxy[second, edge]:
            return bool(boxes_xyxy[first, edge] < boxes_xyxy[second, edge])
    return False
