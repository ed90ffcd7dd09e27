"""What the `Tracker` protocol demands of every tracker of the table."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from support.tracker_cases import CONFIG, assert_equal, crowd, detections

from pipeline.contract.arrays import Detections
from pipeline.tracking.tracker import Tracker
from pipeline.tracking.trackers import TRACKERS


@pytest.fixture(params=TRACKERS.values(), ids=TRACKERS)
def kind(request: pytest.FixtureRequest) -> type[Tracker]:
    found: type[Tracker] = request.param
    return found


def test_a_restored_tracker_continues_with_identical_results(kind: type[Tracker]) -> None:
    whole, halting = kind(CONFIG), kind(CONFIG)
    for frame in crowd(4):
        expected = whole.update(*frame)
        halting = kind.restore(CONFIG, halting.checkpoint())
        assert_equal(halting.update(*frame), expected)
        assert halting.checkpoint() == whole.checkpoint()
    assert halting.finish() == whole.finish()
    assert whole.num_confirmed > 10


def test_an_untouched_tracker_can_be_restored(kind: type[Tracker]) -> None:
    tracker = kind.restore(CONFIG, kind(CONFIG).checkpoint())
    assert tracker.update(detections([[0, 0, 9, 9]]), 1, 100.0).track_ids.tolist() == [0]


@pytest.mark.parametrize("payload", [b"", b"\xc1 nonsense", msgspec.msgpack.encode({"kind": "frame"})], ids=str)
def test_bytes_of_another_origin_are_refused(kind: type[Tracker], payload: bytes) -> None:
    with pytest.raises(ValueError, match="not a tracker checkpoint"):
        kind.restore(CONFIG, payload)


def test_the_order_of_the_detections_does_not_matter(kind: type[Tracker]) -> None:
    rng = np.random.default_rng(0)
    straight, shuffled = kind(CONFIG), kind(CONFIG)
    for found, seq, time_s in crowd(7):
        order = rng.permutation(len(found))
        expected = straight.update(found, seq, time_s)
        mixed = detections(found.boxes_xyxy[order], found.scores[order], found.class_ids[order])
        rows = shuffled.update(mixed, seq, time_s).rows
        rows[0] = order[rows[0]]
        np.testing.assert_array_equal(rows[:, np.argsort(rows[0])], expected.rows)


def test_confirmed_tracks_are_numbered_in_order(kind: type[Tracker]) -> None:
    tracker = kind(CONFIG)
    started = [span.track_id for frame in crowd(3) for span in tracker.update(*frame).started]
    assert started == list(range(1, tracker.num_confirmed + 1))
    assert tracker.num_confirmed > 10


def test_a_time_may_repeat_or_go_back(kind: type[Tracker]) -> None:
    tracker = kind(CONFIG)
    for seq, time_s in enumerate([0.0, 0.0, 0.5, 0.2, 0.6], start=1):
        tracker.update(detections([[0, 0, 50, 50]]), seq, time_s)
    assert [span.track_id for span in tracker.finish()] == [1]


@pytest.mark.parametrize(
    "wrong",
    [detections([[0, 0, np.nan, 9]]), detections([[9, 0, 0, 9]]), detections([[0, 0, 9, 9]], scores=np.nan)],
    ids=["NaN box", "x2 < x1", "NaN score"],
)
def test_refused_detections_leave_the_state_unchanged(kind: type[Tracker], wrong: Detections) -> None:
    tracker = kind(CONFIG)
    tracker.update(detections([[0, 0, 50, 50]]), 1, 0.0)
    before = tracker.checkpoint()
    with pytest.raises(ValueError, match=r".+"):
        tracker.update(wrong, 2, 0.1)
    assert tracker.checkpoint() == before
