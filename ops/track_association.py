"""Which detection continues which track: gated by boxes, decided by masks where boxes leave a doubt, optimal.

Compiled; called by `ops.track_step`.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ops.assignment import match_pairs
from ops.iou import sweep_sorted
from ops.mask_overlap import mask_area, shared_area
from ops.track_boxes import cut_overlap
from ops.track_tables import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]


LEAST_OVERLAP = 0.05
"""IoU from which a lost track and a detection are looked at, where masks can tell what is a part of it"""


@njit(cache=True)
def associate(
    tracks: Table, visible_xyxy: Floats, whole_xyxy: Floats, latest_xyxy: Floats, unseen_s: Floats,
    boxes_xyxy: Floats, scores: Floats, class_ids: Ints, mask_bits: Bits, ranked: Ints, rules: Table,
) -> Ints:  # fmt: skip
    """The track of each of N detections, (N,) int64, -1 for none.

    Of M tracks on this frame: visible_xyxy (M, 4) what is expected to be observed, whole_xyxy the boxes of the whole
    objects, latest_xyxy the latest boxes, moved; unseen_s (M,) how long before the frame before they were last seen.
    `ranked` (N,) are the places of the detections by their left edge.

    A track that has proved itself chooses before one that has not, and what has another class than the track comes
    last. Of boxes alone, sure detections are chosen before weak ones; where there are masks, they are chosen together.
    """
    rule = rules[0]
    num_tracks = len(visible_xyxy)
    track_of = np.full(len(scores), -1, np.int64)
    if num_tracks == 0:
        return track_of
    with_masks = len(mask_bits) > 0 and rule["mask_weight"] > 0.0
    track_idx, detection_idx, iou = _candidates(
        visible_xyxy, whole_xyxy, unseen_s, boxes_xyxy, ranked, with_masks,
        min(rule["high_iou"], rule["low_iou"], rule["class_iou"]),
    )  # fmt: skip
    same_class = tracks["class_id"][track_idx] == class_ids[detection_idx]
    similarity = _similarity(
        tracks, latest_xyxy, unseen_s, boxes_xyxy, scores, mask_bits, track_idx, detection_idx, iou, same_class,
        with_masks, rules,
    )  # fmt: skip
    is_matched = np.zeros(num_tracks, np.bool_)
    chosen = np.empty(len(iou), np.int64)
    for stage in range(5):
        num_chosen = 0
        for k in range(len(iou)):
            track, detection = track_idx[k], detection_idx[k]
            if is_matched[track] or track_of[detection] >= 0 or same_class[k] == (stage == 4) or similarity[k] <= 0.0:
                continue
            proved = tracks["track_id"][track] > 0
            score = scores[detection]
            if with_masks and stage == 0:
                allowed = score >= rule["low_score"] and iou[k] >= rule["high_iou"] and proved
            elif stage == 0 or stage == 1:
                allowed = score >= rule["high_score"] and iou[k] >= rule["high_iou"] and proved == (stage == 0)
            elif stage == 2:
                allowed = score >= rule["low_score"] and iou[k] >= rule["low_iou"] and proved
            elif stage == 3:
                allowed = score >= rule["birth_score"] and iou[k] >= rule["low_iou"] and not proved
            else:
                allowed = score >= rule["birth_score"] and iou[k] >= rule["class_iou"] and proved
                if allowed and len(mask_bits):
                    mask_iou = _mask_iou(tracks, latest_xyxy, track, mask_bits, boxes_xyxy, detection)
                    allowed = mask_iou >= rule["class_iou"]
            if allowed:
                chosen[num_chosen] = k
                num_chosen += 1
        if num_chosen == 0:
            continue
        pairs = chosen[:num_chosen]
        matches = match_pairs(track_idx[pairs], detection_idx[pairs], similarity[pairs], num_tracks, len(scores))
        for track in range(num_tracks):
            if matches[track] >= 0:
                track_of[matches[track]] = track
                is_matched[track] = True
    return track_of


@njit(cache=True)
def _candidates(
    visible_xyxy: Floats, whole_xyxy: Floats, unseen_s: Floats, boxes_xyxy: Floats, ranked: Ints,
    with_masks: bool, least_iou: float,
) -> tuple[Ints, Ints, Floats]:  # fmt: skip
    """Pairs that overlap by least_iou: track, detection and overlap, each (P,). Where masks can tell whose part it is,
    a lost track's counts as what it would be if the rest were still hidden.
    """
    track_idx, detection_idx, iou = sweep_sorted(
        visible_xyxy, np.argsort(visible_xyxy[:, 0], kind="mergesort"), boxes_xyxy, ranked,
        min(least_iou, LEAST_OVERLAP) if with_masks else least_iou,
    )  # fmt: skip
    if not with_masks:
        return track_idx, detection_idx, iou
    num_kept = 0
    for k in range(len(iou)):
        overlap = iou[k]
        if unseen_s[track_idx[k]] > 0.0:
            overlap = max(overlap, cut_overlap(whole_xyxy, track_idx[k], boxes_xyxy, detection_idx[k]))
        if overlap >= least_iou:
            track_idx[num_kept] = track_idx[k]
            detection_idx[num_kept] = detection_idx[k]
            iou[num_kept] = overlap
            num_kept += 1
    return track_idx[:num_kept], detection_idx[:num_kept], iou[:num_kept]


@njit(cache=True)
def _similarity(
    tracks: Table, latest_xyxy: Floats, unseen_s: Floats, boxes_xyxy: Floats, scores: Floats, mask_bits: Bits,
    track_idx: Ints, detection_idx: Ints, iou: Floats, same_class: NDArray[np.bool_],
    with_masks: bool, rules: Table,
) -> Floats:  # fmt: skip
    """(P,): the overlap of the boxes, mixed with the IoU of the masks for pairs of one class that compete with another
    pair, times the trust in the track's place; of boxes alone also times the score of the detection, which of masks
    says no more than how much of the object is hidden.
    """
    rule = rules[0]
    rivals_of_track = np.zeros(len(latest_xyxy), np.int64)
    rivals_of_detection = np.zeros(len(scores), np.int64)
    if with_masks:
        for k in range(len(iou)):
            if same_class[k]:
                rivals_of_track[track_idx[k]] += 1
                rivals_of_detection[detection_idx[k]] += 1
    similarity = np.empty(len(iou), np.float64)
    for k in range(len(iou)):
        track, detection = track_idx[k], detection_idx[k]
        value = iou[k]
        if same_class[k] and (rivals_of_track[track] > 1 or rivals_of_detection[detection] > 1):
            mask_iou = _mask_iou(tracks, latest_xyxy, track, mask_bits, boxes_xyxy, detection)
            value += rule["mask_weight"] * (mask_iou - value)
        # what was seen just now is where it is predicted to be, what was lost for long may be anywhere
        trust = 1.0 - rule["lost_discount"] * min(unseen_s[track] / max(rule["lost_s"], 1e-9), 1.0)
        similarity[k] = value * trust
        if not with_masks:
            similarity[k] *= scores[detection]
    return similarity


@njit(cache=True)
def _mask_iou(
    tracks: Table, latest_xyxy: Floats, track: int, mask_bits: Bits, boxes_xyxy: Floats, detection: int
) -> float:
    """Of the track's latest mask, moved with its box, and the mask of the detection."""
    masks = tracks["mask"]
    shared = shared_area(masks, latest_xyxy, track, mask_bits, boxes_xyxy, detection)
    both = mask_area(masks, latest_xyxy, track) + mask_area(mask_bits, boxes_xyxy, detection)
    return float(shared / (both - shared)) if shared > 0.0 else 0.0
