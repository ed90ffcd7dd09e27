"""From what a model finds to result messages, through the bus and the tracker: boxes, masks, keypoints."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from support.bus_parts import HEIGHT, WIDTH, Job

from ops.masks import encode_rle
from pipeline.bus import Bus
from pipeline.contract.arrays import MASK_BYTES, NUM_KEYPOINTS, Detections
from pipeline.contract.results import FrameResult, GapResult
from pipeline.contract.wire import FrameDetections
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


def tracked(bus: Bus, output: str, found: Callable[[int], Detections]) -> Job:
    """A job over frames on which `found` is detected, tracked to its end."""
    job = Job(bus, model=MODELS[output])
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
def test_an_instance_carries_what_its_model_finds_and_nothing_else(bus: Bus, output: str) -> None:
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


def test_a_frame_whose_keypoints_are_no_numbers_is_a_gap(bus: Bus) -> None:
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
