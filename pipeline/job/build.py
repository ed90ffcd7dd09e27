"""A job: the configuration and the command line checked as a whole, nothing left to decide.

Precedence, strongest first: flags, a stream's own fields in the file, the file's fields for all streams, the defaults.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, count
from pathlib import Path

from pipeline.contract.config import (
    OUTPUT_SUFFIXES,
    JobConfig,
    Output,
    Precision,
    StreamConfig,
    StreamEntry,
    StreamOptions,
    check_stream_id,
)
from pipeline.errors import ConfigError, OutputError, UsageError
from pipeline.models.registry import ModelSpec, class_ids_of, cuda_expected, default_model, get_model, weights_path
from pipeline.models.weights_table import model_table, spec_of_weights
from pipeline.source import ResolvedSource, resolve_sources

MIB = 1024 * 1024
MIN_LOG_BYTES = 8 * MIB
MAX_LOG_BYTES = 64 * MIB
SERVER_BYTES = 8 * MIB
"""what Redis needs for itself: tables, connections, headers of entries"""
SUBSCRIBER_BYTES = 16 * MIB
"""messages waiting for slow subscribers: the limit at which the private server cuts one off"""
RUNS_FOLDER = Path("runs")

DEFAULT_CONF = 0.5
DEFAULT_MAX_STALENESS_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the workers are started with."""

    streams: list[StreamConfig]
    model: str
    weights: Path | None
    """None: the model's own"""
    device: str
    """cpu, cuda or cuda:N"""
    precision: Precision
    batch: int
    batch_timeout_ms: float
    workers: int
    redis_url: str | None
    """None: a private server"""
    redis_memory_mb: int
    result_ttl_s: int
    output: Path
    """a folder that exists"""
    save: list[Output]
    readers: list[str]


def build_job(config: JobConfig, sources: Sequence[str] = (), stream_ids: Sequence[str] = ()) -> Job:
    """The job that `config` (flags merged into it), the SOURCE arguments and the --stream-id flags ask for.

    `stream_ids` name the streams of `sources`, in their order; those of the file have names. The folder of the
    results is made last; without `config.output` it is a fresh one under runs/.

    Raises UsageError for what could not work: a source that is not there, a name given twice, a class that the model
    does not know, a bus memory that is too small, an output that would overwrite a source; OutputError for a folder
    that cannot be made or written.
    """
    device = ("cuda" if cuda_expected() else "cpu") if config.device == "auto" else config.device
    base = get_model(config.model or default_model(device))
    weights = weights_path(base, config.weights) if config.weights else None
    if weights and not weights.is_file():
        raise ConfigError(f"weights: expected a file, found none at {weights}")
    spec = spec_of_weights(base, weights)
    streams = build_streams(config, spec, sources, stream_ids)
    save = list(dict.fromkeys(config.save))
    if config.output:
        _keep_sources_safe(streams, save, Path(config.output).expanduser())
    return Job(
        streams=streams,
        model=base.name,
        weights=weights,
        device=device,
        precision=config.precision,
        batch=config.batch,
        batch_timeout_ms=config.batch_timeout_ms,
        workers=config.workers,
        redis_url=config.redis_url,
        redis_memory_mb=config.redis_memory_mb,
        result_ttl_s=config.result_ttl_s,
        output=make_output_folder(config.output, [stream.stream_id for stream in streams]),
        save=save,
        readers=config.readers,
    )


def build_streams(
    config: JobConfig, spec: ModelSpec, sources: Sequence[str], stream_ids: Sequence[str]
) -> list[StreamConfig]:
    """The streams of `build_job`, which see. Raises UsageError."""
    sources_by_id = _name_streams(config, sources, stream_ids)
    log_bytes = _share_memory(config, spec, len(sources_by_id))
    return [_stream_config(stream_id, source, config, spec, log_bytes) for stream_id, source in sources_by_id.items()]


def _name_streams(config: JobConfig, sources: Sequence[str], stream_ids: Sequence[str]) -> dict[str, ResolvedSource]:
    """Stream id -> source: those of the file, then those of the command line."""
    named = {check_stream_id(stream_id): _source_of(stream_id, entry) for stream_id, entry in config.streams.items()}
    found = resolve_sources(sources)
    if len(stream_ids) > len(found):
        raise UsageError(
            f"--stream-id: expected {len(found)} or less, one per stream of the command line, got {len(stream_ids)}"
        )
    taken: set[str] = set()
    for stream_id in (*named, *map(check_stream_id, stream_ids)):
        # ids that differ in case only would share their files on some systems
        if stream_id.casefold() in taken:
            raise UsageError(f"stream id {stream_id!r} is given twice (upper and lower case are the same): change one")
        taken.add(stream_id.casefold())
    for index, source in enumerate(found):
        if index < len(stream_ids):
            stream_id = stream_ids[index]
        else:
            stream_id = _free_id(source.default_stream_id, taken)
            taken.add(stream_id.casefold())
        named[stream_id] = source
    if not named:
        raise UsageError("no source: give a video file, a folder, rtsp://…, webcam:0, `demo`, or --config FILE")
    return named


def _source_of(stream_id: str, entry: StreamEntry) -> ResolvedSource:
    try:
        found = resolve_sources([entry.source])
    except UsageError as error:
        raise ConfigError(f"streams.{stream_id}: {error}") from None
    if len(found) != 1:
        raise ConfigError(
            f"streams.{stream_id}.source: expected one source, got {len(found)} files: give each a name of its own, "
            "or name the folder on the command line"
        )
    return found[0]


def _free_id(stream_id: str, taken: set[str]) -> str:
    candidates = (f"{stream_id[:56]}-{number}" for number in count(2))
    return next(name for name in chain([stream_id], candidates) if name.casefold() not in taken)


def _share_memory(config: JobConfig, spec: ModelSpec, num_streams: int) -> int:
    """Bytes for the result log of each stream. Raises ConfigError with the sum when the bus cannot hold the job."""
    frame_bytes = spec.min_size * spec.max_size * 3 // 2
    frames_bytes = num_streams * config.max_in_flight * frame_bytes
    free_bytes = config.redis_memory_mb * MIB - SERVER_BYTES - SUBSCRIBER_BYTES
    log_bytes = (free_bytes - frames_bytes) // num_streams
    if log_bytes >= MIN_LOG_BYTES:
        return min(log_bytes, MAX_LOG_BYTES)
    needed_bytes = SERVER_BYTES + SUBSCRIBER_BYTES + frames_bytes + num_streams * MIN_LOG_BYTES
    remedies = [f"raise it to {math.ceil(needed_bytes / MIB)}"]
    max_in_flight = (free_bytes // num_streams - MIN_LOG_BYTES) // frame_bytes
    if max_in_flight >= 1:
        remedies.append(f"lower max_in_flight to {max_in_flight}")
    raise ConfigError(
        f"redis_memory_mb: expected {math.ceil(needed_bytes / MIB)} or more, got {config.redis_memory_mb}: "
        f"{num_streams} streams x {config.max_in_flight} frames of {frame_bytes / MIB:.2f} MiB "
        f"+ {num_streams} result logs of {MIN_LOG_BYTES // MIB} + {SUBSCRIBER_BYTES // MIB} for subscribers "
        f"+ {SERVER_BYTES // MIB} for the server; {' or '.join(remedies)}"
    )


def _stream_config(
    stream_id: str, source: ResolvedSource, config: JobConfig, spec: ModelSpec, log_bytes: int
) -> StreamConfig:
    options = _options_of(config, stream_id)
    policy = options.drop_policy or "auto"
    if policy == "auto":
        policy = "latest" if source.kind == "live" else "lossless"
    return StreamConfig(
        stream_id=stream_id,
        source=source.source,
        kind=source.kind,
        policy=policy,
        conf=DEFAULT_CONF if options.conf is None else options.conf,
        class_ids=None if options.classes is None else class_ids_of(spec, options.classes),
        max_staleness_s=options.max_staleness_s or DEFAULT_MAX_STALENESS_S,
        stride=options.stride or 1,
        max_fps=options.max_fps,
        max_frames=options.max_frames,
        rtsp_transport=options.rtsp_transport or "tcp",
        model=spec.name,
        model_table=model_table(spec),
        max_in_flight=config.max_in_flight,
        log_bytes=log_bytes,
    )


def _options_of(config: JobConfig, stream_id: str) -> StreamOptions:
    """The options of one stream: its own where it has them, else those for all."""
    own = config.streams.get(stream_id)
    layers = [config] if own is None else [own, config]
    options = StreamOptions()
    for field in StreamOptions.__struct_fields__:
        setattr(options, field, next((value for layer in layers if (value := getattr(layer, field)) is not None), None))
    return options


def _keep_sources_safe(streams: list[StreamConfig], save: list[Output], output: Path) -> None:
    """Raises ConfigError when a result would be written over a source."""
    sources = {Path(stream.source).resolve() for stream in streams if stream.kind == "file"}
    for stream in streams:
        for kind in save:
            path = output / f"{stream.stream_id}{OUTPUT_SUFFIXES[kind]}"
            if path.resolve() in sources:
                raise ConfigError(f"output: {path} is a source that a result would replace: give another --output")


def make_output_folder(output: str | None, stream_ids: list[str]) -> Path:
    """The folder of the results; without `output` one that was not there before."""
    try:
        if output:
            folder = Path(output).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _make_fresh_folder(stream_ids[0] if len(stream_ids) == 1 else f"{datetime.now():%Y-%m-%d}")
    except FileExistsError as error:
        raise OutputError(
            f"output: expected a folder, found a file at {error.filename}; give another --output"
        ) from None
    except OSError as error:
        reason = str(error.strerror).lower()
        raise OutputError(f"output: cannot make {error.filename}: {reason}; give another --output") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"output: cannot write to {folder}: permission denied; give another --output")
    return folder


def drop_unused_folder(folder: Path) -> None:
    """Undo `make_output_folder` for a fresh folder that nothing was written to."""
    with contextlib.suppress(OSError):  # of one that is not empty
        folder.rmdir()
        folder.parent.rmdir()


def _make_fresh_folder(name: str) -> Path:
    RUNS_FOLDER.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = RUNS_FOLDER / f"{name}-{number}"
        try:
            # making it is what claims it: jobs that start together never share one
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
