"""The checkpoint of `MaskTracker`: damaged bytes are refused, and its size does not grow with the video."""

from __future__ import annotations

import msgspec
import pytest
from support.tracker_cases import CONFIG, crowd, detections

from pipeline.tracking.mask_tracker import MaskTracker


def damaged() -> dict[str, bytes]:
    tracker = MaskTracker(CONFIG)
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
        "with a cut record": msgspec.msgpack.encode(fields | {"tracks": fields["tracks"][:-8]}),
        "with a track too many": msgspec.msgpack.encode(fields | {"num_tracks": fields["num_tracks"] + 1}),
    }


@pytest.mark.parametrize("payload", [pytest.param(payload, id=name) for name, payload in damaged().items()])
def test_bytes_that_are_not_a_checkpoint_raise_one_line(payload: bytes) -> None:
    with pytest.raises(ValueError, match="tracker checkpoint") as caught:
        MaskTracker.restore(CONFIG, payload)
    assert "\n" not in str(caught.value)


def test_the_checkpoint_contains_living_tracks_only() -> None:
    tracker = MaskTracker(CONFIG)
    sizes = []
    for seq in range(1, 400):
        x = seq * 100 % 5000
        tracker.update(detections([[x, 0, x + 50, 50], [x, 200, x + 50, 250]]), seq, seq / 10)
        sizes.append(len(tracker.checkpoint()))
    assert max(sizes[200:]) <= max(sizes[20:200]) + 16, "the numbers themselves may take a few bytes more"
