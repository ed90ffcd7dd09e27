"""What a worker is told when it starts: one struct per role, the same on the command line and under the supervisor."""

from __future__ import annotations

import msgspec

SINK_NAME = "output"
"""the name under which a result log waits for its files"""


class DecodeTask(msgspec.Struct, frozen=True, kw_only=True, tag="decode", tag_field="role"):
    """Decode one stream of `ms:sources`."""

    redis_url: str
    stream_id: str
    num_threads: int = 2
    result_ttl_s: int | None = None
    """a decoder that works alone removes the stream's keys in the end, but the result log, which stays for so long"""


class InferTask(msgspec.Struct, frozen=True, kw_only=True, tag="infer", tag_field="role"):
    """Run one model over the frames of all streams that ask for it."""

    redis_url: str
    name: str
    model: str
    weights: str | None
    device: str
    precision: str
    batch: int
    batch_timeout_ms: float
    num_threads: int | None = None
    """of torch on the CPU; None for all cores"""


class TrackTask(msgspec.Struct, frozen=True, kw_only=True, tag="track", tag_field="role"):
    """Order, track and commit the detections of all streams that nobody else tracks."""

    redis_url: str
    name: str


class SinkTask(msgspec.Struct, frozen=True, kw_only=True, tag="sink", tag_field="role"):
    """Write one stream's results to files."""

    redis_url: str
    stream_id: str
    output: str
    """folder of the files"""
    save: list[str]
    """names of exports"""
    overwrite: bool = False
    """whether the files may replace the results of an earlier run"""


Task = DecodeTask | InferTask | TrackTask | SinkTask


def describe(task: Task) -> str:
    """For people and logs, such as `decode cam1`."""
    match task:
        case DecodeTask(stream_id=stream_id):
            return f"decode {stream_id}"
        case SinkTask(stream_id=stream_id):
            return f"sink {stream_id}"
        case InferTask(name=name) | TrackTask(name=name):
            return name
