"""Invariants of the tracker for any input, and validation of its input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tracker_cases import CONFIG, assert_equal, crowd, detections

from ops.mask_format import MASK_SIDE
from pipeline.contract.arrays import Detections
from pipeline.tracking.mask_tracker import MaskTracker
from pipeline.tracking.tracker import TrackedDetections, TrackerConfig

# the border


@pytest.mark.parametrize(
    ("given_detections", "message"),
    [
        (
            detections([[0.0, 0, 5, 5], [0, np.nan, 5, 5]]),
            r"finite numbers, .* got box \[0.0, nan, 5.0, 5.0\] .* at index 1",
        ),
        (detections([[0, 0, np.inf, 5]]), "finite numbers, .* got box .* at index 0"),
        (detections([[0, 0, 5, 5]], np.nan), "score nan at index 0"),
        (detections([[5, 0, 0, 5]]), "x2 >= x1 and y2 >= y1, got .* at index 0"),
        (
            Detections(np.zeros((2, 4), np.float32), np.zeros(3, np.float32), np.zeros(2, np.int32), None, None, 9, 9),
            "got",
        ),
        (
            Detections(
                np.zeros((2, 4), np.float32), np.zeros((2, 1), np.float32), np.zeros(2, np.int32), None, None, 9, 9
            ),
            r"got \(2, 4\), \(2, 1\), \(2,\)",
        ),
    ],
    ids=["nan box", "infinite box", "nan score", "inverted box", "lengths differ", "column of scores"],
)
def test_invalid_detections_raise_and_change_nothing(given_detections: Detections, message: str) -> None:
    tracker = MaskTracker(CONFIG)
    tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0)
    before = tracker.checkpoint()
    with pytest.raises(ValueError, match=message):
        tracker.update(given_detections, 2, 0.1)
    assert tracker.checkpoint() == before


@pytest.mark.parametrize(("frame_seq", "time_s", "message"), [(5, 1.0, "more than 5, got 5"), (6, np.nan, "time_s")])
def test_a_frame_number_that_does_not_rise_or_a_time_that_is_not_finite_raises(
    frame_seq: int, time_s: float, message: str
) -> None:
    tracker = MaskTracker(CONFIG)
    tracker.update(detections([]), 5, 0.0)
    with pytest.raises(ValueError, match=message):
        tracker.update(detections([]), frame_seq, time_s)


def test_boxes_without_area_are_dropped() -> None:
    tracker = MaskTracker(CONFIG)
    for seq in range(1, 6):
        result = tracker.update(detections([[5, 5, 5, 5], [0, 0, 50, 50], [7, 0, 7, 90], [0, 7, 90, 7]]), seq, seq / 10)
    assert (result.detection_idx.tolist(), result.track_ids.tolist()) == ([1], [1])


@pytest.mark.parametrize("changes", [{"low_score": 0.6}, {"birth_score": 0.8}, {"high_score": 0.4}])
def test_thresholds_out_of_order_raise(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"expected low_score <= birth_score <= high_score, got 0\."):
        MaskTracker(TrackerConfig(**changes))


# properties

# few positions, so that tracks are confirmed and compete; some boxes have no area
place = st.tuples(st.sampled_from([0, 12, 60]), st.integers(0, 3), st.sampled_from([30, 34, 0]))
box = place.map(lambda place: (place[0] + place[1], place[1], place[0] + place[1] + place[2], place[1] + 30))
mask = st.sampled_from(["full", "left", "top", "blob", "empty"])
detection = st.tuples(box, st.sampled_from([0.05, 0.3, 0.5, 0.9]), st.integers(1, 2), mask)
frame = st.tuples(st.lists(detection, max_size=8), st.sampled_from([-1.0, 0.0, 0.04, 0.2, 0.2, 2.0]))
rows, cols = np.indices((MASK_SIDE, MASK_SIDE))
CELLS = {
    "full": rows >= 0,
    "left": cols < 12,
    "top": rows < 15,
    "blob": np.hypot(rows - 13.5, cols - 13.5) < 9,
    "empty": rows < 0,
}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.lists(frame, max_size=16), st.booleans(), st.randoms(use_true_random=False))
def test_invariants_hold_for_any_input(frames, with_masks, random) -> None:  # type: ignore[no-untyped-def]
    """IDs are unique in a frame and never reused after their end, and the order of the detections does not matter."""
    tracker, shuffled_tracker = MaskTracker(CONFIG), MaskTracker(CONFIG)
    time_s, gone, begun = 0.0, set[int](), set[int]()
    for seq, (found, step_s) in enumerate(frames, 1):
        # of detections that differ in their masks only, the order may decide which one is tracked
        found = list({item[:3]: item for item in found}.values())
        time_s += step_s
        order = random.sample(range(len(found)), len(found))
        results = []
        for subject, items in ((tracker, found), (shuffled_tracker, [found[place] for place in order])):
            boxes, scores, class_ids, masks = zip(*items, strict=True) if items else ((), (), (), ())
            given_detections = detections(boxes, scores, class_ids)
            if with_masks:
                cells = np.array([CELLS[mask] for mask in masks], bool).reshape(-1, MASK_SIDE * MASK_SIDE)
                given_detections.mask_bits = np.packbits(cells, axis=1)
            results.append(subject.update(given_detections, seq, time_s))
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
        strong = [place for place, (corners, score, *_) in enumerate(found) if score >= 0.5 and corners[0] < corners[2]]
        assert set(result.detection_idx[result.track_ids == 0].tolist()) <= set(strong)
    assert {span.track_id for span in tracker.finish()} == begun - gone


def test_two_trackers_used_in_turns_do_not_affect_each_other() -> None:
    def alone(seed: int) -> list[TrackedDetections]:
        tracker = MaskTracker(CONFIG)
        return [tracker.update(*frame) for frame in crowd(seed)]

    first, second = MaskTracker(CONFIG), MaskTracker(CONFIG)
    both = [(first.update(*a), second.update(*b)) for a, b in zip(crowd(1), crowd(2), strict=True)]
    for results in zip(*both, strict=True):
        started = [span.track_id for result in results for span in result.started]
        assert started == list(range(1, len(started) + 1))
    for (got_first, got_second), expected_first, expected_second in zip(both, alone(1), alone(2), strict=True):
        assert_equal(got_first, expected_first)
        assert_equal(got_second, expected_second)
    assert min(first.num_confirmed, second.num_confirmed) > 10
