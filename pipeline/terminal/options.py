"""The flags of the command line: their names and what --help says of them.

All are text here; `pipeline.job.yaml_file.with_flags` reads and checks them like the fields of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from pipeline.contract.config import JobConfig

APP_OPTIONS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
}
HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def option(name: str, help_text: str, metavar: str | None = None, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(name, help=help_text, metavar=metavar, rich_help_panel=panel, show_default=False, **more)


MODEL_PANEL, STREAM_PANEL, RESULT_PANEL = "Model", "Streams", "Results"
ModelName = Annotated[str | None, option("--model", "see `models`; default by device", "NAME", MODEL_PANEL)]
Weights = Annotated[str | None, option("--weights", "weights for the model's architecture", "FILE", MODEL_PANEL)]
Device = Annotated[str | None, option("--device", "default auto", "auto|cpu|cuda|cuda:N", MODEL_PANEL)]
Precision = Annotated[str | None, option("--precision", "default auto", "auto|fp32|bf16|fp16", MODEL_PANEL)]
Batch = Annotated[str | None, option("--batch", "most frames in one forward pass; default 4", "N", MODEL_PANEL)]
BatchTimeout = Annotated[
    str | None, option("--batch-timeout-ms", "wait so long for a batch to fill; default 20", "T", MODEL_PANEL)
]
Conf = Annotated[
    str | None, option("--conf", "lowest score of a new track, 0 to 1; default 0.5", "SCORE", STREAM_PANEL)
]
Classes = Annotated[str | None, option("--classes", "keep these only: person,car", "LABELS", STREAM_PANEL)]
DropPolicy = Annotated[
    str | None,
    option("--drop-policy", "auto: lossless for files, latest for cameras", "auto|lossless|latest", STREAM_PANEL),
]
MaxStaleness = Annotated[
    str | None,
    option("--max-staleness-s", "policy latest: older frames are left out; default 0.5", "S", STREAM_PANEL),
]
MaxFrames = Annotated[str | None, option("--max-frames", "stop each stream after N frames", "N", STREAM_PANEL)]
Stride = Annotated[str | None, option("--stride", "take every n-th frame; default 1", "N", STREAM_PANEL)]
MaxFps = Annotated[str | None, option("--max-fps", "leave frames out above this rate", "F", STREAM_PANEL)]
RtspTransport = Annotated[str | None, option("--rtsp-transport", "default tcp", "tcp|udp", STREAM_PANEL)]
StreamIds = Annotated[
    list[str] | None, option("--stream-id", "name of the first SOURCE; again for the next", "ID", STREAM_PANEL)
]
Output = Annotated[str | None, option("--output", "folder; default a fresh one under runs/", "DIR", RESULT_PANEL)]
Save = Annotated[str | None, option("--save", "what to write there; default both", "jsonl,video", RESULT_PANEL)]
RedisUrl = Annotated[
    str | None,
    option(
        "--redis-url", "redis://, rediss:// or unix://; default a private server", "URL", envvar="MASKSTREAM_REDIS_URL"
    ),
]
RequiredRedisUrl = Annotated[
    str, option("--redis-url", "redis://, rediss:// or unix://", "URL", envvar="MASKSTREAM_REDIS_URL")
]
RequiredModel = Annotated[str, option("--model", "the same for decode and infer, see `models`", "NAME", MODEL_PANEL)]
WorkerName = Annotated[str | None, option("--name", "unique on this Redis; default from host and process", "NAME")]


def config_of(context: typer.Context, path: Path | None = None) -> JobConfig:
    """The configuration in the file at `path`, overruled by those parameters of the command that are fields of it."""
    from pipeline.contract.config import JobConfig
    from pipeline.job.yaml_file import load_config, with_flags

    flags = {name: value for name, value in context.params.items() if name in JobConfig.__struct_fields__}
    for name in flags.keys() & {"classes", "save"}:
        if flags[name] is not None:
            flags[name] = [part.strip() for part in flags[name].split(",") if part.strip()]
    return with_flags(load_config(path) if path else JobConfig(), flags)


def required_redis_url(redis_url: str) -> str:
    """The URL itself. Raises UsageError when none was given."""
    if not redis_url:
        raise UsageError("no Redis: give --redis-url URL or set MASKSTREAM_REDIS_URL")
    return redis_url
