"""The figures of MOTChallenge and of MOTS, by the published evaluator, TrackEval.

TrackEval is given the ids and IoUs of each frame, as its own readers would make them: for boxes those of
`MotChallenge2DBox` without preprocessing, for masks those of `MOTSChallenge`. tests/unit/evaluation/test_mot_figures.py
compares the figures with what TrackEval computes from folders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops.iou import box_iou
from pipeline.coco.data import coco_masks
from pipeline.errors import UsageError
from pipeline.evaluation.mot import TrackedFrame
from pipeline.evaluation.motchallenge import IGNORED, PEDESTRIAN, BoxRows, MaskRows, by_frame
from pipeline.evaluation.session import figure

_OF_HOTA = {"hota": "HOTA", "deta": "DetA", "assa": "AssA"}
_OF_CLEAR = {"fp": "CLR_FP", "fn": "CLR_FN", "idsw": "IDSW", "frag": "Frag", "mt": "MT", "ml": "ML"}


def compare_boxes(truth: BoxRows, found: BoxRows, num_frames: int) -> list[TrackedFrame]:
    """By box IoU, without the rows of the truth that are marked with 0."""
    truth = truth.only(truth.values != 0)
    truth_xyxy, found_xyxy = _corners(truth), _corners(found)
    return [
        TrackedFrame(truth.ids[rows], found.ids[cols], box_iou(truth_xyxy[rows], found_xyxy[cols]))
        for rows, cols in zip(by_frame(truth.frames, num_frames), by_frame(found.frames, num_frames), strict=True)
    ]


def compare_masks(truth: MaskRows, found: MaskRows, num_frames: int) -> list[TrackedFrame]:
    """By mask IoU: pedestrians alone. What lies by more than half in an ignored region does not count, as in MOTS
    (Voigtlaender et al. 2019), where the masks of a frame never overlap. Raises UsageError where sizes differ.
    """
    sizes = {tuple(rle["size"]) for rle in (*truth.rles, *found.rles)}
    if len(sizes) > 1:
        raise UsageError(f"masks must be of one size, got {' and '.join(f'{w}x{h}' for h, w in sorted(sizes))}")
    ignored = truth.only(truth.class_ids == IGNORED)
    truth = truth.only(truth.class_ids == PEDESTRIAN)
    found = found.only(found.class_ids == PEDESTRIAN)
    places = zip(*(by_frame(side.frames, num_frames) for side in (truth, found, ignored)), strict=True)
    return [
        _without_ignored(
            TrackedFrame(truth.ids[rows], found.ids[cols], _mask_iou(_picked(truth, rows), _picked(found, cols))),
            _share_inside(_picked(found, cols), _picked(ignored, regions)),
        )
        for rows, cols, regions in places
    ]


class Judge:
    """Collects sequences. Raises UsageError where TrackEval is not installed."""

    def __init__(self, *, of_masks: bool) -> None:
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
        """Judge one sequence: all of its frames, in order."""
        data = _trackeval_data(frames)
        self._results[name] = {kind: metric.eval_sequence(data) for kind, metric in self._metrics.items()}

    def figures(self) -> dict[str, dict[str, float | int | None]]:
        """Of each sequence, for JSON: shares from 0 to 1, MOTA down to any negative number."""
        return {name: self._figures(results) for name, results in self._results.items()}

    def combined(self) -> dict[str, float | int | None]:
        """Of all together: counts are added, and the shares follow from those of all."""
        return self._figures(
            {
                kind: metric.combine_sequences({name: results[kind] for name, results in self._results.items()})
                for kind, metric in self._metrics.items()
            }
        )

    def _figures(self, results: dict[str, Any]) -> dict[str, float | int | None]:
        hota, clear, identity = results["HOTA"], results["CLEAR"], results["Identity"]
        mota = {"motsa": "MOTA", "smotsa": "sMOTA"} if self._of_masks else {"mota": "MOTA"}
        return {
            **{name: figure(float(np.mean(hota[key]))) for name, key in _OF_HOTA.items()},
            "idf1": figure(float(identity["IDF1"])),
            **{name: figure(float(clear[key])) for name, key in mota.items()},
            **{name: int(clear[key]) for name, key in _OF_CLEAR.items()},
            "num_objects": int(clear["CLR_TP"] + clear["CLR_FN"]),
            "num_ids": int(clear["MT"] + clear["PT"] + clear["ML"]),
        }


def _trackeval_data(frames: Sequence[TrackedFrame]) -> dict[str, Any]:
    """What TrackEval's metrics take: ids renumbered from 0 without holes."""
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
    known, places = np.unique(np.concatenate(ids), return_inverse=True)
    return np.split(places, np.cumsum([len(own) for own in ids])[:-1]), len(known)


def _without_ignored(frame: TrackedFrame, inside: NDArray[np.float64]) -> TrackedFrame:
    """inside: (M,), the share of each found mask that lies in ignored regions."""
    # as objects lie outside of these regions, such a mask has less than half in common with any
    keep = inside <= 0.5 + np.finfo(np.float64).eps
    return TrackedFrame(frame.truth_ids, frame.track_ids[keep], frame.ious[:, keep])


def _picked(rows: MaskRows, places: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [rows.rles[place] for place in places.tolist()]


def _mask_iou(truth: list[dict[str, Any]], found: list[dict[str, Any]]) -> NDArray[np.float64]:
    if not (truth and found):
        return np.zeros((len(truth), len(found)))
    return np.asarray(coco_masks().iou(truth, found, [False] * len(found)), np.float64)


def _share_inside(found: list[dict[str, Any]], regions: list[dict[str, Any]]) -> NDArray[np.float64]:
    if not (found and regions):
        return np.zeros(len(found))
    masks = coco_masks()
    return np.asarray(masks.iou(found, [masks.merge(regions, intersect=False)], [True]), np.float64)[:, 0]


def _corners(rows: BoxRows) -> NDArray[np.float64]:
    """left, top, right, bottom in the numbers of the file."""
    return np.concatenate((rows.boxes_ltwh[:, :2], rows.boxes_ltwh[:, :2] + rows.boxes_ltwh[:, 2:]), axis=1)
