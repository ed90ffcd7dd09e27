"""Configuration as typed data. Checks raise ConfigError; they never change a value.

`JobConfig` holds the YAML file and the command-line flags. `pipeline.job.build` turns it into one `StreamConfig` per
stream in which every option has a value; the workers read that from the Redis hash `ms:sources`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pipeline.contract import defaults
from pipeline.contract.exports import DEFAULT_EXPORTS, EXPORTS
from pipeline.contract.source_kinds import SOURCE_KINDS
from pipeline.errors import ConfigError

STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _one_of(names: Iterable[str]) -> Meta:
    """The constraint of a text that is one of the names of a table."""
    listed = list(names)
    return Meta(
        pattern=f"^({'|'.join(listed)})$",
        description=f"one of {', '.join(listed)}",
        extra_json_schema={"enum": listed},
    )


DropPolicy = Literal["auto", "lossless", "latest"]
ExportName = Annotated[str, _one_of(EXPORTS)]
Device = Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$", description="auto, cpu, cuda or cuda:N")]
Name = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="1 to 64 of the characters A-Z a-z 0-9 _ . -")
]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
SourceKind = Annotated[str, _one_of(SOURCE_KINDS)]

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[int, Meta(ge=1)]


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Options that can be set for all streams at the top of the file and for one stream under `streams`.

    None means that the option is not set here. `STREAM_DEFAULTS` holds the values of options that are set nowhere.
    """

    conf: Fraction | None = None
    """confidence threshold, 0 to 1: a track begins with a detection of at least this score and continues with
    detections down to half of it"""
    min_score: Fraction | None = None
    """lowest score of an instance in the results, 0 to 1; weaker detections still continue a track, unseen"""
    track: bool | None = None
    """whether instances are linked over frames; if not set, true for videos and false for pictures"""
    classes: Annotated[list[str], Meta(min_length=1)] | None = None
    """labels of the classes to detect, as `maskstream models` lists them; all classes of the model if not set"""
    drop_policy: DropPolicy | None = None
    """what happens when the frame queue is full: lossless (the source waits), latest (the oldest frame is dropped) or
    auto (latest for live sources, lossless for files and for network sources with a known end)"""
    max_staleness_s: Annotated[float, Meta(gt=0.0)] | None = None
    """with drop policy latest: frames older than this many seconds are dropped before inference"""
    stride: Positive | None = None
    """process every n-th decoded frame"""
    max_fps: Annotated[float, Meta(gt=0.0)] | None = None
    """process at most this many frames per second of media time; no limit if not set"""
    max_frames: Positive | None = None
    """end the stream after this many frames were selected by stride and max_fps, including those that a live stream
    drops later; no limit if not set"""
    rtsp_transport: Literal["tcp", "udp"] | None = None
    """transport protocol of RTSP: tcp or udp"""
    fail_fast: bool | None = None
    """end the stream with an error if its live source cannot be opened at the first attempt; by default, decode tries
    again until it can be opened"""


STREAM_DEFAULTS = StreamOptions(
    conf=defaults.CONF,
    min_score=defaults.MIN_SCORE,
    drop_policy=defaults.DROP_POLICY,
    max_staleness_s=defaults.MAX_STALENESS_S,
    stride=defaults.STRIDE,
    rtsp_transport=defaults.RTSP_TRANSPORT,
    fail_fast=False,
)


class StreamEntry(StreamOptions, kw_only=True, forbid_unknown_fields=True):
    """One stream under `streams` in the YAML file."""

    source: str
    """path, glob pattern, folder, URL, webcam (`webcam:0` or /dev/video0) or `demo`"""


class JobConfig(StreamOptions, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration file."""

    streams: dict[Name, StreamEntry] = {}
    """stream id -> its source, and the options in which it differs from the other streams"""
    model: str | None = None
    """name of a model, as `maskstream models` lists them; if not set, street on the CPU and maskrcnn_resnet50_fpn_v2 on
    CUDA"""
    weights: str | None = None
    """weights file for the model's architecture; the model's own weights if not set"""
    device: Device = defaults.DEVICE
    """auto, cpu, cuda or cuda:N"""
    precision: Precision = defaults.PRECISION
    """floating-point type of the network: auto, fp32, bf16 or fp16"""
    batch: Positive = defaults.BATCH
    """maximum number of frames in one forward pass"""
    batch_timeout_ms: Annotated[float, Meta(ge=0.0)] = defaults.BATCH_TIMEOUT_MS
    """maximum time to wait for a full batch, in milliseconds"""
    workers: Positive = defaults.WORKERS
    """number of infer workers; each loads its own copy of the model"""
    redis_url: str | None = None
    """redis://, rediss:// or unix:// URL of the server; if not set, the job starts a private server and stops it at the
    end"""
    redis_memory_mb: Annotated[int, Meta(ge=64)] = defaults.REDIS_MEMORY_MB
    """memory for frames, results and subscribers' buffers together, in MiB"""
    max_in_flight: Positive = defaults.MAX_IN_FLIGHT
    """maximum number of frames of one stream between its decoder and its result log"""
    result_ttl_s: Positive = defaults.RESULT_TTL_S
    """time in seconds for which the result logs stay on the server of `redis_url` after the job has ended"""
    output: str | None = None
    """folder for the results; a fresh folder in runs/ if not set"""
    overwrite: bool = False
    """whether files in the output folder may replace the results of an earlier run"""
    save: list[ExportName] = msgspec.field(default_factory=lambda: list(DEFAULT_EXPORTS))
    """names of the files to write for each stream, see the table in pipeline/contract/exports.py; [] for none"""
    readers: list[Name] = []
    """names of subscribers that must have read a message before it may leave the result log
    (`subscribe(..., reader=NAME)`)"""


class ModelOverrides(msgspec.Struct, frozen=True):
    """The properties of a model that a weights file with classes of its own overrides."""

    categories: list[tuple[int, str]]
    """(class_id, label) pairs in ascending order of class_id"""
    min_size: int
    max_size: int
    """with min_size: the input size of the network in pixels, as in `pipeline.models.registry.ModelSpec`"""


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One stream with a value for every option. Its JSON is the value of the field `stream_id` of `ms:sources`."""

    stream_id: str
    source: str
    kind: SourceKind
    policy: DropPolicy
    """auto: decode chooses when the source is open: latest for a live source, lossless for one with an end"""
    conf: float
    min_score: float = 0.0
    track: bool = True
    class_ids: list[int] | None
    max_staleness_s: float
    stride: int
    max_fps: float | None
    max_frames: int | None
    rtsp_transport: Literal["tcp", "udp"]
    fail_fast: bool = False
    model: str
    """name of the model, which determines input size and categories; `name@file` if the weights file overrides them"""
    max_in_flight: int
    log_bytes: int
    """maximum size of the result log in bytes of JSON"""
    segment_folder: str | None = None
    """folder on the job's host in which decode stores the camera's packets for the annotated video; None: no video"""
    model_overrides: ModelOverrides | None = None
    """the overridden properties of a model `name@file`; None for a registered model"""

    @property
    def score_floor(self) -> float:
        """Lowest score of a detection that infer sends to track.

        A detection continues a track down to half of `conf`; without tracking, weaker ones than `conf` are discarded.
        """
        return self.conf / 2 if self.track else self.birth_score

    @property
    def birth_score(self) -> float:
        """Lowest score of a detection that begins a track, or that is shown without one."""
        return max(self.conf, self.min_score)

    @property
    def separate_pictures(self) -> bool:
        """Whether the source is a set of unrelated pictures rather than a film."""
        return not (SOURCE_KINDS[self.kind].is_sequence or self.track)

    @property
    def live(self) -> bool:
        """Whether the source is live: it cannot wait for the model, and the decoder reconnects to it."""
        return SOURCE_KINDS[self.kind].is_live


def check_stream_id(stream_id: str) -> str:
    """Return `stream_id`. Raises ConfigError if it holds characters that a Redis key or a file name cannot have."""
    if not STREAM_ID.fullmatch(stream_id):
        raise ConfigError(
            f"stream id {stream_id!r}: expected 1 to 64 of the characters A-Z a-z 0-9 _ . -; "
            "give another with --stream-id"
        )
    return stream_id
