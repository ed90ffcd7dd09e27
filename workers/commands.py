"""The verbs `worker decode|infer|track|sink`: each runs one worker in this process, to spread a job over hosts."""

from __future__ import annotations

import os
import socket
from typing import Annotated

import typer

from pipeline.errors import UsageError
from pipeline.terminal import options as cli

EXAMPLES = """
[bold]Examples[/]

  export MASKSTREAM_REDIS_URL=redis://10.0.0.2
  maskstream worker decode rtsp://10.0.0.7/1 --stream-id door --model street
  maskstream worker infer --model street --device cuda
  maskstream worker track
  maskstream worker sink door --output out
"""

worker_app = typer.Typer(
    name="worker",
    short_help="run one worker, to spread a job over several hosts",
    help="Run one worker of a job, to spread the job over several hosts. All workers use the same Redis server.",
    epilog=EXAMPLES,
    context_settings=cli.HELP_OPTIONS,
    **cli.APP_OPTIONS,
)


def _example(role: str) -> str:
    lines = [line for line in EXAMPLES.splitlines() if f" worker {role}" in f"{line} " or "export" in line]
    return "\n".join(["[bold]Example[/]", "", *lines])


@worker_app.command("decode", epilog=_example("decode"), context_settings=cli.HELP_OPTIONS)
def worker_decode(
    context: typer.Context,
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
    redis_url: cli.RequiredRedisUrlFlag = "",
) -> int:
    """Decode one source and put its frames into Redis.

    Started again with the same arguments, the worker continues its stream; with other arguments it starts a new log.
    """
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
    if bus.stream(name) != streams[0] or bus.stream_status(name, None).is_over:
        bus.begin_job(streams[0], sinks=[])
    return run_task(DecodeTask(redis_url=redis_url, stream_id=name, result_ttl_s=config.result_ttl_s))


@worker_app.command("infer", epilog=_example("infer"), context_settings=cli.HELP_OPTIONS)
def worker_infer(
    context: typer.Context,
    model: cli.RequiredModelFlag,
    weights: cli.WeightsFlag = None,
    device: cli.DeviceFlag = None,
    precision: cli.PrecisionFlag = None,
    batch: cli.BatchFlag = None,
    batch_timeout_ms: cli.BatchTimeoutFlag = None,
    name: cli.WorkerNameFlag = None,
    redis_url: cli.RequiredRedisUrlFlag = "",
) -> int:
    """Run a model on the frames of all streams that use this model."""
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


@worker_app.command("track", epilog=_example("track"), context_settings=cli.HELP_OPTIONS)
def worker_track(name: cli.WorkerNameFlag = None, redis_url: cli.RequiredRedisUrlFlag = "") -> int:
    """Track the detections of every stream that has no tracker yet, and commit the results in order."""
    from pipeline.bus import Bus
    from workers.__main__ import run_task
    from workers.tasks import TrackTask

    Bus(cli.required_redis_url(redis_url)).check()
    return run_task(TrackTask(redis_url=redis_url, name=name or _default_name("track")))


@worker_app.command("sink", epilog=_example("sink"), context_settings=cli.HELP_OPTIONS)
def worker_sink(
    context: typer.Context,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="id of the stream")],
    output: Annotated[str, cli.option("--output", "folder for the result files", "DIR", cli.RESULT_PANEL)],
    save: cli.SaveFlag = None,
    overwrite: cli.OverwriteFlag = None,
    redis_url: cli.RequiredRedisUrlFlag = "",
) -> int:
    """Write the results of one stream to files. A restarted worker continues at the end of its files."""
    from pipeline.bus import Bus
    from pipeline.job.build import make_output_folder
    from workers.__main__ import run_task
    from workers.tasks import SinkTask

    config = cli.config_of(context)
    Bus(cli.required_redis_url(redis_url)).check()
    folder = make_output_folder(output, [stream])
    return run_task(
        SinkTask(
            redis_url=redis_url,
            stream_id=stream,
            output=str(folder),
            save=list(config.save),
            overwrite=config.overwrite,
        )
    )


def _default_name(role: str) -> str:
    return f"{role}-{socket.gethostname()}-{os.getpid()}"
