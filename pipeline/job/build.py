"""Builds a job from the configuration and the command line, and checks that it can run.

Precedence, highest first: command-line flags, the fields of a stream in the file, the fields for all streams in the
file, the defaults of `pipeline.contract.defaults`.
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
from typing import Any

from pipeline.contract import defaults
from pipeline.contract.config import (
    STREAM_DEFAULTS,
    ExportName,
    JobConfig,
    Precision,
    StreamConfig,
    StreamEntry,
    StreamOptions,
    check_stream_id,
)
from pipeline.contract.exports import EXPORTS, SUMMARY_NAME, check_source_safe, has_content, would_replace_error
from pipeline.contract.path_json import decode_with_paths, encode_with_paths
from pipeline.contract.source_kinds import SOURCE_KINDS
from pipeline.errors import ConfigError, OutputError, UsageError
from pipeline.models.registry import ModelSpec, class_ids_of, cuda_expected, default_model, get_model, weights_path
from pipeline.models.weights_table import check_weights_file, overridden_properties, spec_of_weights
from pipeline.source import ResolvedSource, resolve_sources

MIB = 1024 * 1024
MIN_LOG_BYTES = 8 * MIB
MAX_LOG_BYTES = 64 * MIB
SERVER_BYTES = 8 * MIB
"""memory that the Redis server needs for its own tables, for connections and for the headers of entries"""
SUBSCRIBER_BYTES = 16 * MIB
"""memory for messages that slow pub/sub subscribers have not read; the private server disconnects one beyond that"""
RUNS_FOLDER = Path(defaults.RUNS_FOLDER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that the supervisor needs to start the workers of a job."""

    streams: list[StreamConfig]
    model: str
    weights: Path | None
    """None: the model's own weights"""
    device: str
    """cpu, cuda or cuda:N"""
    precision: Precision
    batch: int
    batch_timeout_ms: float
    workers: int
    redis_url: str | None
    """None: the job starts a private server"""
    redis_memory_mb: int
    result_ttl_s: int
    output: Path
    """an existing, writable folder"""
    save: list[ExportName]
    readers: list[str]
    renamed: dict[str, str]
    """stream id -> the name of its source, for streams that got another id because the name was taken"""


def build_job(config: JobConfig, sources: Sequence[str] = (), stream_ids: Sequence[str] = ()) -> Job:
    """Build the job that the configuration and the SOURCE arguments describe, and create its output folder.

    config      the configuration file with the command-line flags merged into it
    sources     the SOURCE arguments; they add streams to those of the file
    stream_ids  ids for the streams of `sources`, in the same order; the others are named after their sources

    Raises UsageError if a source does not exist, two streams have the same id, the model does not know a class, the
    memory of the bus is too small, or a result file would overwrite a source; OutputError if the output folder cannot
    be created or written. The output folder is created last, so a refused job leaves nothing behind.
    """
    device = ("cuda" if cuda_expected() else "cpu") if config.device == "auto" else config.device
    base = get_model(config.model or default_model(device))
    weights = weights_path(base, config.weights) if config.weights else None
    if weights:
        if not weights.is_file():
            raise ConfigError(f"weights: expected a file, found none at {weights}")
        check_weights_file(base, weights)
    spec = spec_of_weights(base, weights)
    sources_by_id = _name_streams(config, sources, stream_ids)
    streams = _build_streams(config, spec, sources_by_id)
    save = list(dict.fromkeys(config.save))
    if config.output:
        _check_output(streams, save, Path(os.path.expanduser(config.output)), overwrite=config.overwrite)
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
        renamed={
            stream_id: source.base_stream_id
            for stream_id, source in sources_by_id.items()
            if stream_id not in {source.base_stream_id, *config.streams, *stream_ids}
        },
    )


def encode_job(job: Job) -> bytes:
    """The job as one line of JSON, for `python -m workers job`. It may hold passwords of cameras and of Redis."""
    return encode_with_paths(job) + b"\n"


def decode_job(encoded: bytes) -> Job:
    """The job of `encode_job`. Raises ValueError."""
    job: Job = decode_with_paths(encoded, Job)
    return job


def build_streams(
    config: JobConfig, spec: ModelSpec, sources: Sequence[str], stream_ids: Sequence[str]
) -> list[StreamConfig]:
    """The streams of the job that `build_job` builds from the same arguments, for the model `spec`."""
    return _build_streams(config, spec, _name_streams(config, sources, stream_ids))


def _build_streams(config: JobConfig, spec: ModelSpec, sources_by_id: dict[str, ResolvedSource]) -> list[StreamConfig]:
    log_bytes = _share_memory(config, spec, len(sources_by_id))
    return [_stream_config(stream_id, source, config, spec, log_bytes) for stream_id, source in sources_by_id.items()]


def _name_streams(config: JobConfig, sources: Sequence[str], stream_ids: Sequence[str]) -> dict[str, ResolvedSource]:
    """Stream id -> source: first the streams of the file, then those of the command line."""
    named = {check_stream_id(stream_id): _source_of(stream_id, entry) for stream_id, entry in config.streams.items()}
    found = resolve_sources(sources)
    if len(stream_ids) > len(found):
        raise UsageError(
            f"--stream-id: expected at most {len(found)}, one per source on the command line, got {len(stream_ids)}"
        )
    taken: set[str] = set()
    for stream_id in (*named, *map(check_stream_id, stream_ids)):
        # On file systems that ignore case, ids that differ only in case would name the same files.
        if stream_id.casefold() in taken:
            raise UsageError(
                f"stream id {stream_id!r} is used twice (ids are compared without case): change one of them"
            )
        taken.add(stream_id.casefold())
    for index, source in enumerate(found):
        if index < len(stream_ids):
            stream_id = stream_ids[index]
        else:
            stream_id = _free_id(source.base_stream_id, taken)
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
            f"streams.{stream_id}.source: expected one source, got {len(found)} files: add a stream for each file, "
            "or give the folder on the command line"
        )
    return found[0]


def _free_id(stream_id: str, taken: set[str]) -> str:
    candidates = (f"{stream_id[:56]}-{number}" for number in count(2))
    return next(name for name in chain([stream_id], candidates) if name.casefold() not in taken)


def _share_memory(config: JobConfig, spec: ModelSpec, num_streams: int) -> int:
    """Maximum size of each stream's result log in bytes.

    Raises ConfigError with the calculation if `redis_memory_mb` is too small for the streams of the job.
    """
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
    policy = options["drop_policy"]
    if policy == "auto" and not SOURCE_KINDS[source.kind].is_live:
        policy = "lossless"
    return StreamConfig(
        stream_id=stream_id,
        source=source.source,
        kind=source.kind,
        policy=policy,
        conf=options["conf"],
        min_score=options["min_score"],
        track=SOURCE_KINDS[source.kind].is_sequence if options["track"] is None else options["track"],
        class_ids=None if options["classes"] is None else class_ids_of(spec, options["classes"]),
        max_staleness_s=options["max_staleness_s"],
        stride=options["stride"],
        max_fps=options["max_fps"],
        max_frames=options["max_frames"],
        rtsp_transport=options["rtsp_transport"],
        fail_fast=options["fail_fast"],
        model=spec.name,
        model_overrides=overridden_properties(spec),
        max_in_flight=config.max_in_flight,
        log_bytes=log_bytes,
    )


def _options_of(config: JobConfig, stream_id: str) -> dict[str, Any]:
    """The fields of StreamOptions for one stream: its own value, else that for all streams, else the default."""
    own = config.streams.get(stream_id)
    layers = [*([own] if own else []), config, STREAM_DEFAULTS]
    return {
        field: next((value for layer in layers if (value := getattr(layer, field)) is not None), None)
        for field in StreamOptions.__struct_fields__
    }


def _check_output(streams: list[StreamConfig], save: list[ExportName], output: Path, *, overwrite: bool) -> None:
    """Raises ConfigError if a result would replace a source, or, without `overwrite`, the result of an earlier run."""
    paths = [EXPORTS[name].path(output, stream) for stream in streams for name in save]
    for path in paths:
        check_source_safe(path, streams)
    if not overwrite:
        for path in [*paths, output / SUMMARY_NAME]:
            if has_content(path):
                raise ConfigError(f"output: {would_replace_error(path)}")


def make_output_folder(output: str | None, stream_ids: list[str]) -> Path:
    """Create the folder for the results and return its path.

    output      the folder of the configuration, which may exist; None: create a fresh folder under runs/, named after
                the only stream or, with several streams, after the date

    Raises OutputError if the folder cannot be created or written.
    """
    try:
        if output:
            folder = Path(os.path.expanduser(output))
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


def demo_source(output: Path, stream_id: str) -> Path:
    """The video file to which a job renders the source `demo` of a stream."""
    return output / f"{stream_id}-source.mp4"


def drop_unused_folder(folder: Path) -> None:
    """Remove a folder that `make_output_folder` created under runs/, and runs/ itself, if they are empty."""
    with contextlib.suppress(OSError):  # the folder is not empty
        folder.rmdir()
        folder.parent.rmdir()


def _make_fresh_folder(name: str) -> Path:
    RUNS_FOLDER.mkdir(exist_ok=True)
    number = 1
    while True:
        folder = RUNS_FOLDER / f"{name}-{number}"
        try:
            # mkdir fails if the folder exists, so two jobs that start together never get the same one
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
