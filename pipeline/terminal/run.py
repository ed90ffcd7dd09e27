"""The default verb: run a job on this host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from pipeline.errors import BusError, MaskStreamError
from pipeline.terminal import options as cli

if TYPE_CHECKING:
    from pipeline.job.build import Job
    from pipeline.terminal.progress import Display

JobRunner: TypeAlias = "Callable[[Job, Display], int]"
"""runs a job to its end and returns the exit code; the command line receives it as the object of its context"""

RUN_EPILOG = """
[bold]Other verbs[/], each with a --help of its own:

{verbs}

[bold]Examples[/]

  maskstream demo
  maskstream video.mp4 --output out --classes person,car
  maskstream rtsp://10.0.0.7/1 --stream-id door --redis-url redis://localhost
  maskstream --config cameras.yaml
  maskstream subscribe door --from start --redis-url redis://localhost

[bold]Exit codes[/]

  0    done
  1    a stream or an output failed
  2    wrong use, or no Redis
  130  interrupted

A file that is named like a verb is given as ./status.
"""


def _show_version(wanted: bool) -> None:
    if wanted:
        from pipeline import __version__

        print(f"maskstream {__version__}")
        raise typer.Exit


def run(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="SOURCE", help="files, folders, 'patterns*', rtsp://…, http://…, webcam:0, or demo"),
    ] = None,
    config_file: Annotated[
        Path | None, cli.option("--config", "YAML with all of these and more; flags win", "FILE.yaml")
    ] = None,
    output: cli.Output = None,
    save: cli.Save = None,
    stream_ids: cli.StreamIds = None,
    conf: cli.Conf = None,
    classes: cli.Classes = None,
    drop_policy: cli.DropPolicy = None,
    max_staleness_s: cli.MaxStaleness = None,
    max_frames: cli.MaxFrames = None,
    stride: cli.Stride = None,
    max_fps: cli.MaxFps = None,
    rtsp_transport: cli.RtspTransport = None,
    model: cli.ModelName = None,
    weights: cli.Weights = None,
    device: cli.Device = None,
    precision: cli.Precision = None,
    batch: cli.Batch = None,
    batch_timeout_ms: cli.BatchTimeout = None,
    workers: Annotated[str | None, cli.option("--workers", "infer workers; default 1", "N", cli.MODEL_PANEL)] = None,
    redis_url: cli.RedisUrl = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="errors only")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show what the workers say")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="print it and exit")
    ] = False,
) -> int:
    """Turn cameras or video files into tracked instance masks on Redis channels."""
    from pipeline.bus import LOST_CONNECTION, redact_url
    from pipeline.job.build import build_job, drop_unused_folder
    from pipeline.terminal.progress import Display, read_summaries

    run_job: JobRunner = context.obj
    config = cli.config_of(context, config_file)
    job = build_job(config, sources or (), stream_ids or ())
    with Display([stream.stream_id for stream in job.streams], quiet=quiet, verbose=verbose) as display:
        try:
            code = run_job(job, display)
        except (BusError, *LOST_CONNECTION) as error:
            if display.began:
                raise MaskStreamError(str(error)) from None
            raise BusError(str(error)) from None
        finally:
            if config.output is None:
                drop_unused_folder(job.output)
        summaries = read_summaries(job.output / "summary.json") if job.save else {}
        display.finish(summaries, job.output, redact_url(job.redis_url) if job.redis_url else None)
    return code
