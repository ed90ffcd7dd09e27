"""Which detection continues which track: gated by boxes, decided by masks where boxes leave a doubt, optimal.

Compiled; called by `ops.track_step`.
"""

from __future__ import annotations

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
    num_tracks = len(expected.unseen_s)
    track_of = np.full(len(scores), -1, np.int64)
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
    is_matched = np.zeros(num_tracks, np.bool_)
    undecided = np.arange(len(iou))
    chosen_tracks, chosen_detections = np.empty(len(iou), np.int64), np.empty(len(iou), np.int64)
    weights = np.empty(len(iou))
    for stage in range(5):
        num_undecided = num_chosen = 0
        for pair in undecided:
            track, detection = tracks_idx[pair], detections_idx[pair]
            if is_matched[track] or track_of[detection] >= 0:
                continue
            undecided[num_undecided] = pair
            num_undecided += 1
            if same_class[pair] == (stage == 4) or similarity[pair] <= 0.0:
                continue
            proved = tracks[track]["track_id"] > 0
            score = scores[detection]
            if with_masks and stage == 0:
                allowed = score >= rule["low_score"] and iou[pair] >= rule["high_iou"] and proved
            elif stage == 0 or stage == 1:
                allowed = score >= rule["high_score"] and iou[pair] >= rule["high_iou"] and proved == (stage == 0)
            elif stage == 2:
                allowed = score >= rule["low_score"] and iou[pair] >= rule["low_iou"] and proved
            elif stage == 3:
                allowed = score >= rule["birth_score"] and iou[pair] >= rule["low_iou"] and not proved
            else:
                allowed = score >= rule["birth_score"] and iou[pair] >= rule["class_iou"] and proved
                if allowed and len(mask_bits):
                    mask_iou = _mask_iou(tracks, expected.latest_xyxy, track, mask_bits, boxes_xyxy, detection)
                    allowed = mask_iou >= rule["class_iou"]
            if allowed:
                chosen_tracks[num_chosen] = track
                chosen_detections[num_chosen] = detection
                weights[num_chosen] = similarity[pair]
                num_chosen += 1
        undecided = undecided[:num_undecided]
        if num_chosen == 0:
            continue
        matches = match_pairs(
            chosen_tracks[:num_chosen], chosen_detections[:num_chosen], weights[:num_chosen], num_tracks, len(scores)
        )
        for track in range(num_tracks):
            if matches[track] >= 0:
                track_of[matches[track]] = track
                is_matched[track] = True
    return track_of


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
