"""MaskStream as a library; `import maskstream` offers the same functions.

for result in run("video.mp4", model="street"):
    print(result.frame_seq, [(instance.track_id, instance.label) for instance in result.instances])

detections = segment("photo.jpg")[0]
print(detections.labels, detections.scores, detections.masks().shape)
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec
import numpy as np
from PIL import Image

from ops.cache import set_cache_folders
from pipeline.bus import EmbeddedRedis
from pipeline.bus.connection import connect
from pipeline.bus.log_cursor import LogCursor
from pipeline.child_path import python_path
from pipeline.client import read_log
from pipeline.contract import defaults
from pipeline.contract.config import JobConfig, StreamConfig
from pipeline.contract.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, SUPERVISED
from pipeline.contract.results import EndResult, FrameResult
from pipeline.errors import MaskStreamError, SourceError, UsageError
from pipeline.job.build import MIB, Job, build_job, demo_source, drop_unused_folder, encode_job
from pipeline.job.yaml_file import convert_fields
from pipeline.models.registry import default_model, get_model
from pipeline.models.weights_table import spec_of_weights
from pipeline.redaction import redact_url

if TYPE_CHECKING:
    from pipeline.frames import Frame, FrameJoiner, PictureDetections
    from pipeline.source.images import ImageLike

__all__ = ["run", "segment"]

_READER = "api"
_STOP_TIMEOUT_S = 10.0


@overload
def run(
    *sources: str | os.PathLike[str] | int, frames: Literal[False] = False, **options: Any
) -> Iterator[FrameResult]: ...
@overload
def run(*sources: str | os.PathLike[str] | int, frames: Literal[True], **options: Any) -> Iterator[Frame]: ...
def run(
    *sources: str | os.PathLike[str] | int, frames: bool = False, **options: Any
) -> Iterator[FrameResult] | Iterator[Frame]:
    """Run the pipeline of the command line on some sources and yield its results, each stream's in order.

    sources   as on the command line: files, folders, globs, rtsp://…, webcam:0, "demo"; a number N is webcam:N
    frames    yield a `Frame` for each result: the result message together with the pixels of the frame, for crops and
              drawing. The source is read a second time for it, so it must be a file or pictures, not a live source
    options   fields of `pipeline.contract.config.JobConfig` by name, such as model="street", conf=0.4,
              classes=["person"]. No file is written unless `save` is given. `conf` means the same as --conf: a track
              begins at this score and continues down to half of it

    Every result is yielded: the job waits for the caller. Leaving the loop early stops the job. Raises ConfigError for
    an option that does not exist or is out of range; UsageError, at the first frame, for a request that cannot be
    carried out; SourceError, after the last frame, if a source failed.
    """
    paths = {name: os.fspath(value) for name, value in options.items() if isinstance(value, os.PathLike)}
    values = {"save": [], **options, **paths}
    config = convert_fields(values, JobConfig, lambda place: f"run(): {'.'.join(map(str, place))}")
    names = [f"webcam:{source}" if isinstance(source, int) else os.fspath(source) for source in sources]
    return _run(config, names, frames)


def _run(config: JobConfig, sources: list[str], frames: bool) -> Iterator[Any]:
    set_cache_folders()  # the job's processes inherit them
    config.readers = [*config.readers, _READER]
    job = build_job(config, sources)
    with ExitStack() as stack:
        if config.output is None:
            stack.callback(drop_unused_folder, job.output)
        joiners = {stream.stream_id: stack.enter_context(joiner) for stream, joiner in _joiners(job)} if frames else {}
        redis_url = job.redis_url or stack.enter_context(EmbeddedRedis(job.redis_memory_mb * MIB)).url
        process = stack.enter_context(_JobProcess(replace(job, redis_url=redis_url)))
        cursor = LogCursor(*(stream.stream_id for stream in job.streams), start="start", reader=_READER)
        failures = []
        for message in read_log(connect(redis_url), cursor, process.check):
            if isinstance(message, FrameResult):
                yield joiners[message.stream_id].join(message) if frames else message
            elif isinstance(message, EndResult) and message.reason in ("failed", "truncated"):
                failures.append(f"{message.stream_id}: {message.detail}")
    if failures:
        raise SourceError("; ".join(failures))


def segment(
    image_or_images: ImageLike | Iterable[ImageLike],
    *,
    model: str | None = None,
    weights: str | None = None,
    device: str = defaults.DEVICE,
    precision: str = defaults.PRECISION,
    threads: int | None = None,
    conf: float = defaults.CONF,
    classes: Sequence[str] | None = None,
    batch: int = defaults.BATCH,
) -> list[PictureDetections]:
    """Detect and segment the objects on one picture or on several, in this process. Imports torch when it is called.

    image_or_images   a picture is a (H, W, 3) uint8 RGB array, a PIL image or the path of a picture file; EXIF
                      orientation is applied to the latter two. Boxes and masks are in pixels of the upright picture
    model, weights, device, precision   as the flags of the command line
    threads           number of CPU threads; None: all cores of this process
    conf              score threshold: every detection with at least this score is returned. There are no tracks here,
                      so nothing below the threshold is returned, unlike with `run(conf=)` and --conf
    classes           labels to detect; None: all classes of the model
    batch             maximum number of pictures in one forward pass

    Returns one entry per picture. The loaded model is kept for the next call. Raises UsageError for a video or a stream
    (use `run`), ModelError, SourceError for a file that cannot be read, ValueError for an array that is no picture.
    """
    from pipeline.engine import segment_pictures
    from pipeline.frames import PictureDetections

    if isinstance(image_or_images, np.ndarray | Image.Image | str | os.PathLike):
        pictures: list[ImageLike] = [image_or_images]
    else:
        pictures = list(image_or_images)
    name = default_model(device) if model is None else model
    spec = spec_of_weights(get_model(name), weights)
    detected = segment_pictures(
        pictures,
        spec=spec,
        model=name,
        weights=weights,
        device=device,
        precision=precision,
        threads=threads,
        conf=conf,
        classes=classes,
        batch=batch,
    )
    return [
        PictureDetections(
            **{name: getattr(detections, name) for name in detections.__slots__},
            categories=spec.labels,
            picture=picture,
        )
        for picture, detections in zip(pictures, detected, strict=True)
    ]


def _joiners(job: Job) -> Iterator[tuple[StreamConfig, FrameJoiner]]:
    from pipeline.frames import FrameJoiner

    for stream in job.streams:
        if stream.live:
            raise UsageError(
                f"run(frames=True) reads each source a second time, so it needs files or pictures, got "
                f"{redact_url(stream.source)}: leave frames out, or save the annotated video with save=['video']"
            )
        path = demo_source(job.output, stream.stream_id) if stream.source == "demo" else stream.source
        yield stream, FrameJoiner(msgspec.structs.replace(stream, source=str(path)))


class _JobProcess:
    """A job with its supervisor as a child process; a context manager that stops it."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers", "job"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # the child stops when this process ends: it sees that the other end of its standard input is closed
            env={**os.environ, "PYTHONPATH": python_path(), SUPERVISED: "1"},
            start_new_session=True,
        )
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # `check` reports a child that has ended already
                self._process.stdin.write(encode_job(job))
                self._process.stdin.flush()

    def check(self) -> None:
        """Raises MaskStreamError with the last line of the process if it ended before its streams."""
        code = self._process.poll()
        if code in (None, EXIT_DONE, EXIT_FAILED):  # EXIT_FAILED: a stream failed, and its end message says why
            return
        text = self._process.stderr.read().decode(errors="replace").strip() if self._process.stderr else ""
        line = text.rpartition("\n")[2].removeprefix("maskstream: error: ")
        raise UsageError(line) if code == EXIT_USAGE else MaskStreamError(line or f"the job ended with code {code}")

    def __enter__(self) -> _JobProcess:
        return self

    def __exit__(self, *error: object) -> None:
        for _ in range(2):  # the second signal skips draining: nobody reads the results any more
            if self._process.poll() is None:
                self._process.terminate()
                time.sleep(0.1)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stderr):
            if pipe is not None:
                pipe.close()
