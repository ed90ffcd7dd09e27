"""Detections survive encoding and decoding, for every kind of model."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from ops.mask_format import MASK_BYTES
from pipeline.contract.arrays import NUM_KEYPOINTS, ColourMatrix, Detections
from pipeline.contract.wire import FrameDetections, FrameHeader, decode_message, encode

HEADER = FrameHeader(
    stream_id="cam1",
    session="1",
    frame_seq=5,
    stream_epoch=1,
    pts_s=0.2,
    captured_at_ns=None,
    clock="file",
    arrived_at_ns=0,
    decode_ms=1.0,
    max_staleness_s=None,
    min_score=0.1,
    class_ids=None,
    width=32,
    height=16,
    source_width=64,
    source_height=48,
    matrix=ColourMatrix.BT709,
    full_range=False,
)


def found(output: str, num: int = 3) -> Detections:
    random = np.random.default_rng(1)
    corner = random.uniform(0, 20, (num, 2))
    masks, keypoints = output == "masks", output == "keypoints"
    return Detections(
        boxes_xyxy=np.hstack([corner, corner + 20]).astype(np.float32),
        scores=np.linspace(0.9, 0.5, num, dtype=np.float32),
        class_ids=np.arange(1, num + 1, dtype=np.int32),
        mask_bits=random.integers(0, 256, (num, MASK_BYTES), np.uint8) if masks else None,
        rle_counts=[b"PPYo1"] * num if masks else None,
        width=64,
        height=48,
        keypoints=random.normal(0, 9, (num, NUM_KEYPOINTS, 3)).astype(np.float32) if keypoints else None,
    )


def packed(detections: Detections) -> FrameDetections:
    return FrameDetections.pack(HEADER, detections, model="street", queue_ms=1.0, infer_ms=2.0)


@pytest.mark.parametrize("num", [3, 0])
@pytest.mark.parametrize("output", ["boxes", "masks", "keypoints"])
def test_detections_are_unchanged_by_encoding_and_decoding(output: str, num: int) -> None:
    sent = found(output, num)
    message = decode_message(encode(packed(sent)))
    assert isinstance(message, FrameDetections)
    arrived = message.unpack()
    assert message.header == HEADER
    for field in dataclasses.fields(Detections):
        before, after = getattr(sent, field.name), getattr(arrived, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype, field.name
            np.testing.assert_array_equal(before, after, field.name)
        else:
            assert before == after, field.name


def test_strided_and_float64_arrays_are_encoded_alike() -> None:
    sent = found("keypoints")
    assert sent.keypoints is not None
    strided = dataclasses.replace(sent, keypoints=np.asfortranarray(sent.keypoints.astype(np.float64)))
    assert packed(strided) == packed(sent)


def test_a_message_without_the_field_keypoints_has_no_keypoints() -> None:
    fields = msgspec.msgpack.decode(encode(packed(found("boxes"))))
    del fields["keypoints"]
    message = decode_message(msgspec.msgpack.encode(fields))
    assert isinstance(message, FrameDetections)
    assert message.unpack().keypoints is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_keypoints_that_are_not_finite_are_refused(bad: float) -> None:
    sent = found("keypoints")
    assert sent.keypoints is not None
    sent.keypoints[1, 4, 2] = bad
    with pytest.raises(ValueError, match=rf"^keypoints must be finite, got \[.*{bad}\] at index 1$"):
        packed(sent).unpack()
