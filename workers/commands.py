"""`maskstream worker ROLE`: one worker alone, to spread a job over hosts.

What a command needs is imported when it runs, so that --help answers at once.
"""

from __future__ import annotations

import os
import socket
from typing import Annotated

import typer

from pipeline.errors import UsageError
from pipeline.terminal import options as cli

worker_app = typer.Typer(
    name="worker",
    short_help="start one worker alone, to spread a job over hosts",
    help="Start one worker alone, to spread a job over hosts.",
    context_settings=cli.HELP_OPTIONS,
    **cli.APP_OPTIONS,
)


@worker_app.command("decode", context_settings=cli.HELP_OPTIONS)
def worker_decode(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="one file or camera")],
    model: cli.RequiredModel,
    stream_id: Annotated[str | None, cli.option("--stream-id", "default by source", "ID", cli.STREAM_PANEL)] = None,
    conf: cli.Conf = None,
    classes: cli.Classes = None,
    drop_policy: cli.DropPolicy = None,
    max_staleness_s: cli.MaxStaleness = None,
    max_frames: cli.MaxFrames = None,
    stride: cli.Stride = None,
    max_fps: cli.MaxFps = None,
    rtsp_transport: cli.RtspTransport = None,
    weights: Annotated[
        str | None, cli.option("--weights", "as given to infer, where they have other classes", "FILE", cli.MODEL_PANEL)
    ] = None,
    result_ttl_s: Annotated[str | None, cli.option("--result-ttl-s", "keep the log so long; default 3600", "S")] = None,
    redis_url: cli.RequiredRedisUrl = "",
) -> int:
    """Decode one source. Started again with the same arguments it goes on where it was; with others it begins anew."""
    from pipeline.bus import Bus
    from pipeline.job.build import build_streams
    from pipeline.models.registry import get_model
    from pipeline.models.weights_table import spec_of_weights
    from workers.__main__ import run_task
    from workers.tasks import DecodeTask

    config = cli.config_of(context)
    spec = spec_of_weights(get_model(model), config.weights)
    streams = build_streams(config, spec, [source], [stream_id] if stream_id else [])
    if len(streams) != 1:
        raise UsageError(f"source {source!r}: expected one stream, got {len(streams)}: start a worker for each")
    bus = Bus(cli.required_redis_url(redis_url))
    bus.check()
    name = streams[0].stream_id
    if bus.stream(name) != streams[0] or bus.stream_status(name, None).phase in {"ended", "failed"}:
        bus.begin(streams[0], sinks=[])
    return run_task(DecodeTask(redis_url=redis_url, stream_id=name, result_ttl_s=config.result_ttl_s))


@worker_app.command("infer", context_settings=cli.HELP_OPTIONS)
def worker_infer(
    context: typer.Context,
    model: cli.RequiredModel,
    weights: cli.Weights = None,
    device: cli.Device = None,
    precision: cli.Precision = None,
    batch: cli.Batch = None,
    batch_timeout_ms: cli.BatchTimeout = None,
    name: cli.WorkerName = None,
    redis_url: cli.RequiredRedisUrl = "",
) -> int:
    """Run a model over the frames of all streams that ask for it."""
    from pipeline.bus import Bus
    from pipeline.models.registry import get_model
    from workers.__main__ import run_task
    from workers.tasks import InferTask

    config = cli.config_of(context)
    Bus(cli.required_redis_url(redis_url)).check()
    return run_task(
        InferTask(
            redis_url=redis_url,
            name=name or _default_name("infer"),
            model=get_model(model).name,
            weights=config.weights,
            device=config.device,
            precision=config.precision,
            batch=config.batch,
            batch_timeout_ms=config.batch_timeout_ms,
        )
    )


@worker_app.command("track", context_settings=cli.HELP_OPTIONS)
def worker_track(name: cli.WorkerName = None, redis_url: cli.RequiredRedisUrl = "") -> int:
    """Order, track and commit the detections of all streams that nobody else tracks."""
    from pipeline.bus import Bus
    from workers.__main__ import run_task
    from workers.tasks import TrackTask

    Bus(cli.required_redis_url(redis_url)).check()
    return run_task(TrackTask(redis_url=redis_url, name=name or _default_name("track")))


@worker_app.command("sink", context_settings=cli.HELP_OPTIONS)
def worker_sink(
    context: typer.Context,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="stream id")],
    output: Annotated[str, cli.option("--output", "folder of the files", "DIR", cli.RESULT_PANEL)],
    save: cli.Save = None,
    redis_url: cli.RequiredRedisUrl = "",
) -> int:
    """Write the results of one stream to files. Started again it goes on where the files end."""
    from pipeline.bus import Bus
    from pipeline.job.build import make_output_folder
    from workers.__main__ import run_task
    from workers.tasks import SinkTask

    config = cli.config_of(context)
    Bus(cli.required_redis_url(redis_url)).check()
    folder = make_output_folder(output, [stream])
    return run_task(SinkTask(redis_url=redis_url, stream_id=stream, output=str(folder), save=list(config.save)))


def _default_name(role: str) -> str:
    return f"{role}-{socket.gethostname()}-{os.getpid()}"
