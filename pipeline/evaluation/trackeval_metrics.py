"""The metrics of MOTChallenge and of MOTS, computed by TrackEval, their published evaluator.

TrackEval receives the ids and IoUs of each frame, as its own dataset classes would compute them: those of
`MotChallenge2DBox` without preprocessing for boxes, those of `MOTSChallenge` for masks.
tests/unit/evaluation/test_trackeval_metrics.py compares the metrics with those that TrackEval computes from files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.iou import box_iou
from pipeline.coco.annotations import coco_masks
from pipeline.errors import UsageError
from pipeline.evaluation.clear_mot import TrackedFrame
from pipeline.evaluation.motchallenge import IGNORED, PEDESTRIAN, BoxRows, MaskRows, by_frame
from pipeline.evaluation.report_files import json_number

_HOTA_NAMES = {"hota": "HOTA", "deta": "DetA", "assa": "AssA"}
_CLEAR_NAMES = {"fp": "CLR_FP", "fn": "CLR_FN", "idsw": "IDSW", "frag": "Frag", "mt": "MT", "ml": "ML"}


def compare_boxes(truth: BoxRows, found: BoxRows, num_frames: int) -> list[TrackedFrame]:
    """The box IoUs of each frame. Rows of the ground truth whose seventh column is 0 do not count."""
    truth = truth.only(truth.values != 0)
    truth_xyxy, found_xyxy = _corners(truth), _corners(found)
    return [
        TrackedFrame(truth.ids[rows], found.ids[cols], box_iou(truth_xyxy[rows], found_xyxy[cols]))
        for rows, cols in zip(by_frame(truth.frames, num_frames), by_frame(found.frames, num_frames), strict=True)
    ]


def compare_masks(truth: MaskRows, found: MaskRows, num_frames: int) -> list[TrackedFrame]:
    """The mask IoUs of the pedestrians of each frame, as MOTS defines them (Voigtlaender et al. 2019).

    A track instance with more than half of its pixels in an ignored region does not count. The masks of a frame must
    not overlap, as in MOTS. Raises UsageError if the masks have different sizes.
    """
    sizes = {tuple(rle["size"]) for rle in (*truth.rles, *found.rles)}
    if len(sizes) > 1:
        raise UsageError(f"masks must have one size, got {' and '.join(f'{w}x{h}' for h, w in sorted(sizes))}")
    ignored = truth.only(truth.class_ids == IGNORED)
    truth = truth.only(truth.class_ids == PEDESTRIAN)
    found = found.only(found.class_ids == PEDESTRIAN)
    indices = zip(*(by_frame(side.frames, num_frames) for side in (truth, found, ignored)), strict=True)
    return [
        _without_ignored(
            TrackedFrame(truth.ids[rows], found.ids[cols], _mask_iou(_rles_at(truth, rows), _rles_at(found, cols))),
            _share_in_regions(_rles_at(found, cols), _rles_at(ignored, regions)),
        )
        for rows, cols, regions in indices
    ]


class TrackEvaluator:
    """Evaluates sequences with TrackEval, one after the other."""

    def __init__(self, *, of_masks: bool) -> None:
        """of_masks: whether the IoUs are those of masks. Raises UsageError if TrackEval is not installed."""
        try:
            import trackeval
            from trackeval.metrics import CLEAR, HOTA, Identity
        except ImportError:
            raise UsageError("evaluate mot needs TrackEval: pip install 'maskstream[mot]'") from None
        self.version: str = trackeval.__version__
        self._metrics = {
            "HOTA": HOTA(),
            "CLEAR": CLEAR({"PRINT_CONFIG": False}),
            "Identity": Identity({"PRINT_CONFIG": False}),
        }
        self._results: dict[str, dict[str, Any]] = {}
        self._of_masks = of_masks

    def add(self, name: str, frames: Sequence[TrackedFrame]) -> None:
        """Evaluates one sequence: all of its frames, in order."""
        data = _trackeval_data(frames)
        self._results[name] = {kind: metric.eval_sequence(data) for kind, metric in self._metrics.items()}

    def metrics(self) -> dict[str, dict[str, float | int | None]]:
        """The metrics of each sequence by its name, for JSON. MOTA may be negative; the other ratios are 0 to 1."""
        return {name: self._metric_values(results) for name, results in self._results.items()}

    def combined(self) -> dict[str, float | int | None]:
        """The metrics of all sequences together: counts are summed, and ratios are computed from the sums."""
        return self._metric_values(
            {
                kind: metric.combine_sequences({name: results[kind] for name, results in self._results.items()})
                for kind, metric in self._metrics.items()
            }
        )

    def _metric_values(self, results: dict[str, Any]) -> dict[str, float | int | None]:
        hota, clear, identity = results["HOTA"], results["CLEAR"], results["Identity"]
        mota = {"motsa": "MOTA", "smotsa": "sMOTA"} if self._of_masks else {"mota": "MOTA"}
        return {
            **{name: json_number(float(np.mean(hota[key]))) for name, key in _HOTA_NAMES.items()},
            "idf1": json_number(float(identity["IDF1"])),
            **{name: json_number(float(clear[key])) for name, key in mota.items()},
            **{name: int(clear[key]) for name, key in _CLEAR_NAMES.items()},
            "num_objects": int(clear["CLR_TP"] + clear["CLR_FN"]),
            "num_ids": int(clear["MT"] + clear["PT"] + clear["ML"]),
        }


def _trackeval_data(frames: Sequence[TrackedFrame]) -> dict[str, Any]:
    """The input of TrackEval's metrics: ids are numbered from 0 without gaps."""
    truth_ids, num_truth_ids = _renumbered([frame.truth_ids for frame in frames])
    track_ids, num_track_ids = _renumbered([frame.track_ids for frame in frames])
    return {
        "num_timesteps": len(frames),
        "num_gt_ids": num_truth_ids,
        "num_tracker_ids": num_track_ids,
        "num_gt_dets": sum(map(len, truth_ids)),
        "num_tracker_dets": sum(map(len, track_ids)),
        "gt_ids": truth_ids,
        "tracker_ids": track_ids,
        "similarity_scores": [frame.ious for frame in frames],
    }


def _renumbered(ids: Sequence[NDArray[np.int64]]) -> tuple[list[NDArray[np.int64]], int]:
    """The ids of each frame, numbered from 0 without gaps, and the number of distinct ids."""
    distinct, indices = np.unique(np.concatenate(ids), return_inverse=True)
    return np.split(indices, np.cumsum([len(own) for own in ids])[:-1]), len(distinct)


def _without_ignored(frame: TrackedFrame, share_ignored: NDArray[np.float64]) -> TrackedFrame:
    """The frame without tracks that lie in ignored regions. share_ignored: (M,), share of each mask in such regions."""
    # Objects do not overlap ignored regions, so a mask dropped here cannot match an object: its IoU is below 0.5.
    keep = share_ignored <= 0.5 + np.finfo(np.float64).eps
    return TrackedFrame(frame.truth_ids, frame.track_ids[keep], frame.ious[:, keep])


def _rles_at(rows: MaskRows, indices: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [rows.rles[index] for index in indices.tolist()]


def _mask_iou(truth: list[dict[str, Any]], found: list[dict[str, Any]]) -> NDArray[np.float64]:
    if not (truth and found):
        return np.zeros((len(truth), len(found)))
    return np.asarray(coco_masks().iou(truth, found, [False] * len(found)), np.float64)


def _share_in_regions(found: list[dict[str, Any]], regions: list[dict[str, Any]]) -> NDArray[np.float64]:
    if not (found and regions):
        return np.zeros(len(found))
    masks = coco_masks()
    return np.asarray(masks.iou(found, [masks.merge(regions, intersect=False)], [True]), np.float64)[:, 0]


def _corners(rows: BoxRows) -> NDArray[np.float64]:
    """(N, 4): left, top, right, bottom, with pixels numbered from 1 as in the file."""
    return np.concatenate((rows.boxes_ltwh[:, :2], rows.boxes_ltwh[:, :2] + rows.boxes_ltwh[:, 2:]), axis=1)
