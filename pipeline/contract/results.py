"""The result messages: one tagged union, the same JSON in the log, on the channel and in the JSONL file.

`python -m pipeline.contract.results` prints their JSON Schema. It is kept as docs/result.schema.json; a test checks
that the two are equal.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1

GapCause = Literal["overflow", "stale", "corrupt", "error", "lost"]
EndReason = Literal["finished", "failed", "stopped"]
ClockOrigin = Literal["rtcp", "host", "file"]


class Mask(msgspec.Struct, frozen=True):
    """A COCO compressed RLE of the whole source frame, as pycocotools reads it."""

    size: tuple[int, int]
    """height and width of the source frame in pixels"""
    counts: str

    def to_array(self) -> NDArray[np.bool_]:
        """(height, width) bool, decoded now."""
        from ops.masks import decode_rle

        return decode_rle(self.counts.encode("ascii"), self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.to_array()
        return array if dtype is None else array.astype(dtype)


class Instance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object on one frame. What a model does not find is absent."""

    track_id: int | None
    """positive and unique within the log; null while the track is not confirmed, and where nothing is tracked"""
    track_uid: str | None
    """`stream_id:track_id`; null where track_id is"""
    state: Literal["tentative", "confirmed", "untracked"]
    """tentative: the track is not confirmed yet; untracked: instances of this stream are not linked over frames"""
    age_frames: int
    """frames since the track began, this one included; 1 where nothing is tracked"""
    class_id: int
    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    """pixels of the source frame, edges continuous, x2 > x1 and y2 > y1"""
    mask: Mask | None = None
    keypoints: list[tuple[float, float, float]] | None = None
    """17 joints of a person as x, y, score in COCO's order: nose; then left and right eye, ear, shoulder, elbow, wrist,
    hip, knee, ankle. x and y are pixels of the source frame, continuous; a score above 0 says that the joint is seen"""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds a frame spent in each stage."""

    decode: float
    queue: float
    infer: float
    track: float


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every message of a log carries."""

    schema: int = SCHEMA_VERSION
    stream_id: str
    log_id: str
    """random, of this log; another one means that the numbers began anew"""
    stream_epoch: int
    """1, and one more each time a live source was opened again"""
    frame_seq: int
    """the number of the frame, or the last number a gap covers, or the number that an event, epoch or end follows"""
    published_at_ns: int
    """UTC, Redis server time, nanoseconds"""


class FrameResult(Message, frozen=True, kw_only=True, tag="frame"):
    """A frame that was inferred, with the instances on it; possibly none."""

    pts_s: float
    """media time in seconds within the epoch"""
    captured_at_ns: int | None
    """UTC of the capture in nanoseconds; null for files"""
    clock: ClockOrigin
    arrived_at_ns: int
    """UTC, Redis server time, nanoseconds, when the frame was decoded"""
    source_name: str | None = None
    """file name of the picture, relative to the folder of the source; null for videos and cameras"""
    width: int
    height: int
    model: str
    dropped_before: int
    """numbers covered by gaps since the last frame message"""
    instances: list[Instance]
    timing_ms: Timing


class GapResult(Message, frozen=True, kw_only=True, tag="gap"):
    """Numbers from `from_seq` to `frame_seq` (both included) that have no result, and why."""

    from_seq: int
    cause: GapCause
    detail: str = ""


class EpochResult(Message, frozen=True, kw_only=True, tag="epoch"):
    """A live source was opened again; later frames belong to `stream_epoch`."""

    detail: str = ""


class EventResult(Message, frozen=True, kw_only=True, tag="event"):
    """Something that happened on the stream at `frame_seq`: a track starts or ends, and what it was so far."""

    event: Literal["track_start", "track_end"]
    track_id: int
    track_uid: str
    class_id: int
    """the class that its detections voted for, each with its score"""
    label: str
    first_seq: int
    """frame of its first detection, when the track had no id"""
    last_seq: int
    """frame of its latest detection"""
    duration_s: float
    """between the two, in the time of the media"""
    num_detections: int
    mean_score: float
    path: list[tuple[int, float, float]]
    """frame, x and y of the centroid of the mask (the centre of the box, without masks) in pixels of the source frame:
    of the first and the latest detection, and of at most 15 evenly between them"""


class EndResult(Message, frozen=True, kw_only=True, tag="end"):
    """The stream is over."""

    reason: EndReason
    """finished: the source ended; failed: `detail` says why; stopped: somebody asked for it"""
    detail: str = ""
    num_frames: int
    num_gap_frames: int
    """numbers covered by gaps"""
    num_corrupt: int
    """decoded pictures that were damaged: never numbered, never shown to the model"""
    num_tracks: int
    """tracks that were confirmed"""


AnyResult = FrameResult | GapResult | EventResult | EpochResult | EndResult

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyResult] = msgspec.json.Decoder(AnyResult)


def encode_result(message: AnyResult) -> bytes:
    """UTF-8 JSON of one message, without a line end."""
    return _encoder.encode(message)


def decode_result(payload: bytes | str) -> AnyResult:
    """The typed message. Raises msgspec.DecodeError for anything that is not a message of this schema."""
    return _decoder.decode(payload)


def result_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the union."""
    return msgspec.json.schema(AnyResult)


if __name__ == "__main__":
    print(json.dumps(result_json_schema(), indent=2))
