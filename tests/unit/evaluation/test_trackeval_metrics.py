"""The metrics of `evaluate mot`: small cases computed by hand, and crowds compared with TrackEval's own evaluation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from support.mot_folders import box_crowd, mask_crowd, official_figures

from pipeline.errors import UsageError
from pipeline.evaluation.clear_mot import tracking_metrics
from pipeline.evaluation.mot_evaluation import MotSettings, evaluate_mot
from pipeline.evaluation.motchallenge import BoxRows, MaskRows, read_boxes
from pipeline.evaluation.trackeval_metrics import TrackEvaluator, compare_boxes, compare_masks

pytestmark = pytest.mark.usefixtures("trackeval")

NUM_FRAMES = 10
HERE, FAR = (1.0, 1.0, 10.0, 10.0), (101.0, 1.0, 10.0, 10.0)
SHIFTED = (3.0, 1.0, 10.0, 10.0)
"""IoU with HERE: 80 / 120"""

Track = tuple[int, tuple[float, float, float, float], list[int]]
ALL = list(range(1, NUM_FRAMES + 1))


def rows_of(*tracks: Track, value: float = 1.0) -> BoxRows:
    """Return the rows of tracks, each given as (id, box, frames)."""
    frames = [frame for _, _, own in tracks for frame in own]
    return BoxRows(
        np.array(frames, np.int64),
        np.array([track_id for track_id, _, own in tracks for _ in own], np.int64),
        np.array([box for _, box, own in tracks for _ in own], np.float64).reshape(-1, 4),
        np.full(len(frames), value),
    )


def evaluated(found: dict[str, BoxRows], truth: BoxRows) -> TrackEvaluator:
    evaluator = TrackEvaluator(of_masks=False)
    for name, rows in found.items():
        evaluator.add(name, compare_boxes(truth, rows, NUM_FRAMES))
    return evaluator


# The ground truth is one object on ten frames. HOTA is the square root of DetA * AssA, in most cases equal at all
# thresholds. DetA is TP / (TP + FN + FP). AssA of a match is the number of frames where its two ids are matched,
# divided by the number of frames where either id occurs.
CASES: dict[str, tuple[list[Track], dict[str, float]]] = {
    "perfect": (
        [(4, HERE, ALL)],
        {"hota": 1, "deta": 1, "assa": 1, "idf1": 1, "mota": 1, "fp": 0, "fn": 0, "idsw": 0, "frag": 0, "mt": 1},
    ),
    "one switch in the middle": (
        [(4, HERE, ALL[:5]), (9, HERE, ALL[5:])],
        {"hota": 0.5**0.5, "deta": 1, "assa": 0.5, "idf1": 0.5, "mota": 0.9, "fp": 0, "fn": 0, "idsw": 1, "frag": 0},
    ),
    # TrackEval counts no fragmentation for a frame without any track
    "one miss": (
        [(4, HERE, ALL[:4] + ALL[5:])],
        {"hota": 0.9, "deta": 0.9, "assa": 0.9, "idf1": 9 / 9.5, "mota": 0.9, "fp": 0, "fn": 1, "idsw": 0, "frag": 0},
    ),
    "one miss and a false positive on that frame": (
        [(4, HERE, ALL[:4] + ALL[5:]), (9, FAR, [5])],
        {"hota": (9 / 11 * 0.9) ** 0.5, "deta": 9 / 11, "idf1": 0.9, "mota": 0.8, "fp": 1, "fn": 1, "frag": 1},
    ),
    "two false positives": (
        [(4, HERE, ALL), (9, FAR, [3, 4])],
        {"hota": (10 / 12) ** 0.5, "deta": 10 / 12, "assa": 1, "idf1": 10 / 11, "mota": 0.8, "fp": 2, "fn": 0, "mt": 1},
    ),
    "shifted box: a match at 13 of 19 thresholds": (
        [(4, SHIFTED, ALL)],
        {"hota": 13 / 19, "deta": 13 / 19, "assa": 13 / 19, "idf1": 1, "mota": 1, "fp": 0, "fn": 0},
    ),
    "tracked in two frames of ten": (
        [(4, HERE, [1, 2])],
        {"hota": 0.2, "idf1": 4 / 12, "mota": 0.2, "fn": 8, "mt": 0, "ml": 0},
    ),
    "false positives only": (
        [(4, FAR, ALL)],
        {"hota": 0, "idf1": 0, "mota": -1, "fp": 10, "fn": 10, "mt": 0, "ml": 1},
    ),
    "no track": ([], {"hota": 0, "idf1": 0, "mota": 0, "fp": 0, "fn": 10, "mt": 0, "ml": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_metrics_by_hand(name: str) -> None:
    tracks, expected = CASES[name]
    (metrics,) = evaluated({"a": rows_of(*tracks)}, rows_of((1, HERE, ALL))).metrics().values()
    # metrics are rounded to 6 digits
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert (metrics["num_objects"], metrics["num_ids"]) == (10, 1)


def test_sequences_are_combined_by_their_counts() -> None:
    truth = rows_of((1, HERE, ALL))
    evaluator = evaluated({name: rows_of(*CASES[name][0]) for name in ("perfect", "one switch in the middle")}, truth)
    combined = evaluator.combined()
    expected = {"hota": 0.75**0.5, "deta": 1, "assa": 0.75, "idf1": 0.75, "mota": 0.95, "idsw": 1, "mt": 2}
    assert {key: combined[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert (combined["num_objects"], combined["num_ids"]) == (20, 2)


def test_a_row_with_flag_0_is_ignored_and_its_track_is_a_false_positive() -> None:
    kept, marked = rows_of((1, HERE, ALL)), rows_of((2, FAR, ALL), value=0.0)
    truth = BoxRows(
        *(
            np.concatenate((getattr(kept, name), getattr(marked, name)))
            for name in ("frames", "ids", "boxes_ltwh", "values")
        )
    )
    (metrics,) = evaluated({"a": rows_of((4, HERE, ALL), (5, FAR, [1]))}, truth).metrics().values()
    assert (metrics["num_objects"], metrics["fp"], metrics["fn"]) == (10, 1, 0)


def test_masks_of_two_sizes_are_refused() -> None:
    def one(width: int) -> MaskRows:
        one, two = np.array([1]), np.array([2])
        return MaskRows(one, one, two, [{"size": [4, width], "counts": b"00"}])

    with pytest.raises(UsageError, match="masks must have one size, got 5x4 and 6x4"):
        compare_masks(one(5), one(6), 1)


# -- comparison with TrackEval on files -------------------------------------------------------------------------------


def ours(truth: Path, results: Path) -> dict[str, Any]:
    settings = MotSettings(truth=truth, det=None, results=(results,), labels=("person",), output=None)
    result = evaluate_mot(settings)
    return result["sequences"] | {"combined": result["combined"]}


def test_metrics_of_boxes_equal_trackevals(tmp_path: Path, trackeval: ModuleType) -> None:
    truth, results = box_crowd(tmp_path)
    found = ours(truth, results)
    assert found == official_figures(trackeval.datasets.MotChallenge2DBox, truth, results)
    assert found["empty"]["fn"] == found["empty"]["num_objects"] > 0
    assert min(found["combined"][name] for name in ("fp", "fn", "idsw", "frag", "mt", "ml")) > 0


def test_metrics_of_masks_equal_trackevals(tmp_path: Path, trackeval: ModuleType) -> None:
    truth, results = mask_crowd(tmp_path)
    found = ours(truth, results)
    assert found == official_figures(trackeval.datasets.MOTSChallenge, truth, results)
    assert min(found["combined"][name] for name in ("fp", "fn", "idsw", "frag")) > 0


def test_mota_and_idf1_of_evaluate_video_equal_trackevals(tmp_path: Path) -> None:
    truth, results = box_crowd(tmp_path)
    frames = compare_boxes(read_boxes(truth / "a" / "gt" / "gt.txt"), read_boxes(results / "a.txt"), 30)
    evaluator = TrackEvaluator(of_masks=False)
    evaluator.add("a", frames)
    (metrics,) = evaluator.metrics().values()
    own = tracking_metrics(frames)
    assert (own.num_missed, own.num_false, own.num_switches) == (metrics["fn"], metrics["fp"], metrics["idsw"])
    assert (round(own.mota, 6), round(own.idf1, 6)) == (metrics["mota"], metrics["idf1"])
