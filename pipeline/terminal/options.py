"""The options that several verbs share: their names, help texts and defaults.

An option of a job is declared as text here. `pipeline.job.yaml_file.with_flags` converts and checks it like the field
of the configuration file with the same name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.contract import defaults
from pipeline.contract.exports import DEFAULT_EXPORTS, EXPORTS
from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.contract.config import JobConfig

APP_OPTIONS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
}
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def unwrap(text: str) -> str:
    """Join the lines of each paragraph, so that --help wraps it to the terminal; indented lines stay as they are."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text)


def option(
    name: str,
    help_text: str,
    metavar: str | None = None,
    panel: str | None = None,
    *,
    default: object = None,
    **more: Any,
) -> Any:
    """An option of a verb.

    metavar   the placeholder of its value in --help
    panel     the heading under which --help lists it
    default   the default to show, for a parameter whose own default is None; other defaults are shown as they are
    more      further arguments of `typer.Option`
    """
    if default is not None:
        default = f"{default:g}" if isinstance(default, float) else default
        help_text = rf"{help_text} [dim]\[default: {default}][/]"
    return typer.Option(name, help=help_text, metavar=metavar, rich_help_panel=panel, **more)


MODEL_PANEL, STREAM_PANEL, RESULT_PANEL, REDIS_PANEL = "Model", "Streams", "Results", "Redis"

ModelFlag = Annotated[
    str | None,
    option(
        "--model",
        "model to run; `maskstream models` lists them",
        "NAME",
        MODEL_PANEL,
        default=f"{defaults.CPU_MODEL} on the CPU, {defaults.CUDA_MODEL} on CUDA",
    ),
]
RequiredModelFlag = Annotated[
    str, option("--model", "model to run; decode and infer workers need the same one", "NAME", MODEL_PANEL)
]
WeightsFlag = Annotated[
    str | None,
    option(
        "--weights", "weights file for the model's architecture", "FILE", MODEL_PANEL, default="the model's own weights"
    ),
]
DeviceFlag = Annotated[
    str | None,
    option("--device", "device to run the model on", "auto|cpu|cuda|cuda:N", MODEL_PANEL, default=defaults.DEVICE),
]
PrecisionFlag = Annotated[
    str | None,
    option(
        "--precision",
        "floating-point type of the network",
        "auto|fp32|bf16|fp16",
        MODEL_PANEL,
        default=defaults.PRECISION,
    ),
]
BatchFlag = Annotated[
    str | None,
    option("--batch", "maximum number of frames in one forward pass", "N", MODEL_PANEL, default=defaults.BATCH),
]
BatchTimeoutFlag = Annotated[
    str | None,
    option(
        "--batch-timeout-ms",
        "maximum time to wait for a full batch, in milliseconds",
        "MS",
        MODEL_PANEL,
        default=defaults.BATCH_TIMEOUT_MS,
    ),
]
WorkersFlag = Annotated[
    str | None,
    option(
        "--workers",
        "number of infer workers, each with its own copy of the model",
        "N",
        MODEL_PANEL,
        default=defaults.WORKERS,
    ),
]
ConfFlag = Annotated[
    str | None,
    option(
        "--conf",
        "confidence threshold, 0 to 1: a track begins at this score and continues down to half of it",
        "SCORE",
        STREAM_PANEL,
        default=defaults.CONF,
    ),
]
MinScoreFlag = Annotated[
    str | None,
    option(
        "--min-score",
        "lowest score of an instance in the results, 0 to 1",
        "SCORE",
        STREAM_PANEL,
        default=defaults.MIN_SCORE,
    ),
]
TrackFlag = Annotated[
    bool | None,
    typer.Option(
        "--track/--no-track",
        metavar=" ",
        help=r"link instances across frames [dim]\[default: --track for videos, --no-track for pictures][/]",
        rich_help_panel=STREAM_PANEL,
        show_default=False,
    ),
]
ClassesFlag = Annotated[
    list[str] | None,
    option(
        "--classes", "classes to detect, such as person,car", "LABELS", STREAM_PANEL, default="all classes of the model"
    ),
]
DropPolicyFlag = Annotated[
    str | None,
    option(
        "--drop-policy",
        "when the frame queue is full: lossless makes the source wait, latest drops the oldest frame, "
        "auto is lossless for files and latest for live sources",
        "auto|lossless|latest",
        STREAM_PANEL,
        default=defaults.DROP_POLICY,
    ),
]
MaxStalenessFlag = Annotated[
    str | None,
    option(
        "--max-staleness-s",
        "before inference, drop frames older than this, in seconds (with drop policy latest)",
        "S",
        STREAM_PANEL,
        default=defaults.MAX_STALENESS_S,
    ),
]
MaxFramesFlag = Annotated[
    str | None,
    option(
        "--max-frames",
        "end each stream after N frames, counted after the selection by stride and frame rate; "
        "frames that a live stream drops count too",
        "N",
        STREAM_PANEL,
        default="no limit",
    ),
]
StrideFlag = Annotated[
    str | None, option("--stride", "process every N-th frame", "N", STREAM_PANEL, default=defaults.STRIDE)
]
MaxFpsFlag = Annotated[
    str | None,
    option(
        "--max-fps",
        "process at most this many frames per second of media time",
        "FPS",
        STREAM_PANEL,
        default="no limit",
    ),
]
RtspTransportFlag = Annotated[
    str | None,
    option("--rtsp-transport", "transport protocol of RTSP", "tcp|udp", STREAM_PANEL, default=defaults.RTSP_TRANSPORT),
]
FailFastFlag = Annotated[
    bool | None,
    typer.Option(
        "--fail-fast",
        help="end a live stream with an error if its source cannot be opened at the first attempt",
        metavar=" ",
        rich_help_panel=STREAM_PANEL,
        show_default=False,
    ),
]
StreamIdsFlag = Annotated[
    list[str] | None,
    option(
        "--stream-id",
        "id of the first SOURCE's stream; repeat it for the next SOURCE",
        "ID",
        STREAM_PANEL,
        default="the file's name; cam1, cam2 … for live sources",
    ),
]
OutputFlag = Annotated[
    str | None,
    option(
        "--output",
        "folder for the result files",
        "DIR",
        RESULT_PANEL,
        default=f"a fresh folder in {defaults.RUNS_FOLDER}/",
    ),
]
SaveFlag = Annotated[
    list[str] | None,
    option(
        "--save",
        "comma-separated list of the files to write for each stream: "
        + "; ".join(f"{row.name}: {row.description}" for row in EXPORTS.values()),
        "KINDS",
        RESULT_PANEL,
        default=",".join(DEFAULT_EXPORTS),
    ),
]
OverwriteFlag = Annotated[
    bool | None,
    typer.Option(
        "--overwrite",
        help="replace the results of an earlier run in the output folder",
        metavar=" ",
        rich_help_panel=RESULT_PANEL,
        show_default=False,
    ),
]
ResultTtlFlag = Annotated[
    str | None,
    option(
        "--result-ttl-s",
        "time for which the result log stays in Redis after the stream has ended, in seconds",
        "S",
        REDIS_PANEL,
        default=defaults.RESULT_TTL_S,
    ),
]
RedisUrlFlag = Annotated[
    str | None,
    option(
        "--redis-url",
        "redis://, rediss:// or unix:// URL of the Redis server",
        "URL",
        REDIS_PANEL,
        default="a private server that stops with the job",
        envvar="MASKSTREAM_REDIS_URL",
    ),
]
RequiredRedisUrlFlag = Annotated[
    str,
    option(
        "--redis-url",
        "redis://, rediss:// or unix:// URL of the Redis server",
        "URL",
        REDIS_PANEL,
        envvar="MASKSTREAM_REDIS_URL",
        show_default=False,
    ),
]
WorkerNameFlag = Annotated[
    str | None,
    option("--name", "name of the worker, unique on the Redis server", "NAME", default="from host name and process id"),
]


def config_of(context: typer.Context, path: Path | None = None) -> JobConfig:
    """The configuration in the file at `path`, with the command's options that are fields of it merged into it."""
    from pipeline.contract.config import JobConfig
    from pipeline.job.yaml_file import load_config, with_flags

    flags = {name: value for name, value in context.params.items() if name in JobConfig.__struct_fields__}
    for name in flags.keys() & {"classes", "save"}:
        # the values of a flag that is given several times, each a comma-separated list; empty if it is not given
        given = flags[name]
        flags[name] = [part.strip() for text in given for part in text.split(",") if part.strip()] if given else None
    return with_flags(load_config(path) if path else JobConfig(), flags)


def parse_size(flag: str, text: str) -> tuple[int, int]:
    """The two numbers of a size such as `960x540`. Raises UsageError that names the flag."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if match is None:
        raise UsageError(f"{flag}: expected two numbers of pixels such as 960x540, got {text!r}")
    return int(match[1]), int(match[2])


def required_redis_url(redis_url: str) -> str:
    """Return `redis_url`. Raises UsageError if it is empty, that is, neither --redis-url nor the variable is given."""
    if not redis_url:
        raise UsageError("no Redis: give --redis-url URL or set MASKSTREAM_REDIS_URL")
    return redis_url
