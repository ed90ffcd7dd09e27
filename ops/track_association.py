"""Association of detections with tracks: gating by box IoU, similarity with mask IoU, optimal assignment in stages.

Compiled functions, called by `ops.track_step`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.assignment import match_pairs
from ops.iou import Strips, pairs_in_strips
from ops.jit import njit
from ops.mask_overlap import mask_area, shared_area
from ops.track_boxes import PredictedBoxes, truncated_iou
from ops.track_tables import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bits = NDArray[np.uint8]
Scores = NDArray[np.float32]
Classes = NDArray[np.int32]

NUM_STAGES = 5
OTHER_CLASS = 4
"""the last stage: pairs of different classes"""
MIN_LOST_IOU = 0.05
"""lowest box IoU at which a lost track and a detection with a mask are candidates"""


@njit(cache=True, error_model="numpy")
def associate(
    tracks: Table, predicted: PredictedBoxes, boxes_xyxy: Floats, scores: Scores, class_ids: Classes, mask_bits: Bits,
    strips: Strips, rules: Table,
) -> Ints:  # fmt: skip
    """The track of each of N detections, (N,) int64, -1 for none. `strips` is the index of the detections' boxes.

    Confirmed tracks are assigned before tentative ones, and pairs of different classes last. Without masks, high-score
    detections are assigned before low-score ones; with masks, all are assigned together.
    """
    rule = rules[0]
    num_tracks, num_detections = len(predicted.lost_s), len(scores)
    track_of = np.full(num_detections, -1, np.int64)
    with_masks = len(mask_bits) > 0 and rule["mask_weight"] > 0.0
    tracks_idx, detections_idx, iou = _candidates(
        predicted, boxes_xyxy, strips, with_masks, min(rule["high_score_iou"], rule["low_score_iou"], rule["class_iou"])
    )
    if len(iou) == 0:
        return track_of
    same_class = np.empty(len(iou), np.bool_)
    for k in range(len(iou)):
        same_class[k] = tracks[tracks_idx[k]]["class_id"] == class_ids[detections_idx[k]]
    similarity = _similarity(
        tracks, predicted, boxes_xyxy, scores, mask_bits, tracks_idx, detections_idx, iou, same_class, with_masks, rules
    )
    stages = np.empty(len(iou), np.int64)
    for k in range(len(iou)):
        confirmed = tracks[tracks_idx[k]]["track_id"] > 0
        stages[k] = _stage(rule, with_masks, same_class[k], confirmed, scores[detections_idx[k]], iou[k])
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
            if stage < OTHER_CLASS or _masks_agree(tracks, predicted, track, mask_bits, boxes_xyxy, detection, rule):
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
def _stage(rule: Any, with_masks: bool, same_class: bool, confirmed: bool, score: float, iou: float) -> int:
    """The stage in which a pair can be matched; NUM_STAGES if it cannot.

    A pair belongs to one stage only: after the optimal matching of its stage, its track or its detection is taken.
    """
    if not same_class:
        allowed = score >= rule["birth_score"] and iou >= rule["class_iou"] and confirmed
        return OTHER_CLASS if allowed else NUM_STAGES
    if with_masks and confirmed and score >= rule["low_score"] and iou >= rule["high_score_iou"]:
        return 0
    if score >= rule["high_score"] and iou >= rule["high_score_iou"]:
        return 0 if confirmed else 1
    if score >= (rule["low_score"] if confirmed else rule["birth_score"]) and iou >= rule["low_score_iou"]:
        return 2 if confirmed else 3
    return NUM_STAGES


@njit(cache=True, error_model="numpy")
def _masks_agree(
    tracks: Table, predicted: PredictedBoxes, track: int, mask_bits: Bits, boxes_xyxy: Floats, detection: int, rule: Any
) -> bool:
    """Whether the mask IoU suffices for a pair of different classes; true without masks."""
    if len(mask_bits) == 0:
        return True
    return bool(_mask_iou(tracks, predicted.latest_xyxy, track, mask_bits, boxes_xyxy, detection) >= rule["class_iou"])


@njit(cache=True, error_model="numpy")
def _candidates(
    predicted: PredictedBoxes, boxes_xyxy: Floats, strips: Strips, with_masks: bool, least_iou: float
) -> tuple[Ints, Ints, Floats]:
    """Candidate pairs whose overlap is at least least_iou: track, detection and overlap, each (P,).

    The overlap is the box IoU. With masks, a lost track uses `truncated_iou` if that is higher, because the object may
    reappear partly occluded.
    """
    tracks_idx, detections_idx, iou = pairs_in_strips(
        predicted.visible_xyxy, boxes_xyxy, strips, min(least_iou, MIN_LOST_IOU) if with_masks else least_iou
    )
    if not with_masks:
        return tracks_idx, detections_idx, iou
    num_kept = 0
    for k in range(len(iou)):
        overlap = iou[k]
        if predicted.lost_s[tracks_idx[k]] > 0.0:
            overlap = max(overlap, truncated_iou(predicted.whole_xyxy, tracks_idx[k], boxes_xyxy, detections_idx[k]))
        if overlap >= least_iou:
            tracks_idx[num_kept] = tracks_idx[k]
            detections_idx[num_kept] = detections_idx[k]
            iou[num_kept] = overlap
            num_kept += 1
    return tracks_idx[:num_kept], detections_idx[:num_kept], iou[:num_kept]


@njit(cache=True, error_model="numpy")
def _similarity(
    tracks: Table, predicted: PredictedBoxes, boxes_xyxy: Floats, scores: Scores, mask_bits: Bits,
    tracks_idx: Ints, detections_idx: Ints, iou: Floats, same_class: NDArray[np.bool_],
    with_masks: bool, rules: Table,
) -> Floats:  # fmt: skip
    """(P,) similarity of the candidate pairs.

    The similarity is the overlap of the boxes, blended with the mask IoU for pairs of the same class that compete with
    another pair, times a factor that falls while the track is lost. Without masks it is also multiplied by the score of
    the detection; with masks it is not, because a low score then mainly indicates occlusion.
    """
    rule = rules[0]
    similarity = np.empty(len(iou))
    # The prediction is less reliable the longer a track has been lost.
    lost_factor = np.empty(len(predicted.lost_s))
    for track in range(len(lost_factor)):
        lost_factor[track] = 1.0 - rule["lost_discount"] * min(predicted.lost_s[track] / max(rule["lost_s"], 1e-9), 1.0)
    if not with_masks:
        for k in range(len(iou)):
            similarity[k] = iou[k] * lost_factor[tracks_idx[k]] * scores[detections_idx[k]]
        return similarity
    rivals_of_track, rivals_of_detection = np.zeros(len(lost_factor), np.int64), np.zeros(len(scores), np.int64)
    for k in range(len(iou)):
        rivals_of_track[tracks_idx[k]] += same_class[k]
        rivals_of_detection[detections_idx[k]] += same_class[k]
    for k in range(len(iou)):
        track, detection = tracks_idx[k], detections_idx[k]
        value = iou[k]
        if same_class[k] and (rivals_of_track[track] > 1 or rivals_of_detection[detection] > 1):
            mask_iou = _mask_iou(tracks, predicted.latest_xyxy, track, mask_bits, boxes_xyxy, detection)
            value += rule["mask_weight"] * (mask_iou - value)
        similarity[k] = value * lost_factor[track]
    return similarity


@njit(cache=True, error_model="numpy")
def _mask_iou(
    tracks: Table, latest_xyxy: Floats, track: int, mask_bits: Bits, boxes_xyxy: Floats, detection: int
) -> float:
    """IoU of the track's latest mask, moved with its box, and the mask of the detection."""
    masks = tracks["mask"]
    shared = shared_area(masks, latest_xyxy, track, mask_bits, boxes_xyxy, detection)
    areas = mask_area(masks, latest_xyxy, track) + mask_area(mask_bits, boxes_xyxy, detection)
    return float(shared / (areas - shared)) if shared > 0.0 else 0.0
