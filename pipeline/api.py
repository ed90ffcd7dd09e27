"""MaskStream as a library.

for result in run("video.mp4", model="street"):
    print(result.frame_seq, [(instance.track_id, instance.label) for instance in result.instances])

detections = segment("photo.jpg")[0]
print(detections.scores, detections.masks().shape)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pipeline.bus import EmbeddedRedis
from pipeline.bus.connection import connect
from pipeline.bus.log_cursor import LogCursor
from pipeline.client import read_log
from pipeline.contract.config import JobConfig, StreamEntry
from pipeline.contract.results import EndResult, FrameResult
from pipeline.errors import ConfigError, MaskStreamError, SourceError, UsageError
from pipeline.job.build import MIB, build_job, drop_unused_folder

if TYPE_CHECKING:
    from pipeline.engine import segment

__all__ = ["run", "segment"]

_ROOT = Path(__file__).resolve().parent.parent
_READER = "api"
_STOP_TIMEOUT_S = 10.0


def run(*sources: str | os.PathLike[str], **options: Any) -> Iterator[FrameResult]:
    """The frames of some sources as they are committed, by the pipeline of the command line.

    sources   as on the command line: files, folders, globs, rtsp://…, webcam:0, "demo"
    options   fields of `pipeline.contract.config.JobConfig` by name, such as model="street", conf=0.4,
              classes=["person"]; nothing is written to disk unless `save` says so

    Nothing is missed: the result log waits for the caller. Leaving the loop early stops the job. Raises UsageError
    before the first frame for a request that cannot work, SourceError after the last one when a source failed.
    """
    try:
        config = msgspec.convert({"save": [], **options}, JobConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"run(): {error}") from None
    config.readers = [*config.readers, _READER]
    job = build_job(config, [os.fspath(source) for source in sources])
    for stream in job.streams:
        config.streams.setdefault(stream.stream_id, StreamEntry(source=stream.source))
    with ExitStack() as stack:
        if config.output is None:
            config.output = str(job.output)
            stack.callback(drop_unused_folder, job.output)
        if config.redis_url is None:
            config.redis_url = stack.enter_context(EmbeddedRedis(config.redis_memory_mb * MIB)).url
        process = stack.enter_context(_Command(config))
        cursor = LogCursor(*config.streams, start="start", reader=_READER)
        failures = []
        for message in read_log(connect(config.redis_url), cursor, process.check):
            if isinstance(message, FrameResult):
                yield message
            elif isinstance(message, EndResult) and message.reason == "failed":
                failures.append(f"{message.stream_id}: {message.detail}")
    if failures:
        raise SourceError("; ".join(failures))


def __getattr__(name: str) -> Any:
    """`segment` is imported when it is asked for: it brings torch, which `run` does not need in this process."""
    if name == "segment":
        from pipeline.engine import segment

        return segment
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Command:
    """The command line as a child process; a context manager that stops it."""

    def __init__(self, config: JobConfig) -> None:
        with tempfile.NamedTemporaryFile(prefix="maskstream-", suffix=".yaml", delete=False) as file:
            file.write(msgspec.json.encode(config))  # JSON is YAML
        self._config_path = Path(file.name)
        inherited = os.environ.get("PYTHONPATH")
        python_path = os.pathsep.join([str(_ROOT), *([inherited] if inherited else [])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "run_pipeline", "--config", file.name, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path},
            start_new_session=True,
        )

    def check(self) -> None:
        """Raises MaskStreamError with its last line when it ended without having done its work."""
        code = self._process.poll()
        if code in (None, 0, 1):  # 1: a stream failed, which its end message tells
            return
        words = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        line = words.rpartition("\n")[2].removeprefix("maskstream: error: ")
        raise UsageError(line) if code == 2 else MaskStreamError(line or f"the pipeline ended with code {code}")

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, *error: object) -> None:
        for _ in range(2):  # the second one skips finishing what nobody will read
            if self._process.poll() is None:
                self._process.terminate()
                time.sleep(0.1)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._config_path.unlink(missing_ok=True)
