"""Boxes, masks and keypoints of a model in the result messages, after bus and tracker."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.bus_parts import HEIGHT, WIDTH, Job, stream_config

from ops.mask_format import MASK_BYTES
from ops.masks import encode_rle
from pipeline.bus import Bus
from pipeline.contract.arrays import NUM_KEYPOINTS, Detections
from pipeline.contract.results import EventResult, FrameResult, GapResult
from pipeline.contract.wire import FrameDetections
from pipeline.errors import BusError
from workers.stream_tracker import StreamTracker

MODELS = {
    "boxes": "fasterrcnn_mobilenet_v3_large_320_fpn",
    "masks": "maskrcnn_resnet50_fpn",
    "keypoints": "keypointrcnn_resnet50_fpn",
}
NUM_FRAMES = 12
BOX_XYXY = (4.0, 2.0, 20.0, 14.0)
JOINTS = np.stack(
    [np.linspace(4.123, 20, NUM_KEYPOINTS), np.linspace(2, 14, NUM_KEYPOINTS), np.linspace(-3, 9.1234, NUM_KEYPOINTS)],
    axis=1,
).astype(np.float32)


def person(output: str) -> Detections:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[2:14, 4:20] = True
    with_masks = output == "masks"
    return Detections(
        boxes_xyxy=np.array([BOX_XYXY], np.float32),
        scores=np.array([0.9], np.float32),
        class_ids=np.array([1], np.int32),
        mask_bits=np.full((1, MASK_BYTES), 255, np.uint8) if with_masks else None,
        rle_counts=[encode_rle(mask)] if with_masks else None,
        width=WIDTH,
        height=HEIGHT,
        keypoints=JOINTS[None] if output == "keypoints" else None,
    )


def tracked(bus: Bus, output: str, found: Callable[[int], Detections], **options: Any) -> Job:
    """Track a job with the detections `found` on its frames and return its results. `options`: StreamConfig fields."""
    job = Job(bus, model=MODELS[output], **options)
    writer = job.writer()
    job.offer(writer, NUM_FRAMES)
    queue = job.queue()
    for index, frame in enumerate(queue.read(NUM_FRAMES)):
        message = FrameDetections.pack(frame.header, found(index), model=MODELS[output], queue_ms=0.0, infer_ms=1.0)
        assert queue.deliver(frame, message)
    job.end(writer)
    tracker = StreamTracker(bus, job.stream)
    tracker.step()
    assert not tracker.active
    return job


@pytest.mark.parametrize("output", MODELS)
def test_an_instance_has_the_outputs_of_its_model_only(bus: Bus, output: str) -> None:
    job = tracked(bus, output, lambda _: person(output))
    frames = [result for result in job.results() if isinstance(result, FrameResult)]
    assert [frame.frame_seq for frame in frames] == list(range(1, NUM_FRAMES + 1))
    documents = [json.loads(fields[b"j"]) for _, fields in bus.client.xrange(job.keys.results)]
    for frame, document in zip(frames, (d for d in documents if d["type"] == "frame"), strict=True):
        (instance,), (sent,) = frame.instances, document["instances"]
        assert (instance.label, instance.box_xyxy) == ("person", BOX_XYXY)
        assert (
            sent.keys() & {"mask", "keypoints"}
            == {"boxes": set(), "masks": {"mask"}, "keypoints": {"keypoints"}}[output]
        )
        if instance.mask is not None:
            assert instance.mask.to_array().sum() == 12 * 16
        if instance.keypoints is not None:
            # two decimals of a pixel, three of a score
            assert np.abs(np.array(instance.keypoints) - JOINTS).max(axis=0) == pytest.approx([0, 0, 0], abs=0.0051)
            assert sent["keypoints"][0] == [4.12, 2.0, -3.0]
            assert sent["keypoints"][-1] == [20.0, 14.0, 9.123]
    assert frames[-1].instances[0].track_uid == "cam1:1"


def test_a_frame_with_nan_keypoints_becomes_a_gap(bus: Bus) -> None:
    def found(index: int) -> Detections:
        detections = person("keypoints")
        if index == 3:
            detections.keypoints = np.full_like(JOINTS[None], np.nan)
        return detections

    job = tracked(bus, "keypoints", found)
    frames = [result.frame_seq for result in job.results() if isinstance(result, FrameResult)]
    assert frames == [1, 2, 3, *range(5, NUM_FRAMES + 1)]
    (gap,) = [result for result in job.results() if isinstance(result, GapResult)]
    assert (gap.from_seq, gap.frame_seq, gap.cause) == (4, 4, "error")
    assert gap.detail.startswith("tracker: keypoints must be finite, got [nan, ")


def test_a_state_that_cannot_be_read_is_one_clear_error(bus: Bus) -> None:
    job = Job(bus)
    first = StreamTracker(bus, job.stream)
    first.step()
    first.release()
    bus.client.hset(job.keys.state, "tracker", b"written by something else")
    with pytest.raises(BusError, match=r"^the state of cam1 in Redis cannot be read \(.*\): .* start the job again$"):
        StreamTracker(bus, job.stream).step()


# -- scores -----------------------------------------------------------------------------------------------------------

SCORES = [0.9, 0.8, 0.65, 0.5, 0.31, 0.28, 0.4, 0.59, 0.6, 0.7, 0.9, 0.95]


def with_score(index: int) -> Detections:
    detections = person("boxes")
    detections.scores[:] = SCORES[index]
    return detections


def scores_of(job: Job) -> list[list[float]]:
    frames = [result for result in job.results() if isinstance(result, FrameResult)]
    return [[instance.score for instance in frame.instances] for frame in frames]


def test_no_instance_below_min_score_is_in_the_results_and_its_track_continues(bus: Bus) -> None:
    job = tracked(bus, "boxes", with_score, conf=0.5, min_score=0.6)
    assert scores_of(job) == [[score] if score >= 0.6 else [] for score in SCORES]
    frames = [result for result in job.results() if isinstance(result, FrameResult)]
    ids = {instance.track_id for frame in frames for instance in frame.instances if instance.state == "confirmed"}
    assert ids == {1}, "the track goes on while its detections are weak"


def test_without_min_score_a_track_shows_detections_down_to_half_of_conf(bus: Bus) -> None:
    assert scores_of(tracked(bus, "boxes", with_score, conf=0.5)) == [[score] for score in SCORES]


def test_a_track_does_not_begin_below_min_score(bus: Bus) -> None:
    def found(index: int) -> Detections:
        detections = person("boxes")
        detections.scores[:] = 0.6
        return detections

    job = tracked(bus, "boxes", found, conf=0.5, min_score=0.7)
    assert scores_of(job) == [[]] * NUM_FRAMES
    assert not any(isinstance(result, EventResult) for result in job.results())


def test_without_tracking_every_detection_is_an_instance_of_its_own(bus: Bus) -> None:
    job = tracked(bus, "masks", lambda _: person("masks"), track=False)
    frames = [result for result in job.results() if isinstance(result, FrameResult)]
    assert len(frames) == NUM_FRAMES
    for frame in frames:
        (instance,) = frame.instances
        assert (instance.track_id, instance.track_uid, instance.state, instance.age_frames) == (
            None,
            None,
            "untracked",
            1,
        )
        assert (instance.box_xyxy, instance.label) == (BOX_XYXY, "person")
        assert instance.mask is not None
    assert not any(isinstance(result, EventResult) for result in job.results())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.25, 0.5)),
        ({"min_score": 0.6}, (0.25, 0.6)),
        ({"track": False}, (0.5, 0.5)),
        ({"track": False, "min_score": 0.6}, (0.6, 0.6)),
    ],
    ids=str,
)
def test_score_thresholds_of_infer_and_tracker(options: dict[str, Any], expected: tuple[float, float]) -> None:
    stream = stream_config(conf=0.5, **options)
    assert (stream.score_floor, stream.birth_score) == expected
