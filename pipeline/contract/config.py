"""Configuration as typed data. Checks raise ConfigError; they never repair.

`JobConfig` is what the YAML file and the flags say. `resolve_streams` turns it into one `StreamConfig` per stream, with
nothing left open: that is what travels to the workers through `ms:sources`.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pipeline.errors import ConfigError

STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")

DropPolicy = Literal["auto", "lossless", "latest"]
Output = Literal["jsonl", "video"]
OUTPUT_SUFFIXES: dict[Output, str] = {"jsonl": ".jsonl", "video": ".mp4"}
Device = Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$", description="auto, cpu, cuda or cuda:N")]
Name = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="1 to 64 of the characters A-Z a-z 0-9 _ . -")
]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SourceKind = Literal["file", "pictures", "live"]

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[int, Meta(ge=1)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What can be set for all streams and, under `streams`, for each."""

    conf: Fraction | None = None
    """lowest score of a new track, 0 to 1; default 0.5"""
    classes: Annotated[list[str], Meta(min_length=1)] | None = None
    """labels to keep, as `maskstream models` lists them; default all"""
    drop_policy: DropPolicy | None = None
    """auto (lossless for files, latest for live sources), lossless or latest"""
    max_staleness_s: Annotated[float, Meta(gt=0.0)] | None = None
    """policy latest: seconds after which a frame is no longer inferred; default 0.5"""
    stride: Positive | None = None
    """take every n-th frame; default 1"""
    max_fps: Annotated[float, Meta(gt=0.0)] | None = None
    """leave frames out above this rate, measured on media time; default no limit"""
    max_frames: Positive | None = None
    """stop after this many frames; default no limit"""
    rtsp_transport: Literal["tcp", "udp"] | None = None
    """default tcp"""


class StreamEntry(StreamOptions, kw_only=True, forbid_unknown_fields=True):
    """One stream in the YAML file."""

    source: str
    """path, glob, folder, URL, webcam (`webcam:0` or /dev/video0) or `demo`"""


class JobConfig(StreamOptions, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration file."""

    streams: dict[Name, StreamEntry] = {}
    """stream id -> source and options that differ from the ones given for all"""
    model: str | None = None
    """name from `maskstream models`; default street on the CPU, maskrcnn_resnet50_fpn_v2 on CUDA"""
    weights: str | None = None
    """a file with weights for the model's architecture; default the model's own"""
    device: Device = "auto"
    """auto, cpu, cuda or cuda:N"""
    precision: Precision = "auto"
    """auto, fp32, bf16 or fp16"""
    batch: Positive = 4
    """most frames in one forward pass"""
    batch_timeout_ms: Annotated[float, Meta(ge=0.0)] = 20.0
    """milliseconds after its first frame at which an unfilled batch is run all the same"""
    workers: Positive = 1
    """number of infer workers"""
    redis_url: str | None = None
    """redis://, rediss:// or unix://; default a private server that lives as long as the command"""
    redis_memory_mb: Annotated[int, Meta(ge=64)] = 1024
    """memory of the bus, frames, results and subscribers' buffers together, in MiB"""
    max_in_flight: Positive = 16
    """most frames of one stream between its decoder and its result log"""
    result_ttl_s: Positive = 3600
    """seconds that a result log outlives its job on a Redis that is not ours"""
    output: str | None = None
    """folder for the results; default a fresh one under runs/"""
    save: list[Output] = msgspec.field(default_factory=lambda: ["jsonl", "video"])
    """what is written to the folder; default jsonl and video"""
    readers: list[Name] = []
    """names of subscribers that must have read a result before it may leave the log (`subscribe(..., reader=NAME)`)"""


class ModelTable(msgspec.Struct, frozen=True):
    """What weights of their own classes change in a registered model."""

    categories: list[tuple[int, str]]
    """(class_id, label) pairs, rising"""
    min_size: int
    max_size: int
    """of the network's input, as in `pipeline.models.registry.ModelSpec`"""


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One stream with everything decided: the value of its field in `ms:sources`."""

    stream_id: str
    source: str
    kind: SourceKind
    policy: Literal["lossless", "latest"]
    conf: float
    class_ids: list[int] | None
    max_staleness_s: float
    stride: int
    max_fps: float | None
    max_frames: int | None
    rtsp_transport: Literal["tcp", "udp"]
    model: str
    """name of the model, for its input size and its category table; `name@file` where the weights bring their own"""
    max_in_flight: int
    log_bytes: int
    """bytes of result JSON the log keeps"""
    segment_folder: str | None = None
    """on this job's host: where decode keeps a camera's packets for the annotated video; None: it is not written"""
    model_table: ModelTable | None = None
    """for the model `name@file`"""

    @property
    def score_floor(self) -> float:
        """Lowest score that may continue a track: half of what begins one. Weaker detections are not sent."""
        return self.conf / 2

    @property
    def live(self) -> bool:
        """Whether the source is a camera: it cannot wait and can be opened again."""
        return self.kind == "live"


def check_stream_id(stream_id: str) -> str:
    """The id itself. Raises ConfigError for one that could not be part of a key."""
    if not STREAM_ID.fullmatch(stream_id):
        raise ConfigError(
            f"stream id {stream_id!r}: expected 1 to 64 of the characters A-Z a-z 0-9 _ . -; "
            "give another with --stream-id"
        )
    return stream_id
