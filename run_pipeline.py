"""The command line: arguments -> configuration -> run -> exit code. `maskstream` is the same as this file.

What a command needs is imported inside it, so that --help and mistakes answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline import cli_evaluate, cli_track, cli_train
from pipeline import cli_options as cli
from pipeline.errors import BusError, MaskStreamError, UsageError

if TYPE_CHECKING:
    from pipeline.config import JobConfig

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
VERBS = ("subscribe", "worker", "status", "models", "train", "synthetic", "evaluate", "track")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": "rich"}
_CONTEXT = {"help_option_names": ["-h", "--help"]}
run_app = typer.Typer(**_PLAIN)
verbs_app = typer.Typer(**_PLAIN)
worker_app = typer.Typer(**_PLAIN)
verbs_app.add_typer(
    worker_app, name="worker", help="Start one worker alone, to spread a job over hosts.", context_settings=_CONTEXT
)

verbs_app.command("train", epilog=cli_train.TRAIN_EPILOG, context_settings=_CONTEXT)(cli_train.train)
verbs_app.command("synthetic", epilog=cli_train.SYNTHETIC_EPILOG, context_settings=_CONTEXT)(cli_train.synthetic)
verbs_app.command("track", epilog=cli_track.TRACK_EPILOG, context_settings=_CONTEXT)(cli_track.track)
evaluate_app = typer.Typer(**_PLAIN)
evaluate_app.command("coco", epilog=cli_evaluate.COCO_EPILOG, context_settings=_CONTEXT)(cli_evaluate.evaluate_coco)
evaluate_app.command("video", epilog=cli_evaluate.VIDEO_EPILOG, context_settings=_CONTEXT)(cli_evaluate.evaluate_video)
evaluate_app.command("mot", epilog=cli_evaluate.MOT_EPILOG, context_settings=_CONTEXT)(cli_evaluate.evaluate_mot)
verbs_app.add_typer(
    evaluate_app,
    name="evaluate",
    help="Tell how good a model is, on your pictures or a drawn video, or a tracker.",
    context_settings=_CONTEXT,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from pipeline import __version__

        print(f"maskstream {__version__}")
        raise typer.Exit


@run_app.command(epilog=cli.RUN_EPILOG, context_settings=_CONTEXT)
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
    from pipeline.job import build_job, drop_unused_folder
    from pipeline.progress import Display, read_summaries
    from workers.supervisor import run_job

    config = _config_of(context, config_file)
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


@verbs_app.command(context_settings=_CONTEXT)
def subscribe(
    streams: Annotated[list[str], typer.Argument(metavar="STREAM", help="stream ids")],
    start: Annotated[str, cli.option("--from", "SEQ: go on behind that frame; default now", "now|start|SEQ")] = "now",
    output_format: Annotated[str, cli.option("--format", "default json", "json|text")] = "json",
    redis_url: cli.RequiredRedisUrl = "",
) -> int:
    """Print the results of some streams, a line each, until every one has ended."""
    from pipeline.bus import Bus
    from pipeline.client import subscribe as results_of
    from pipeline.messages import encode_result
    from pipeline.reports import result_line

    if output_format not in {"json", "text"}:
        raise UsageError(f"--format: expected json or text, got {output_format!r}")
    url = _needed(redis_url)
    results = results_of(url, *streams, start=start)
    Bus(url).check()
    try:
        for result in results:
            print(encode_result(result).decode() if output_format == "json" else result_line(result), flush=True)
    except BusError as error:
        raise MaskStreamError(str(error)) from None
    return EXIT_DONE


@verbs_app.command(context_settings=_CONTEXT)
def status(
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False, redis_url: cli.RequiredRedisUrl = ""
) -> int:
    """Tell how streams and workers are doing. Exit code 0: well; 1: one failed, stalls or is missing; 2: no Redis."""
    import msgspec

    from pipeline.bus import LOST_CONNECTION, Bus
    from pipeline.reports import problems_of, status_lines

    bus = Bus(_needed(redis_url))
    bus.check()
    try:
        streams, workers = bus.stream_statuses(), bus.worker_statuses()
    except LOST_CONNECTION as error:
        raise BusError(f"Redis went away: {error}") from None
    problems = problems_of(streams, workers)
    if as_json:
        report = {"healthy": not problems, "problems": problems, "streams": streams, "workers": workers}
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(*status_lines(streams, workers), *problems, sep="\n")
    return EXIT_FAILED if problems else EXIT_DONE


@verbs_app.command(context_settings=_CONTEXT)
def models() -> int:
    """List the models, where their weights are, how good they are, and their classes."""
    from pipeline.reports import model_lines

    print(*model_lines(), sep="\n")
    return EXIT_DONE


@worker_app.command("decode", context_settings=_CONTEXT)
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
    from pipeline.job import build_streams
    from pipeline.models import get_model
    from pipeline.weights_table import spec_of_weights
    from workers.__main__ import run_task
    from workers.tasks import DecodeTask

    config = _config_of(context)
    spec = spec_of_weights(get_model(model), config.weights)
    streams = build_streams(config, spec, [source], [stream_id] if stream_id else [])
    if len(streams) != 1:
        raise UsageError(f"source {source!r}: expected one stream, got {len(streams)}: start a worker for each")
    bus = Bus(_needed(redis_url))
    bus.check()
    name = streams[0].stream_id
    if bus.stream(name) != streams[0] or bus.stream_status(name, None).phase in {"ended", "failed"}:
        bus.begin(streams[0], sinks=[])
    return run_task(DecodeTask(redis_url=redis_url, stream_id=name, result_ttl_s=config.result_ttl_s))


@worker_app.command("infer", context_settings=_CONTEXT)
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
    from pipeline.models import get_model
    from workers.__main__ import run_task
    from workers.tasks import InferTask

    config = _config_of(context)
    Bus(_needed(redis_url)).check()
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


@worker_app.command("track", context_settings=_CONTEXT)
def worker_track(name: cli.WorkerName = None, redis_url: cli.RequiredRedisUrl = "") -> int:
    """Order, track and commit the detections of all streams that nobody else tracks."""
    from pipeline.bus import Bus
    from workers.__main__ import run_task
    from workers.tasks import TrackTask

    Bus(_needed(redis_url)).check()
    return run_task(TrackTask(redis_url=redis_url, name=name or _default_name("track")))


@worker_app.command("sink", context_settings=_CONTEXT)
def worker_sink(
    context: typer.Context,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="stream id")],
    output: Annotated[str, cli.option("--output", "folder of the files", "DIR", cli.RESULT_PANEL)],
    save: cli.Save = None,
    redis_url: cli.RequiredRedisUrl = "",
) -> int:
    """Write the results of one stream to files. Started again it goes on where the files end."""
    from pipeline.bus import Bus
    from pipeline.job import make_output_folder
    from workers.__main__ import run_task
    from workers.tasks import SinkTask

    config = _config_of(context)
    Bus(_needed(redis_url)).check()
    folder = make_output_folder(output, [stream])
    return run_task(SinkTask(redis_url=redis_url, stream_id=stream, output=str(folder), save=list(config.save)))


def _config_of(context: typer.Context, path: Path | None = None) -> JobConfig:
    """The configuration file and, above it, those parameters of the command that are fields of it."""
    from pipeline.config import JobConfig
    from pipeline.config_file import load_config, with_flags

    flags = {name: value for name, value in context.params.items() if name in JobConfig.__struct_fields__}
    for name in flags.keys() & {"classes", "save"}:
        if flags[name] is not None:
            flags[name] = [part.strip() for part in flags[name].split(",") if part.strip()]
    return with_flags(load_config(path) if path else JobConfig(), flags)


def _needed(redis_url: str) -> str:
    if not redis_url:
        raise UsageError("no Redis: give --redis-url URL or set MASKSTREAM_REDIS_URL")
    return redis_url


def _default_name(role: str) -> str:
    return f"{role}-{socket.gethostname()}-{os.getpid()}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    app = verbs_app if given and given[0] in VERBS else run_app
    program = "run_pipeline.py" if Path(sys.argv[0]).suffix == ".py" else "maskstream"
    try:
        command: Any = typer.main.get_command(app)
        # not command.main(): it has exit codes and words of its own for Ctrl-C and for closed pipes
        with command.make_context(program, given[1:] if given[:1] == ["run"] else given) as context:
            code = command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as exit_:
        return exit_.exit_code
    except _WrongArguments as error:
        command_path = error.ctx.command_path if error.ctx else program
        return _fail(f"{error.format_message().rstrip('.')}; see {command_path} --help", EXIT_USAGE)
    except (UsageError, BusError) as error:
        return _fail(str(error), EXIT_USAGE)
    except MaskStreamError as error:
        return _fail(str(error), EXIT_FAILED)
    except BrokenPipeError:
        # whoever read has seen enough; at exit Python would try to write what is left once more
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return _fail(f"cannot write: {str(error.strerror).lower()}; free some space there", EXIT_FAILED)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return int(code or EXIT_DONE)


def _fail(text: str, code: int) -> int:
    from pipeline.progress_table import one_line

    with contextlib.suppress(BrokenPipeError):
        print(f"maskstream: error: {one_line(text)}", file=sys.stderr)
    return code


# click's UsageError: what typer raises for arguments it cannot take, and does not export
_WrongArguments: Any = typer.BadParameter.__mro__[1]

if __name__ == "__main__":
    sys.exit(main())
