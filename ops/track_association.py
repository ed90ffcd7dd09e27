"""Which detection continues which track: gated by boxes, decided by masks where boxes leave a doubt, optimal.

Compiled; called by `ops.track_step`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ops.assignment import match_pairs
from ops.iou import Strips, pairs_in_strips
from ops.mask_overlap import mask_area, shared_area
from ops.track_boxes import Expected, cut_overlap
from ops.track_tables import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]
Scores = NDArray[np.float32]
Classes = NDArray[np.int32]

NUM_STAGES = 5
OTHER_CLASS = 4
"""the last stage"""
LEAST_OVERLAP = 0.05
"""IoU from which a lost track and a detection are looked at, where masks can tell what is a part of it"""


@njit(cache=True, error_model="numpy")
def associate(
    tracks: Table, expected: Expected, boxes_xyxy: Floats, scores: Scores, class_ids: Classes, mask_bits: Bits,
    strips: Strips, rules: Table,
) -> Ints:  # fmt: skip
    """The track of each of N detections, (N,) int64, -1 for none; `strips` hold the boxes of the detections.

    A track that has proved itself chooses before one that has not, and what has another class than the track comes
    last. Of boxes alone, sure detections are chosen before weak ones; where there are masks, they are chosen together.
    """
    rule = rules[0]
    num_tracks, num_detections = len(expected.unseen_s), len(scores)
    track_of = np.full(num_detections, -1, np.int64)
    with_masks = len(mask_bits) > 0 and rule["mask_weight"] > 0.0
    tracks_idx, detections_idx, iou = _candidates(
        expected, boxes_xyxy, strips, with_masks, min(rule["high_iou"], rule["low_iou"], rule["class_iou"])
    )
    if len(iou) == 0:
        return track_of
    same_class = np.empty(len(iou), np.bool_)
    for k in range(len(iou)):
        same_class[k] = tracks[tracks_idx[k]]["class_id"] == class_ids[detections_idx[k]]
    similarity = _similarity(
        tracks, expected, boxes_xyxy, scores, mask_bits, tracks_idx, detections_idx, iou, same_class, with_masks, rules
    )
    stages = np.empty(len(iou), np.int64)
    for k in range(len(iou)):
        proved = tracks[tracks_idx[k]]["track_id"] > 0
        stages[k] = _stage(rule, with_masks, same_class[k], proved, scores[detections_idx[k]], iou[k])
    is_matched = np.zeros(num_tracks, np.bool_)
    chosen_tracks, chosen_detections = np.empty(len(iou), np.int64), np.empty(len(iou), np.int64)
    weights = np.empty(len(iou))
    for stage in range(NUM_STAGES):
        num_chosen = 0
        for k in range(len(iou)):
            if stages[k] != stage or similarity[k] <= 0.0:
                continue
            track, detection = tracks_idx[k], detections_idx[k]
            if is_matched[track] or track_of[detection] >= 0:
                continue
            if stage < OTHER_CLASS or _masks_agree(tracks, expected, track, mask_bits, boxes_xyxy, detection, rule):
                chosen_tracks[num_chosen] = track
                chosen_detections[num_chosen] = detection
                weights[num_chosen] = similarity[k]
                num_chosen += 1
        if num_chosen == 0:
            continue
        matches = match_pairs(
            chosen_tracks[:num_chosen], chosen_detections[:num_chosen], weights[:num_chosen], num_tracks, num_detections
        )
        for track in range(num_tracks):
            if matches[track] >= 0:
                track_of[matches[track]] = track
                is_matched[track] = True
    return track_of


@njit(cache=True, error_model="numpy", forceinline=True)
def _stage(rule: Any, with_masks: bool, same_class: bool, proved: bool, score: float, iou: float) -> int:
    """The stage at which a pair may be matched, NUM_STAGES for none. It need not be looked at in a later one: after
    an optimal matching one of its ends is taken.
    """
    if not same_class:
        allowed = score >= rule["birth_score"] and iou >= rule["class_iou"] and proved
        return OTHER_CLASS if allowed else NUM_STAGES
    if with_masks and proved and score >= rule["low_score"] and iou >= rule["high_iou"]:
        return 0
    if score >= rule["high_score"] and iou >= rule["high_iou"]:
        return 0 if proved else 1
    if score >= (rule["low_score"] if proved else rule["birth_score"]) and iou >= rule["low_iou"]:
        return 2 if proved else 3
    return NUM_STAGES


@njit(cache=True, error_model="numpy")
def _masks_agree(
    tracks: Table, expected: Expected, track: int, mask_bits: Bits, boxes_xyxy: Floats, detection: int, rule: Any
) -> bool:
    """Whether masks overlap as much as a detection of another class must; true where there are none."""
    if len(mask_bits) == 0:
        return True
    return bool(_mask_iou(tracks, expected.latest_xyxy, track, mask_bits, boxes_xyxy, detection) >= rule["class_iou"])


@njit(cache=True, error_model="numpy")
def _candidates(
    expected: Expected, boxes_xyxy: Floats, strips: Strips, with_masks: bool, least_iou: float
) -> tuple[Ints, Ints, Floats]:
    """Pairs that overlap by least_iou: track, detection and overlap, each (P,). Where masks can tell whose part it is,
    a lost track's counts as what it would be if the rest were still hidden.
    """
    tracks_idx, detections_idx, iou = pairs_in_strips(
        expected.visible_xyxy, boxes_xyxy, strips, min(least_iou, LEAST_OVERLAP) if with_masks else least_iou
    )
    if not with_masks:
        return tracks_idx, detections_idx, iou
    num_kept = 0
    for k in range(len(iou)):
        overlap = iou[k]
        if expected.unseen_s[tracks_idx[k]] > 0.0:
            overlap = max(overlap, cut_overlap(expected.whole_xyxy, tracks_idx[k], boxes_xyxy, detections_idx[k]))
        if overlap >= least_iou:
            tracks_idx[num_kept] = tracks_idx[k]
            detections_idx[num_kept] = detections_idx[k]
            iou[num_kept] = overlap
            num_kept += 1
    return tracks_idx[:num_kept], detections_idx[:num_kept], iou[:num_kept]


@njit(cache=True, error_model="numpy")
def _similarity(
    tracks: Table, expected: Expected, boxes_xyxy: Floats, scores: Scores, mask_bits: Bits,
    tracks_idx: Ints, detections_idx: Ints, iou: Floats, same_class: NDArray[np.bool_],
    with_masks: bool, rules: Table,
) -> Floats:  # fmt: skip
    """(P,): the overlap of the boxes, mixed with the IoU of the masks for pairs of one class that compete with another
    pair, times the trust in the track's place; of boxes alone also times the score of the detection, which of masks
    says no more than how much of the object is hidden.
    """
    rule = rules[0]
    similarity = np.empty(len(iou))
    # what was seen just now is where it is predicted to be, what was lost for long may be anywhere
    trust = np.empty(len(expected.unseen_s))
    for track in range(len(trust)):
        trust[track] = 1.0 - rule["lost_discount"] * min(expected.unseen_s[track] / max(rule["lost_s"], 1e-9), 1.0)
    if not with_masks:
        for k in range(len(iou)):
            similarity[k] = iou[k] * trust[tracks_idx[k]] * scores[detections_idx[k]]
        return similarity
    rivals_of_track, rivals_of_detection = np.zeros(len(trust), np.int64), np.zeros(len(scores), np.int64)
    for k in range(len(iou)):
        rivals_of_track[tracks_idx[k]] += same_class[k]
        rivals_of_detection[detections_idx[k]] += same_class[k]
    for k in range(len(iou)):
        track, detection = tracks_idx[k], detections_idx[k]
        value = iou[k]
        if same_class[k] and (rivals_of_track[track] > 1 or rivals_of_detection[detection] > 1):
            mask_iou = _mask_iou(tracks, expected.latest_xyxy, track, mask_bits, boxes_xyxy, detection)
            value += rule["mask_weight"] * (mask_iou - value)
        similarity[k] = value * trust[track]
    return similarity


@njit(cache=True, error_model="numpy")
def _mask_iou(
    tracks: Table, latest_xyxy: Floats, track: int, mask_bits: Bits, boxes_xyxy: Floats, detection: int
) -> float:
    """Of the track's latest mask, moved with its box, and the mask of the detection."""
    masks = tracks["mask"]
    shared = shared_area(masks, latest_xyxy, track, mask_bits, boxes_xyxy, detection)
    both = mask_area(masks, latest_xyxy, track) + mask_area(mask_bits, boxes_xyxy, detection)
    return float(shared / (both - shared)) if shared > 0.0 else 0.0
