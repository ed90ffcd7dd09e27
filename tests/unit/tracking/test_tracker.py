"""Life cycle and association of tracks. Invariants and the checkpoint are tested in files of their own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from support.tracker_cases import CONFIG, assert_equal, brief, crowd, detections, moving_box

from ops.track_step import step_tracks
from ops.track_tables import TRACK
from pipeline.contract.arrays import Detections
from pipeline.tracking.mask_tracker import MaskTracker
from pipeline.tracking.tracker import TrackerConfig

# life of a track


def test_a_track_is_confirmed_after_confirm_s() -> None:
    tracker = MaskTracker(TrackerConfig(confirm_s=0.1))
    box = [100, 100, 160, 220]
    results = [tracker.update(detections([box], 0.85), seq, seq / 30) for seq in range(1, 6)]
    assert [result.track_ids.tolist() for result in results] == [[0], [0], [0], [1], [1]]
    assert [result.states for result in results] == [["tentative"]] * 3 + [["confirmed"]] * 2
    assert [result.ages_frames.tolist() for result in results] == [[1], [2], [3], [4], [5]]
    assert [brief(result.started) for result in results] == [[], [], [], [(1, 1, 1, 4)], []]
    assert tracker.num_confirmed == 1


@pytest.mark.parametrize(
    ("scores", "first_seq"),
    # At 20 frames per second. The time to confirmation is 0.1 s at a mean score of 0.85, a third of it at 0.925, three
    # times as long at 0.775 and 0 at 1. At 0.7 a track is never confirmed. At least two detections are required.
    [
        ([0.85] * 9, 3),
        ([0.925] * 9, 2),
        ([0.775] * 9, 7),
        ([1.0] * 9, 2),
        ([0.7, 1.0] * 5, 4),
        ([0.7] * 9, None),
        ([0.6] * 4 + [1.0] * 5, 8),
    ],
)
def test_high_scores_confirm_a_track_sooner(scores: list[float], first_seq: int | None) -> None:
    tracker = MaskTracker(TrackerConfig(confirm_s=0.1))
    results = [tracker.update(detections([[0, 0, 50, 50]], score), n, n / 20) for n, score in enumerate(scores, 1)]
    started = [(seq, brief(result.started)) for seq, result in enumerate(results, 1) if result.started]
    assert started == ([] if first_seq is None else [(first_seq, [(1, 1, 1, first_seq)])])
    assert all(len(result) == 1 for result in results), "shown from the first, with an id or without"


def test_two_detections_are_needed_however_long_the_step() -> None:
    tracker = MaskTracker(TrackerConfig(confirm_s=0.0))
    assert tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0).track_ids.tolist() == [0]
    assert tracker.update(detections([[0, 0, 50, 50]]), 2, 1.0).track_ids.tolist() == [1]


def test_a_tentative_track_that_is_not_detected_again_is_removed() -> None:
    tracker = MaskTracker(CONFIG)
    tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0)
    ended = [span for seq in range(2, 5) for span in tracker.update(detections([]), seq, seq / 10).ended]
    assert tracker.update(detections([[0, 0, 50, 50]]), 5, 0.5).ages_frames.tolist() == [1]
    assert (ended, tracker.finish(), tracker.num_confirmed) == ([], [], 0)


@pytest.mark.parametrize(("pause_s", "id_after"), [(1.4, 1), (1.7, 2)], ids=["shorter", "longer"])
@pytest.mark.parametrize("fps", [30, 5])
@pytest.mark.parametrize("updates", ["empty frames", "no frames"])
def test_an_occlusion_shorter_than_lost_s_keeps_the_id(pause_s: float, id_after: int, fps: int, updates: str) -> None:
    tracker = MaskTracker(TrackerConfig(lost_s=1.5))
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
    assert brief(ended) == ([] if id_after == 1 else [(1, 1, 1, fps + 1)])


def test_finish_ends_every_confirmed_track() -> None:
    tracker = MaskTracker(CONFIG)
    for seq in range(1, 10):
        boxes = [[0, 0, 50, 50], [200, 0, 250, 50], [400, 0, 450, 50]][: 3 if seq == 9 else 2]
        tracker.update(detections(boxes, class_ids=[1, 3, 1][: len(boxes)]), seq, seq / 10)
    assert brief(tracker.finish()) == [(1, 1, 1, 9), (2, 3, 1, 9)]
    assert tracker.finish() == []
    results = [tracker.update(detections([[0, 0, 50, 50]]), seq, seq / 10) for seq in range(10, 14)]
    assert results[-1].track_ids.tolist() == [3]


# association


@pytest.mark.parametrize("fps", [30, 10, 5])
def test_ids_do_not_depend_on_the_frame_rate(fps: int) -> None:
    tracker = MaskTracker(CONFIG)
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
def test_ids_are_kept_when_two_objects_cross(fps: int, overlap: str) -> None:
    tracker = MaskTracker(CONFIG)
    ids = {}
    for frame in range(8 * fps):
        time_s = frame / fps
        boxes = [moving_box(time_s, (100, 100), (60, 0)), moving_box(time_s, (520, 110), (-60, 0))]
        hidden = overlap == "one hidden" and abs(boxes[0][0] - boxes[1][0]) < 40
        result = tracker.update(detections(boxes[: 1 if hidden else 2]), frame + 1, time_s)
        ids[time_s] = result.track_ids.tolist()
    assert ids[1.0] == ids[max(ids)] == [1, 2]


def test_a_low_score_detection_continues_only_a_confirmed_track() -> None:
    tracker = MaskTracker(CONFIG)
    confirmed, tentative, untracked = [0, 0, 50, 50], [200, 0, 250, 50], [400, 0, 450, 50]
    for seq in range(1, 6):
        tracker.update(detections([confirmed]), seq, seq / 10)
    tracker.update(detections([confirmed, tentative]), 6, 0.6)
    result = tracker.update(detections([confirmed, tentative, untracked], 0.3), 7, 0.7)
    assert (result.detection_idx.tolist(), result.track_ids.tolist()) == ([0], [1])
    assert len(tracker.update(detections([confirmed], 0.05), 8, 0.8)) == 0
    twice = tracker.update(detections([confirmed, confirmed], [0.9, 0.3]), 9, 0.9)
    assert (twice.detection_idx.tolist(), twice.track_ids.tolist()) == ([0], [1])


def test_a_confirmed_track_is_assigned_before_a_tentative_one() -> None:
    tracker = MaskTracker(CONFIG)
    for seq in range(1, 6):
        tracker.update(detections([[0, 0, 100, 100]]), seq, seq / 10)
    tracker.update(detections([[0, 0, 100, 100], [40, 0, 140, 100]]), 6, 0.6)
    assert tracker.update(detections([[25, 0, 125, 100]]), 7, 0.7).track_ids.tolist() == [1]


def test_a_track_has_the_class_that_most_detections_voted_for() -> None:
    tracker = MaskTracker(CONFIG)
    seen = []
    for seq, class_id in enumerate([3, 3, 8, 3, 8, 8, 8, 8], 1):
        result = tracker.update(detections([[0, 0, 50, 50]], class_ids=class_id), seq, seq / 10)
        seen.append((result.track_ids.tolist(), result.class_ids.tolist()))
    # with equal votes the class does not change
    assert seen == [([0], [3])] + [([1], [3])] * 5 + [([1], [8])] * 2
    assert brief(tracker.finish()) == [(1, 8, 1, 8)]


def test_more_classes_than_a_track_stores() -> None:
    tracker = MaskTracker(CONFIG)
    for seq, class_id in enumerate([1, 1, 1, 2, 3, 4, 5, 6, 7, 1], 1):
        result = tracker.update(detections([[0, 0, 50, 50]], class_ids=class_id), seq, seq / 10)
    assert (result.track_ids.tolist(), result.class_ids.tolist()) == ([1], [1])


def masked(boxes: list[list[int]], cells: list[NDArray[np.bool_]], class_ids: ArrayLike = 1) -> Detections:
    given = detections(boxes, class_ids=class_ids)
    given.mask_bits = np.packbits(np.reshape(cells, (len(boxes), -1)), axis=1)
    return given


UPPER, LOWER = np.zeros((28, 28), bool), np.zeros((28, 28), bool)
UPPER[:14], LOWER[14:] = True, True


def test_a_rider_does_not_become_the_bicycle() -> None:
    """Rider and bicycle have the same box, but not the same pixels."""
    tracker = MaskTracker(CONFIG)
    box = [0, 0, 60, 120]
    for seq in range(1, 6):
        tracker.update(masked([box], [UPPER], 1), seq, seq / 10)
    result = tracker.update(masked([box], [LOWER], 2), 6, 0.6)
    assert (result.track_ids.tolist(), result.class_ids.tolist()) == ([0], [2])


def test_masks_decide_between_competing_boxes() -> None:
    """Two objects with overlapping boxes swap positions; with boxes alone, each would get the other's ID."""
    boxes = [[0, 0, 100, 100], [30, 0, 130, 100]]
    for weight, expected in ((0.0, [2, 1]), (0.5, [1, 2])):
        tracker = MaskTracker(TrackerConfig(mask_weight=weight))
        for seq in range(1, 6):
            tracker.update(masked(boxes, [UPPER, LOWER]), seq, seq / 10)
        crossed = tracker.update(masked([[20, 0, 120, 100], [10, 0, 110, 100]], [UPPER, LOWER]), 6, 0.6)
        assert crossed.track_ids.tolist() == expected


def test_the_path_follows_the_centroid_of_the_mask() -> None:
    tracker = MaskTracker(CONFIG)
    for seq in range(1, 4):
        started = tracker.update(masked([[10 * seq, 0, 10 * seq + 56, 112]], [LOWER]), seq, seq / 10).started
        if started:
            assert started[0].path == [(1, 38.0, 84.0), (2, 48.0, 84.0)]
    (span,) = tracker.finish()
    assert span.path == [(1, 38.0, 84.0), (2, 48.0, 84.0), (3, 58.0, 84.0)]
    assert (span.num_detections, span.duration_s) == (3, pytest.approx(0.2))
    assert span.mean_score == pytest.approx(0.9)


@pytest.mark.parametrize("num_frames", [2, 15, 16, 17, 40, 1000])
def test_a_long_path_is_thinned_evenly(num_frames: int) -> None:
    tracker = MaskTracker(CONFIG)
    for seq in range(1, num_frames + 1):
        tracker.update(detections([[seq, 0, seq + 50, 50]], 0.95), seq, seq / 25)
    (span,) = tracker.finish()
    seqs = [seq for seq, _, _ in span.path]
    assert (seqs[0], seqs[-1]) == (1, num_frames)
    assert len(seqs) <= 17
    steps = np.diff(seqs)
    assert len(set(steps[:-1].tolist())) <= 1
    assert steps[-1] <= steps[0]
    assert len(seqs) >= min(num_frames, 8)
    assert [(x, y) for _, x, y in span.path] == [(seq + 25, 25) for seq in seqs]


def test_a_duplicate_of_a_tracked_object_is_dropped() -> None:
    tracker = MaskTracker(CONFIG)
    boxes = [[0, 0, 100, 100], [2, 2, 101, 101], [2, 2, 101, 101], [40, 0, 140, 100]]
    for seq in range(1, 5):
        result = tracker.update(detections(boxes, [0.98, 0.96, 0.95, 0.9], [1, 1, 2, 1]), seq, seq / 10)
        assert result.detection_idx.tolist() == [0, 2, 3]
    assert sorted(result.track_ids.tolist()) == [1, 2, 3]


def test_a_part_of_a_tracked_object_is_dropped() -> None:
    """The right third of a car is a part of it; a person in front of the car is not, because its pixels are not the
    car's.
    """
    car = np.ones((28, 28), bool)
    car[14:, 9:14] = False  # the pixels of the person
    full = np.ones((28, 28), bool)
    boxes = [[0, 0, 280, 140], [180, 5, 280, 135], [90, 70, 140, 140], [1, 1, 279, 139]]
    cells = [car, full, full, car]
    for class_ids, expected in (([3, 3, 1, 6], [0, 2]), ([3, 3, 3, 3], [0, 2]), ([3, 6, 1, 6], [0, 1, 2])):
        given = detections(boxes, [0.9, 0.8, 0.7, 0.6], class_ids)
        given.mask_bits = np.packbits(np.reshape(cells, (4, -1)), axis=1)
        tracker = MaskTracker(CONFIG)
        for seq in range(1, 5):
            assert tracker.update(given, seq, seq / 10).detection_idx.tolist() == expected
    given.mask_bits = given.mask_bits[:3]
    with pytest.raises(ValueError, match=r"mask_bits must be \(N, 98\) with N = 4, got \(3, 98\)"):
        tracker.update(given, 9, 1.0)


def test_most_objects_of_a_crowd_keep_their_id() -> None:
    tracker = MaskTracker(CONFIG)
    for frame in crowd(3):
        result = tracker.update(*frame)
    assert 20 <= tracker.num_confirmed <= 40, "25 objects"
    assert (result.track_ids > 0).sum() >= 15


def test_read_only_arrays_give_the_same_tracks() -> None:
    """Detections from Redis are read-only arrays; the same compiled code must track them identically."""
    tracker, other = MaskTracker(CONFIG), MaskTracker(CONFIG)
    for given, frame_seq, time_s in crowd(3):
        frozen = copy.deepcopy(given)
        for values in (frozen.boxes_xyxy, frozen.scores, frozen.class_ids):
            values.flags.writeable = False
        assert_equal(tracker.update(given, frame_seq, time_s), other.update(frozen, frame_seq, time_s))
    assert len(step_tracks.signatures) == 1


def test_records_fill_whole_cache_lines() -> None:
    assert TRACK.itemsize % 64 == 0


# time


def test_a_time_that_repeats_or_goes_back_is_accepted() -> None:
    tracker = MaskTracker(CONFIG)
    times_s = [0.0, 0.1, 0.2, 0.3, 0.3, 0.25, 0.35, 0.45, -5.0, -4.9, -4.8]
    for seq, time_s in enumerate(times_s, 1):
        result = tracker.update(detections([[0, 0, 50, 50]]), seq, time_s)
    assert result.track_ids.tolist() == [1]
    ended = [tracker.update(detections([]), seq, -50.0 + 0.4 * (seq - 12)).ended for seq in range(12, 17)]
    assert [brief(spans) for spans in ended] == [[], [], [], [], [(1, 1, 1, 11)]]


def test_a_gap_in_the_frame_numbers_counts_towards_the_age() -> None:
    tracker = MaskTracker(CONFIG)
    tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0)
    tracker.update(detections([[0, 0, 50, 50]]), 2, 0.1)
    assert tracker.update(detections([[0, 0, 50, 50]]), 10, 0.9).ages_frames.tolist() == [10]
