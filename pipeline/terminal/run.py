"""The default verb `run`: run a job on this host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

import typer

from pipeline.errors import BusError, MaskStreamError
from pipeline.terminal import options as cli

if TYPE_CHECKING:
    from pipeline.job.build import Job
    from pipeline.terminal.progress import Display

JobRunner: TypeAlias = "Callable[[Job, Display], int]"
"""runs a job to its end and returns the exit code"""


class Workers(NamedTuple):
    """What the verbs need of the workers, which stand above this package; the verbs find it in `context.obj`."""

    run_job: JobRunner
    required_roles: Sequence[str]
    """roles of which every job needs a worker with a heartbeat"""


RUN_EPILOG = """
[bold]Other commands[/] (`maskstream COMMAND --help` describes each):

{verbs}

[bold]Examples[/]

  maskstream demo --output out
  maskstream video.mp4 --output out --classes person,car
  maskstream rtsp://10.0.0.7/1 --stream-id door --redis-url redis://localhost
  maskstream --config cameras.yaml

[bold]Exit codes[/]

  0    every stream ran to its end
  1    a stream, an output file or the job failed, or a source file ended early (its results are complete up to there)
  2    the request cannot be carried out: wrong arguments, or no usable Redis server
  130  interrupted by Ctrl-C or SIGTERM

To process a file whose name is also a command, give its path: ./status
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
        typer.Argument(
            metavar="SOURCE", help="video file, folder, 'pattern*', rtsp:// or http:// URL, webcam:0, or demo"
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        cli.option(
            "--config", "YAML file with options for all streams and for single streams; flags override it", "FILE.yaml"
        ),
    ] = None,
    output: cli.OutputFlag = None,
    save: cli.SaveFlag = None,
    overwrite: cli.OverwriteFlag = None,
    stream_ids: cli.StreamIdsFlag = None,
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
    model: cli.ModelFlag = None,
    weights: cli.WeightsFlag = None,
    device: cli.DeviceFlag = None,
    precision: cli.PrecisionFlag = None,
    batch: cli.BatchFlag = None,
    batch_timeout_ms: cli.BatchTimeoutFlag = None,
    workers: cli.WorkersFlag = None,
    redis_url: cli.RedisUrlFlag = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", metavar=" ", help="print errors only")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", metavar=" ", help="print the log of the workers, and which source each stream reads"
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar=" ", callback=_show_version, is_eager=True, help="print the version and exit"
        ),
    ] = False,
) -> int:
    """Turn cameras or video files into tracked instance masks on Redis channels."""
    from pipeline.bus import LOST_CONNECTION
    from pipeline.job.build import build_job, drop_unused_folder
    from pipeline.redaction import redact_url
    from pipeline.terminal.progress import Display, read_summaries

    workers_of_host: Workers = context.obj
    config = cli.config_of(context, config_file)
    job = build_job(config, sources or (), stream_ids or ())
    with Display([stream.stream_id for stream in job.streams], quiet=quiet, verbose=verbose) as display:
        _name_sources(job, display)
        try:
            code = workers_of_host.run_job(job, display)
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


def _name_sources(job: Job, display: Display) -> None:
    """Say which streams were renamed and, to a verbose user, which source each stream reads."""
    from pipeline.redaction import redact_url

    for stream in job.streams:
        source = redact_url(stream.source)
        if (name := job.renamed.get(stream.stream_id)) is None:
            display.message("debug", f"{source} is stream {stream.stream_id}")
        else:
            display.message(
                "info", f"{source} is stream {stream.stream_id}, because {name} is the id of another stream"
            )
