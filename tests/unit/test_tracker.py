from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray

from pipeline.structures import Detections
from pipeline.tracker import TrackedDetections, Tracker, TrackerConfig, TrackSpan

ROOT = Path(__file__).resolve().parents[2]
CONFIG = TrackerConfig()


def detections(boxes_xyxy: ArrayLike, scores: ArrayLike = 0.9, class_ids: ArrayLike = 1) -> Detections:
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    return Detections(
        boxes_xyxy=boxes,
        scores=np.broadcast_to(np.asarray(scores, np.float32), len(boxes)),
        class_ids=np.broadcast_to(np.asarray(class_ids, np.int32), len(boxes)),
        mask_bits=None,
        rle_counts=None,
        width=1920,
        height=1080,
    )


def moving_box(time_s: float, start_xy: tuple[float, float], velocity_xy: tuple[float, float]) -> NDArray[np.float64]:
    """A box of 60 x 120 pixels, velocity in pixels per second."""
    x, y = np.add(start_xy, np.multiply(velocity_xy, time_s))
    return np.array([x, y, x + 60, y + 120])


def crowd(seed: int, num_objects: int = 25, num_frames: int = 60) -> Iterator[tuple[Detections, int, float]]:
    """Objects of two classes on straight ways with noise, misses, weak scores and uneven time steps."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 600, (num_objects, 2))
    velocity = rng.normal(0, 60, (num_objects, 2))
    size = rng.uniform(30, 90, (num_objects, 2))
    class_ids = rng.integers(1, 3, num_objects)
    likeness = rng.uniform(0.5, 0.9, num_objects)
    time_s = 0.0
    for frame_seq in range(1, num_frames + 1):
        corner = start + velocity * time_s
        boxes = np.hstack([corner, corner + size]) + rng.normal(0, 1, (num_objects, 4))
        scores = np.clip(likeness + rng.normal(0, 0.2, num_objects), 0.0, 1.0)
        order = np.argsort(-scores)
        seen = order[rng.random(num_objects) < 0.9]
        yield (
            detections(boxes[seen], scores[seen], class_ids[seen]),
            frame_seq,
            time_s,
        )
        time_s += rng.uniform(0.02, 0.2)


def assert_equal(first: TrackedDetections, second: TrackedDetections) -> None:
    np.testing.assert_array_equal(first.track_ids, second.track_ids)
    np.testing.assert_array_equal(first.ages_frames, second.ages_frames)
    np.testing.assert_array_equal(first.detection_idx, second.detection_idx)
    assert (first.started, first.ended) == (second.started, second.ended)


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


# the border


@pytest.mark.parametrize(
    ("given_detections", "message"),
    [
        (detections([[0.0, 0, 5, 5], [0, np.nan, 5, 5]]), r"finite, got \[0.0, nan, 5.0, 5.0\] .* at place 1"),
        (detections([[0, 0, np.inf, 5]]), "finite, got .* at place 0"),
        (detections([[0, 0, 5, 5]], np.nan), "score nan at place 0"),
        (detections([[5, 0, 0, 5]]), "x2 >= x1 and y2 >= y1, got .* at place 0"),
        (
            Detections(np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros(2, np.int32), None, None, 9, 9),
            "got",
        ),
    ],
    ids=["nan box", "infinite box", "nan score", "inverted box", "lengths differ"],
)
def test_bad_detections_are_refused_and_change_nothing(given_detections: Detections, message: str) -> None:
    tracker = Tracker(CONFIG)
    tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0)
    before = tracker.checkpoint()
    with pytest.raises(ValueError, match=message):
        tracker.update(given_detections, 2, 0.1)
    assert tracker.checkpoint() == before


@pytest.mark.parametrize(("frame_seq", "time_s", "message"), [(5, 1.0, "more than 5, got 5"), (6, np.nan, "time_s")])
def test_a_number_that_does_not_rise_or_a_time_that_is_none_is_refused(
    frame_seq: int, time_s: float, message: str
) -> None:
    tracker = Tracker(CONFIG)
    tracker.update(detections([]), 5, 0.0)
    with pytest.raises(ValueError, match=message):
        tracker.update(detections([]), frame_seq, time_s)


def test_boxes_without_area_are_left_out() -> None:
    tracker = Tracker(CONFIG)
    for seq in range(1, 6):
        result = tracker.update(detections([[5, 5, 5, 5], [0, 0, 50, 50], [7, 0, 7, 90], [0, 7, 90, 7]]), seq, seq / 10)
    assert (result.detection_idx.tolist(), result.track_ids.tolist()) == ([1], [1])


def test_a_low_score_above_the_high_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low_score must not exceed high_score 0\.5, got 0\.6"):
        Tracker(TrackerConfig(low_score=0.6))


# properties

# few places, so that tracks are confirmed and compete; some boxes without area
place = st.tuples(st.sampled_from([0, 12, 60]), st.integers(0, 3), st.sampled_from([30, 34, 0]))
box = place.map(lambda place: (place[0] + place[1], place[1], place[0] + place[1] + place[2], place[1] + 30))
detection = st.tuples(box, st.sampled_from([0.05, 0.3, 0.5, 0.9]), st.integers(1, 2))
frame = st.tuples(st.lists(detection, max_size=8), st.sampled_from([-1.0, 0.0, 0.04, 0.2, 0.2, 2.0]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(frame, max_size=16), st.randoms(use_true_random=False))
def test_any_input_keeps_the_promises(frames, random) -> None:  # type: ignore[no-untyped-def]
    """No id twice in a frame, none used again after its end, and the order of the detections means nothing."""
    tracker, shuffled_tracker = Tracker(CONFIG), Tracker(CONFIG)
    time_s, gone, begun = 0.0, set[int](), set[int]()
    for seq, (found, step_s) in enumerate(frames, 1):
        # twins cannot be told apart, so which of them is shown may follow the order
        found = list(dict.fromkeys(found))
        time_s += step_s
        order = random.sample(range(len(found)), len(found))
        results = []
        for subject, items in ((tracker, found), (shuffled_tracker, [found[place] for place in order])):
            boxes, scores, class_ids = zip(*items, strict=True) if items else ((), (), ())
            results.append(subject.update(detections(boxes, scores, class_ids), seq, time_s))
        result, shuffled = results
        rows = zip(shuffled.detection_idx, shuffled.track_ids, shuffled.ages_frames, strict=True)
        assert sorted((order[place], track_id, age) for place, track_id, age in rows) == [
            *zip(result.detection_idx, result.track_ids, result.ages_frames, strict=True)
        ]
        assert (shuffled.started, shuffled.ended) == (result.started, result.ended)

        ids = result.track_ids[result.track_ids > 0].tolist()
        started, ended = {span.track_id for span in result.started}, {span.track_id for span in result.ended}
        assert len(set(ids)) == len(ids)
        assert started == set(range(len(begun) + 1, len(begun) + 1 + len(started)))
        begun |= started
        gone |= ended
        assert set(ids) <= begun - gone
        strong = [place for place, (corners, score, _) in enumerate(found) if score >= 0.5 and corners[0] < corners[2]]
        assert set(result.detection_idx[result.track_ids == 0].tolist()) <= set(strong)
    assert {span.track_id for span in tracker.finish()} == begun - gone


def test_two_streams_fed_in_turn_are_as_two_fed_alone() -> None:
    def alone(seed: int) -> list[TrackedDetections]:
        tracker = Tracker(CONFIG)
        return [tracker.update(*frame) for frame in crowd(seed)]

    first, second = Tracker(CONFIG), Tracker(CONFIG)
    both = [(first.update(*a), second.update(*b)) for a, b in zip(crowd(1), crowd(2), strict=True)]
    for (got_first, got_second), expected_first, expected_second in zip(both, alone(1), alone(2), strict=True):
        assert_equal(got_first, expected_first)
        assert_equal(got_second, expected_second)
    assert min(first.num_confirmed, second.num_confirmed) > 10


def test_most_objects_of_a_crowd_keep_their_id() -> None:
    tracker = Tracker(CONFIG)
    for frame in crowd(3):
        result = tracker.update(*frame)
    assert 20 <= tracker.num_confirmed <= 40, "25 objects"
    assert (result.track_ids > 0).sum() >= 15


# checkpoint


def test_a_restored_tracker_goes_on_bit_for_bit() -> None:
    whole, halting = Tracker(CONFIG), Tracker(CONFIG)
    for frame in crowd(4):
        expected = whole.update(*frame)
        halting = Tracker.restore(CONFIG, halting.checkpoint())
        assert_equal(halting.update(*frame), expected)
        assert halting.checkpoint() == whole.checkpoint()
    assert halting.finish() == whole.finish()
    assert whole.num_confirmed > 10


def test_an_untouched_tracker_can_be_restored() -> None:
    tracker = Tracker.restore(CONFIG, Tracker(CONFIG).checkpoint())
    assert tracker.update(detections([[0, 0, 9, 9]]), 1, 100.0).track_ids.tolist() == [0]


def damaged() -> dict[str, bytes]:
    tracker = Tracker(CONFIG)
    for frame in crowd(5, num_frames=5):
        tracker.update(*frame)
    good = tracker.checkpoint()
    fields = msgspec.msgpack.decode(good)
    return {
        "empty": b"",
        "truncated": good[:-1],
        "followed by more": good + b"\0",
        "not MessagePack": b"\xc1 nonsense",
        "another message": msgspec.msgpack.encode({"kind": "frame"}),
        "of another version": msgspec.msgpack.encode(fields | {"version": 99}),
        "with a short table": msgspec.msgpack.encode(fields | {"filters": fields["filters"][:-8]}),
        "with a cut row": msgspec.msgpack.encode(fields | {"records": fields["records"][:-8]}),
    }


@pytest.mark.parametrize("payload", [pytest.param(payload, id=name) for name, payload in damaged().items()])
def test_bytes_that_are_no_checkpoint_are_refused_in_one_line(payload: bytes) -> None:
    with pytest.raises(ValueError, match="tracker checkpoint") as caught:
        Tracker.restore(CONFIG, payload)
    assert "\n" not in str(caught.value)


def test_memory_stays_with_the_living() -> None:
    tracker = Tracker(CONFIG)
    sizes = []
    for seq in range(1, 400):
        x = seq * 100 % 5000
        tracker.update(detections([[x, 0, x + 50, 50], [x, 200, x + 50, 250]]), seq, seq / 10)
        sizes.append(len(tracker.checkpoint()))
    assert max(sizes[200:]) <= max(sizes[20:200]) + 16, "the numbers themselves may take a few bytes more"


def test_small_cases_pass_without_the_compiler() -> None:
    """The same functions as plain Python: an index out of range or a fresh value never written would show here."""
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("this is that run")
    chosen = (
        "known_values or without_area or fair_pairs or 8x8 or confirmation or cross or weak or copy or part or restored"
    )
    files = [f"tests/unit/test_{name}.py" for name in ("iou", "mask_overlap", "assignment", "kalman", "tracker")]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files],
        cwd=ROOT, env=os.environ | {"NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
