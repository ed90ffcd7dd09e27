"""The messages between decode, infer and track workers, encoded as MessagePack."""

from __future__ import annotations

import msgspec
import numpy as np

from ops.mask_format import MASK_BYTES
from pipeline.contract.arrays import NUM_KEYPOINTS, ColourMatrix, Detections, I420Frame
from pipeline.contract.results import ClockOrigin, EndReason, GapCause


class FrameHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The metadata of a frame."""

    stream_id: str
    session: str
    """id of the decode session that numbered the frame"""
    frame_seq: int
    stream_epoch: int
    pts_s: float
    captured_at_ns: int | None
    clock: ClockOrigin
    arrived_at_ns: int
    decode_ms: float
    max_staleness_s: float | None
    """age in seconds above which the frame is not inferred; None in policy `lossless`"""
    min_score: float
    """lowest score of the detections to send"""
    class_ids: list[int] | None
    """classes of the detections to send; None for all"""
    width: int
    height: int
    source_width: int
    source_height: int
    matrix: ColourMatrix
    full_range: bool
    source_name: str | None = None
    """file name of the picture, in a source of pictures"""

    def frame(self, pixels: bytes) -> I420Frame:
        """The frame with the I420 planes `pixels`. Raises ValueError if their size does not match the header."""
        expected = self.width * self.height * 3 // 2
        if len(pixels) != expected:
            raise ValueError(f"expected {expected} bytes of I420 for {self.width}x{self.height}, got {len(pixels)}")
        return I420Frame(
            data=np.frombuffer(pixels, np.uint8),
            width=self.width,
            height=self.height,
            source_width=self.source_width,
            source_height=self.source_height,
            matrix=self.matrix,
            full_range=self.full_range,
        )


class FrameDetections(msgspec.Struct, frozen=True, kw_only=True, tag="frame", tag_field="kind"):
    """The detections of a frame: the arrays of `Detections` as bytes, little-endian, in C order."""

    header: FrameHeader
    model: str
    queue_ms: float
    infer_ms: float
    boxes_xyxy: bytes
    scores: bytes
    class_ids: bytes
    mask_bits: bytes | None
    rle_counts: list[bytes] | None
    keypoints: bytes | None = None

    @classmethod
    def pack(
        cls, header: FrameHeader, detections: Detections, *, model: str, queue_ms: float, infer_ms: float
    ) -> FrameDetections:
        """The message for one frame."""
        bits, keypoints = detections.mask_bits, detections.keypoints
        return cls(
            header=header,
            model=model,
            queue_ms=queue_ms,
            infer_ms=infer_ms,
            boxes_xyxy=np.ascontiguousarray(detections.boxes_xyxy, "<f4").tobytes(),
            scores=np.ascontiguousarray(detections.scores, "<f4").tobytes(),
            class_ids=np.ascontiguousarray(detections.class_ids, "<i4").tobytes(),
            mask_bits=None if bits is None else np.ascontiguousarray(bits).tobytes(),
            rle_counts=detections.rle_counts,
            keypoints=None if keypoints is None else np.ascontiguousarray(keypoints, "<f4").tobytes(),
        )

    def unpack(self) -> Detections:
        """The arrays, as read-only views of the message. Raises ValueError for keypoints that are not finite."""
        bits = None if self.mask_bits is None else np.frombuffer(self.mask_bits, np.uint8).reshape(-1, MASK_BYTES)
        keypoints = None
        if self.keypoints is not None:
            keypoints = np.frombuffer(self.keypoints, "<f4").reshape(-1, NUM_KEYPOINTS, 3)
            if not np.isfinite(keypoints).all():
                bad = np.unravel_index(np.argmin(np.isfinite(keypoints).all(axis=2)), keypoints.shape[:2])
                raise ValueError(f"keypoints must be finite, got {keypoints[bad].tolist()} at index {int(bad[0])}")
        return Detections(
            boxes_xyxy=np.frombuffer(self.boxes_xyxy, "<f4").reshape(-1, 4),
            scores=np.frombuffer(self.scores, "<f4"),
            class_ids=np.frombuffer(self.class_ids, "<i4"),
            mask_bits=bits,
            rle_counts=self.rle_counts,
            width=self.header.source_width,
            height=self.header.source_height,
            keypoints=keypoints,
        )


class FrameGap(msgspec.Struct, frozen=True, kw_only=True, tag="gap", tag_field="kind"):
    """Frame numbers without detections. The Lua script `offer` writes this message, too."""

    session: str
    stream_epoch: int
    from_seq: int
    to_seq: int
    cause: GapCause
    detail: str = ""


class SourceEnd(msgspec.Struct, frozen=True, kw_only=True, tag="end", tag_field="kind"):
    """The decoder's last message: no number after `last_seq` follows."""

    session: str
    stream_epoch: int
    last_seq: int
    reason: EndReason
    detail: str
    num_corrupt: int


BusMessage = FrameDetections | FrameGap | SourceEnd

_encoder = msgspec.msgpack.Encoder()
_header_decoder: msgspec.msgpack.Decoder[FrameHeader] = msgspec.msgpack.Decoder(FrameHeader)
_message_decoder: msgspec.msgpack.Decoder[BusMessage] = msgspec.msgpack.Decoder(BusMessage)


def encode(message: FrameHeader | BusMessage) -> bytes:
    """Encode a header or a message as MessagePack."""
    return _encoder.encode(message)


def decode_header(payload: bytes) -> FrameHeader:
    """Decode the header of an entry in `frames`."""
    return _header_decoder.decode(payload)


def decode_message(payload: bytes) -> BusMessage:
    """Decode the message of an entry in `detections`."""
    return _message_decoder.decode(payload)
