"""The role `decode`: turns one source into numbered frames on the bus. One worker per stream."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pipeline.errors import UsageError
from workers.roles.role import Role, Statuses, WorkerPosition
from workers.tasks import StreamTask

if TYPE_CHECKING:
    import typer

    from pipeline.bus import Bus, StreamStatus
    from pipeline.contract.config import JobConfig
    from pipeline.job.build import Job
    from pipeline.terminal import options as cli

MAX_SKIPPED = 3
"""maximum number of consecutive frames that are left out; after that the stream ends as failed"""


@dataclass(frozen=True, kw_only=True)
class DecodeTask(StreamTask):
    """Decode the source of one stream of `ms:sources`."""

    role: Literal["decode"] = "decode"
    num_threads: int = 2
    """threads of the colour conversion"""
    result_ttl_s: int | None = None
    """set for a decoder without a supervisor: it waits for the last results, then removes the stream from Redis except
    for the result log, which expires after this many seconds"""
    skipped_seqs: list[int] = field(default_factory=list)
    """frames that are not put on the bus, because the decoder crashed on them; each becomes a gap with cause `error`"""


def tasks(job: Job, redis_url: str) -> Sequence[DecodeTask]:
    """One decoder per stream."""
    num_threads = max(1, min(4, num_cores() // len(job.streams)))
    return [
        DecodeTask(redis_url=redis_url, stream_id=stream.stream_id, num_threads=num_threads) for stream in job.streams
    ]


def position(task: DecodeTask, statuses: Statuses) -> WorkerPosition:
    """The number of the last frame on the bus, and of the last result."""
    status = statuses[task.stream_id]
    return WorkerPosition((status.last_seq, status.seq), has_work=not status.live_source)


def step_over(task: DecodeTask, best: tuple[int, ...], status: StreamStatus) -> DecodeTask | None:
    """Leave out the frame after the last one that was ever put on the bus; up to MAX_SKIPPED frames in a row."""
    last_seq = best[0]
    skipped_after = [seq for seq in task.skipped_seqs if seq > last_seq]
    if status.phase != "live" or len(skipped_after) == MAX_SKIPPED:  # not live: the source was not even opened
        return None
    next_seq = max([last_seq, *skipped_after]) + 1
    return replace(task, skipped_seqs=[*task.skipped_seqs, next_seq])


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(
    config: JobConfig,
    bus: Bus,
    *,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="one video file, camera or URL")],
    model: cli.RequiredModelFlag,
    stream_id: Annotated[
        str | None,
        cli.option("--stream-id", "id of the stream", "ID", cli.STREAM_PANEL, default="the file's name; cam1 if live"),
    ] = None,
    conf: cli.ConfFlag = None,
    min_score: cli.MinScoreFlag = None,
    track: cli.TrackFlag = None,
    classes: cli.ClassesFlag = None,
    drop_policy: cli.DropPolicyFlag = None,
    max_staleness_s: cli.MaxStalenessFlag = None,
    max_frames: cli.MaxFramesFlag = None,
    stride: cli.StrideFlag = None,
    max_fps: cli.MaxFpsFlag = None,
    rtsp_transport: cli.RtspTransportFlag = None,
    fail_fast: cli.FailFastFlag = None,
    weights: Annotated[
        str | None,
        cli.option(
            "--weights",
            "weights file of the infer workers, needed here if it has classes of its own",
            "FILE",
            cli.MODEL_PANEL,
        ),
    ] = None,
    result_ttl_s: cli.ResultTtlFlag = None,
) -> DecodeTask:
    """Decode one source and put its frames into Redis.

    Started again with the same arguments, the worker continues its stream; with other arguments it starts a new log.
    """
    from pipeline.job.build import build_streams
    from pipeline.models.registry import get_model
    from pipeline.models.weights_table import spec_of_weights

    spec = spec_of_weights(get_model(model), config.weights)
    streams = build_streams(config, spec, [source], [stream_id] if stream_id else [])
    if len(streams) != 1:
        raise UsageError(f"source {source!r}: expected one stream, got {len(streams)}: start a worker for each")
    bus.check()
    (stream,) = streams
    if bus.stream(stream.stream_id) != stream or bus.stream_status(stream.stream_id, None).is_over:
        bus.begin_job(stream, sinks=[])
    return DecodeTask(redis_url=bus.url, stream_id=stream.stream_id, result_ttl_s=config.result_ttl_s)


ROLE = Role(
    task=DecodeTask,
    module="workers.decode",
    tasks=tasks,
    position=position,
    step_over=step_over,
    on_repeated_crashes="stream",
    command=command,
    example="maskstream worker decode rtsp://10.0.0.7/1 --stream-id door --model street",
    is_source=True,
)
