"""The result messages: a tagged union, with the same JSON in the result log, on the channel and in the JSONL file.

`python -m pipeline.contract.results` prints their JSON Schema, docs/result.schema.json. A test compares the two.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ops.mask_format import decode_rle

SCHEMA_VERSION = 1

GapCause = Literal["overflow", "stale", "corrupt", "error", "lost"]
EndReason = Literal["finished", "truncated", "failed", "stopped"]
ClockOrigin = Literal["rtcp", "host", "file"]


class Mask(msgspec.Struct, frozen=True):
    """The mask of one object, at the size of the source frame, in COCO's compressed run-length encoding, which
    pycocotools reads.
    """

    size: tuple[int, int]
    """height and width of the source frame in pixels"""
    counts: str

    def to_array(self) -> NDArray[np.bool_]:
        """Decode the mask into a (height, width) bool array."""
        return decode_rle(self.counts.encode("ascii"), self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        array = self.to_array()
        return array if dtype is None else array.astype(dtype)


class Instance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One object on one frame. `mask` and `keypoints` are absent if the model does not detect them."""

    track_id: int | None
    """positive and unique within the log; null while the track is not confirmed, and in a stream without tracking"""
    track_uid: str | None
    """`stream_id:track_id`, unique across streams; null if track_id is null"""
    state: Literal["tentative", "confirmed", "untracked"]
    """tentative: the track is not confirmed yet; confirmed: it is; untracked: the stream has no tracking"""
    age_frames: int
    """number of frames since the track began, including this one; 1 in a stream without tracking"""
    class_id: int
    label: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    """x1, y1, x2, y2 in continuous pixel coordinates of the source frame, with x2 > x1 and y2 > y1"""
    mask: Mask | None = None
    keypoints: list[tuple[float, float, float]] | None = None
    """17 joints of a person as x, y, score in COCO's order: nose; then left and right eye, ear, shoulder, elbow, wrist,
    hip, knee, ankle. x and y are continuous pixel coordinates of the source frame; the joint is visible if its score is
    above 0"""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Time that a frame spent in each stage, in milliseconds."""

    decode: float
    queue: float
    infer: float
    track: float


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """The fields of every message."""

    schema: int = SCHEMA_VERSION
    stream_id: str
    log_id: str
    """random identifier of the result log; frame numbers start at 1 again in a log with another identifier"""
    stream_epoch: int
    """starts at 1 and is incremented each time a live source is reopened"""
    frame_seq: int
    """number of the frame; of a gap: the last number it covers; of an event, epoch or end: the number it follows"""
    published_at_ns: int
    """time of publication by the Redis server's clock: UTC in nanoseconds"""


class FrameResult(Message, frozen=True, kw_only=True, tag="frame"):
    """The result of one frame: the instances on it, possibly none."""

    pts_s: float
    """media time in seconds within the epoch"""
    captured_at_ns: int | None
    """time of capture by the camera's clock: UTC in nanoseconds; null for files, and for a live source until it has
    sent RTCP times"""
    clock: ClockOrigin
    """rtcp: captured_at_ns is set; host: a live source without captured_at_ns, whose arrived_at_ns is the nearest time;
    file: a source that is not live"""
    arrived_at_ns: int
    """time of arrival at the decoder by the Redis server's clock: UTC in nanoseconds"""
    source_name: str | None = None
    """path of the picture file, relative to the folder of the source; null for videos and cameras"""
    width: int
    height: int
    model: str
    dropped_before: int
    """number of frames that gaps cover since the previous frame message"""
    instances: list[Instance]
    timing_ms: Timing


class GapResult(Message, frozen=True, kw_only=True, tag="gap"):
    """The frames `from_seq` to `frame_seq`, inclusive, have no result.

    Causes: overflow (policy latest: the frame queue or the bus was full), stale (older than max_staleness_s), corrupt
    (pixels missing or damaged in Redis), error (decoding, inference or tracking failed on the frame), lost
    (Redis lost the frame).
    """

    from_seq: int
    cause: GapCause
    detail: str = ""


class EpochResult(Message, frozen=True, kw_only=True, tag="epoch"):
    """A live source was reopened; the frames that follow belong to `stream_epoch`, and pts_s starts anew."""

    detail: str = ""


class EventResult(Message, frozen=True, kw_only=True, tag="event"):
    """A track was confirmed (track_start) or has ended (track_end), with its figures up to `frame_seq`."""

    event: Literal["track_start", "track_end"]
    track_id: int
    track_uid: str
    class_id: int
    """class with the highest sum of scores over the track's detections"""
    label: str
    first_seq: int
    """frame of the track's first detection, before it was confirmed"""
    last_seq: int
    """frame of the track's latest detection"""
    duration_s: float
    """media time from first_seq to last_seq in seconds"""
    num_detections: int
    mean_score: float
    path: list[tuple[int, float, float]]
    """frame number, x and y of the mask's centroid (of the box's centre in a model without masks), in pixels of the
    source frame, for the first and the latest detection and at most 15 evenly spaced ones between them"""


class EndResult(Message, frozen=True, kw_only=True, tag="end"):
    """The last message of a stream, with its totals."""

    reason: EndReason
    """finished: the source reached its end; truncated: the file ends before the end that its container announces, see
    `detail`; failed: see `detail`; stopped: the job was interrupted"""
    detail: str = ""
    num_frames: int
    """number of frames with a result"""
    num_gap_frames: int
    """number of frames that gaps cover"""
    num_corrupt: int
    """number of damaged pictures; they get no frame number and are not inferred"""
    num_tracks: int
    """number of confirmed tracks"""


AnyResult = FrameResult | GapResult | EventResult | EpochResult | EndResult

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyResult] = msgspec.json.Decoder(AnyResult)


def encode_result(message: AnyResult) -> bytes:
    """Encode a message as UTF-8 JSON without a line end."""
    return _encoder.encode(message)


def decode_result(payload: bytes | str) -> AnyResult:
    """Decode a message. Raises msgspec.DecodeError if the payload is not a message of this schema."""
    return _decoder.decode(payload)


def result_json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of all messages."""
    return msgspec.json.schema(AnyResult)


if __name__ == "__main__":
    print(json.dumps(result_json_schema(), indent=2))
