"""The life of a track and its association; what holds for any input and the checkpoint have files of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tracker_cases import CONFIG, crowd, detections, moving_box

from pipeline.tracker import Tracker, TrackerConfig, TrackSpan

ROOT = Path(__file__).resolve().parents[2]

# life of a track


def test_an_id_is_given_after_the_time_of_confirmation() -> None:
    tracker = Tracker(TrackerConfig(confirm_s=0.1))
    box = [100, 100, 160, 220]
    results = [tracker.update(detections([box], 0.5), seq, seq / 30) for seq in range(1, 6)]
    assert [result.track_ids.tolist() for result in results] == [[0], [0], [0], [1], [1]]
    assert [result.states for result in results] == [["tentative"]] * 3 + [["confirmed"]] * 2
    assert [result.ages_frames.tolist() for result in results] == [[1], [2], [3], [4], [5]]
    assert [result.started for result in results] == [[], [], [], [TrackSpan(1, 1, 1, 4)], []]
    assert tracker.num_confirmed == 1


@pytest.mark.parametrize(
    ("scores", "first_seq"),
    # at 20 frames a second, of 0.2 s: all at 0.5, half at 0.75, none at 1; two detections in any case
    [([0.5] * 6, 5), ([0.75] * 6, 3), ([0.5, 1.0] * 3, 4), ([1.0] * 6, 2), ([0.5, 0.5, 0.5, 1.0, 1.0, 1.0], 4)],
)
def test_sure_detections_give_an_id_sooner(scores: list[float], first_seq: int) -> None:
    tracker = Tracker(TrackerConfig(confirm_s=0.2))
    results = [tracker.update(detections([[0, 0, 50, 50]], score), n, n / 20) for n, score in enumerate(scores, 1)]
    assert [result.started for result in results].index([TrackSpan(1, 1, 1, first_seq)]) == first_seq - 1


def test_two_detections_are_needed_however_long_the_step() -> None:
    tracker = Tracker(TrackerConfig(confirm_s=0.0))
    assert tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0).track_ids.tolist() == [0]
    assert tracker.update(detections([[0, 0, 50, 50]]), 2, 1.0).track_ids.tolist() == [1]


def test_a_tentative_track_that_is_not_seen_again_leaves_no_trace() -> None:
    tracker = Tracker(CONFIG)
    tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0)
    ended = [span for seq in range(2, 5) for span in tracker.update(detections([]), seq, seq / 10).ended]
    assert tracker.update(detections([[0, 0, 50, 50]]), 5, 0.5).ages_frames.tolist() == [1]
    assert (ended, tracker.finish(), tracker.num_confirmed) == ([], [], 0)


@pytest.mark.parametrize(("pause_s", "id_after"), [(1.4, 1), (1.7, 2)], ids=["shorter", "longer"])
@pytest.mark.parametrize("fps", [30, 5])
@pytest.mark.parametrize("updates", ["empty frames", "no frames"])
def test_an_occlusion_shorter_than_the_lost_time_keeps_the_id(
    pause_s: float, id_after: int, fps: int, updates: str
) -> None:
    tracker = Tracker(TrackerConfig(lost_s=1.5))
    ended = []
    for frame in range(5 * fps):
        time_s = frame / fps
        box = moving_box(time_s, (100, 100), (40, 10))
        if 1.0 < time_s < 1.0 + pause_s:
            if updates == "empty frames":
                ended += tracker.update(detections([]), frame + 1, time_s).ended
            continue
        result = tracker.update(detections([box]), frame + 1, time_s)
        ended += result.ended
    assert result.track_ids.tolist() == [id_after]
    assert ended == ([] if id_after == 1 else [TrackSpan(1, 1, 1, fps + 1)])


def test_finish_ends_every_confirmed_track() -> None:
    tracker = Tracker(CONFIG)
    for seq in range(1, 10):
        boxes = [[0, 0, 50, 50], [200, 0, 250, 50], [400, 0, 450, 50]][: 3 if seq == 9 else 2]
        tracker.update(detections(boxes, class_ids=[1, 3, 1][: len(boxes)]), seq, seq / 10)
    assert tracker.finish() == [TrackSpan(1, 1, 1, 9), TrackSpan(2, 3, 1, 9)]
    assert tracker.finish() == []
    results = [tracker.update(detections([[0, 0, 50, 50]]), seq, seq / 10) for seq in range(10, 14)]
    assert results[-1].track_ids.tolist() == [3]


# association


@pytest.mark.parametrize("fps", [30, 10, 5])
def test_ids_do_not_depend_on_the_frame_rate(fps: int) -> None:
    tracker = Tracker(CONFIG)
    ways = [((100, 100), (90, 0)), ((900, 300), (-70, 30)), ((500, 700), (0, -100)), ((1200, 200), (20, 60))]
    rng = np.random.default_rng(8)
    ids = []
    for frame in range(4 * fps):
        boxes = [moving_box(frame / fps, *way) + rng.normal(0, 1, 4) for way in ways]
        ids.append(tracker.update(detections(boxes), frame + 1, frame / fps).track_ids.tolist())
    assert sorted(ids[-1]) == [1, 2, 3, 4]
    assert all(later == ids[-1] for later in ids[fps // 2 :])


@pytest.mark.parametrize("fps", [30, 10, 5])
@pytest.mark.parametrize("overlap", ["both seen", "one hidden"])
def test_ids_hold_when_two_cross(fps: int, overlap: str) -> None:
    tracker = Tracker(CONFIG)
    ids = {}
    for frame in range(8 * fps):
        time_s = frame / fps
        boxes = [moving_box(time_s, (100, 100), (60, 0)), moving_box(time_s, (520, 110), (-60, 0))]
        hidden = overlap == "one hidden" and abs(boxes[0][0] - boxes[1][0]) < 40
        result = tracker.update(detections(boxes[: 1 if hidden else 2]), frame + 1, time_s)
        ids[time_s] = result.track_ids.tolist()
    assert ids[1.0] == ids[max(ids)] == [1, 2]


def test_a_weak_detection_continues_a_confirmed_track_and_nothing_else() -> None:
    tracker = Tracker(CONFIG)
    confirmed, tentative, nobody = [0, 0, 50, 50], [200, 0, 250, 50], [400, 0, 450, 50]
    for seq in range(1, 6):
        tracker.update(detections([confirmed]), seq, seq / 10)
    tracker.update(detections([confirmed, tentative]), 6, 0.6)
    result = tracker.update(detections([confirmed, tentative, nobody], 0.3), 7, 0.7)
    assert (result.detection_idx.tolist(), result.track_ids.tolist()) == ([0], [1])
    assert len(tracker.update(detections([confirmed], 0.05), 8, 0.8)) == 0
    twice = tracker.update(detections([confirmed, confirmed], [0.9, 0.3]), 9, 0.9)
    assert (twice.detection_idx.tolist(), twice.track_ids.tolist()) == ([0], [1])


def test_a_confirmed_track_chooses_before_a_tentative_one() -> None:
    tracker = Tracker(CONFIG)
    for seq in range(1, 6):
        tracker.update(detections([[0, 0, 100, 100]]), seq, seq / 10)
    tracker.update(detections([[0, 0, 100, 100], [40, 0, 140, 100]]), 6, 0.6)
    assert tracker.update(detections([[25, 0, 125, 100]]), 7, 0.7).track_ids.tolist() == [1]


def test_classes_are_never_mixed() -> None:
    tracker = Tracker(CONFIG)
    for seq in range(1, 6):
        tracker.update(detections([[0, 0, 50, 50]], class_ids=1), seq, seq / 10)
    for seq in range(6, 10):
        result = tracker.update(detections([[0, 0, 50, 50]], class_ids=2), seq, seq / 10)
    assert result.track_ids.tolist() == [2]


def test_a_second_copy_of_a_tracked_object_is_left_out() -> None:
    tracker = Tracker(CONFIG)
    boxes = [[0, 0, 100, 100], [2, 2, 101, 101], [2, 2, 101, 101], [40, 0, 140, 100]]
    for seq in range(1, 5):
        result = tracker.update(detections(boxes, [0.9, 0.8, 0.7, 0.6], [1, 1, 2, 1]), seq, seq / 10)
        assert result.detection_idx.tolist() == [0, 2, 3]
    assert sorted(result.track_ids.tolist()) == [1, 2, 3]


def test_a_part_of_a_tracked_object_is_left_out() -> None:
    """The right third of a car, and a person before the car: the person's pixels are not the car's."""
    car = np.ones((28, 28), bool)
    car[14:, 9:14] = False  # where the person stands
    full = np.ones((28, 28), bool)
    boxes = [[0, 0, 280, 140], [180, 5, 280, 135], [90, 70, 140, 140], [1, 1, 279, 139]]
    cells = [car, full, full, car]
    for class_ids, expected in (([3, 3, 1, 6], [0, 2]), ([3, 3, 3, 3], [0, 2]), ([3, 6, 1, 6], [0, 1, 2])):
        given = detections(boxes, [0.9, 0.8, 0.7, 0.6], class_ids)
        given.mask_bits = np.packbits(np.reshape(cells, (4, -1)), axis=1)
        tracker = Tracker(CONFIG)
        for seq in range(1, 5):
            assert tracker.update(given, seq, seq / 10).detection_idx.tolist() == expected
    given.mask_bits = given.mask_bits[:3]
    with pytest.raises(ValueError, match=r"mask_bits must be \(N, 98\) with N = 4, got \(3, 98\)"):
        tracker.update(given, 9, 1.0)


def test_most_objects_of_a_crowd_keep_their_id() -> None:
    tracker = Tracker(CONFIG)
    for frame in crowd(3):
        result = tracker.update(*frame)
    assert 20 <= tracker.num_confirmed <= 40, "25 objects"
    assert (result.track_ids > 0).sum() >= 15


# time


def test_a_clock_that_stands_still_or_goes_back_breaks_nothing() -> None:
    tracker = Tracker(CONFIG)
    times_s = [0.0, 0.1, 0.2, 0.3, 0.3, 0.25, 0.35, 0.45, -5.0, -4.9, -4.8]
    for seq, time_s in enumerate(times_s, 1):
        result = tracker.update(detections([[0, 0, 50, 50]]), seq, time_s)
    assert result.track_ids.tolist() == [1]
    ended = [tracker.update(detections([]), seq, -50.0 + 0.4 * (seq - 12)).ended for seq in range(12, 17)]
    assert ended == [[], [], [], [], [TrackSpan(1, 1, 1, 11)]]


def test_a_gap_in_the_numbers_counts_into_the_age() -> None:
    tracker = Tracker(CONFIG)
    tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0)
    tracker.update(detections([[0, 0, 50, 50]]), 2, 0.1)
    assert tracker.update(detections([[0, 0, 50, 50]]), 10, 0.9).ages_frames.tolist() == [10]


def test_small_cases_pass_without_the_compiler() -> None:
    """The same functions as plain Python: an index out of range or a fresh value never written would show here."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is that run")
    chosen = (
        "known_values or without_area or fair_pairs or 8x8 or confirmation or cross or weak or copy or part or restored"
    )
    names = ("iou", "mask_overlap", "assignment", "kalman", "tracker", "tracker_properties", "tracker_checkpoint")
    files = [f"tests/unit/test_{name}.py" for name in names]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files],
        cwd=ROOT, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
