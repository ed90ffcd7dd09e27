"""MaskStream as a library; `import maskstream` offers the same functions.

for result in run("video.mp4", model="street"):
    print(result.frame_seq, [(instance.track_id, instance.label) for instance in result.instances])

detections = segment("photo.jpg")[0]
print(detections.labels, detections.scores, detections.masks().shape)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import msgspec
import numpy as np
from PIL import Image

from pipeline.bus import EmbeddedRedis
from pipeline.bus.connection import connect
from pipeline.bus.log_cursor import LogCursor
from pipeline.client import read_log
from pipeline.contract import defaults
from pipeline.contract.config import JobConfig, StreamConfig, StreamEntry
from pipeline.contract.results import EndResult, FrameResult
from pipeline.errors import MaskStreamError, SourceError, UsageError
from pipeline.job.build import MIB, Job, build_job, demo_source, drop_unused_folder
from pipeline.job.yaml_file import convert_fields
from pipeline.models.registry import default_model, get_model
from pipeline.models.weights_table import spec_of_weights
from pipeline.source import redact

if TYPE_CHECKING:
    from pipeline.frames import Frame, FrameJoiner, PictureDetections
    from pipeline.source.images import ImageLike

__all__ = ["run", "segment"]

_ROOT = Path(__file__).resolve().parent.parent
_READER = "api"
_STOP_TIMEOUT_S = 10.0


@overload
def run(*sources: str | os.PathLike[str], frames: Literal[False] = False, **options: Any) -> Iterator[FrameResult]: ...
@overload
def run(*sources: str | os.PathLike[str], frames: Literal[True], **options: Any) -> Iterator[Frame]: ...
def run(
    *sources: str | os.PathLike[str], frames: bool = False, **options: Any
) -> Iterator[FrameResult] | Iterator[Frame]:
    """Run the pipeline of the command line on some sources and yield its results, each stream's in order.

    sources   as on the command line: files, folders, globs, rtsp://…, webcam:0, "demo"
    frames    yield a `Frame` for each result: the result message together with the pixels of the frame, for crops and
              drawing. The source is read a second time for it, so it must be a file or pictures, not a live source
    options   fields of `pipeline.contract.config.JobConfig` by name, such as model="street", conf=0.4,
              classes=["person"]. No file is written unless `save` is given. `conf` means the same as --conf: a track
              begins at this score and continues down to half of it

    Every result is yielded: the job waits for the caller. Leaving the loop early stops the job. Raises ConfigError for
    an option that does not exist or is out of range; UsageError, at the first frame, for a request that cannot be
    carried out; SourceError, after the last frame, if a source failed.
    """
    values = {"save": [], **options}
    config = convert_fields(values, JobConfig, lambda place: f"run(): {'.'.join(map(str, place))}")
    return _run(config, [os.fspath(source) for source in sources], frames)


def _run(config: JobConfig, sources: list[str], frames: bool) -> Iterator[Any]:
    config.readers = [*config.readers, _READER]
    job = build_job(config, sources)
    for stream in job.streams:
        config.streams.setdefault(stream.stream_id, StreamEntry(source=stream.source))
    with ExitStack() as stack:
        if config.output is None:
            config.output = str(job.output)
            stack.callback(drop_unused_folder, job.output)
        joiners = {stream.stream_id: stack.enter_context(joiner) for stream, joiner in _joiners(job)} if frames else {}
        if config.redis_url is None:
            config.redis_url = stack.enter_context(EmbeddedRedis(config.redis_memory_mb * MIB)).url
        process = stack.enter_context(_Command(config))
        cursor = LogCursor(*config.streams, start="start", reader=_READER)
        failures = []
        for message in read_log(connect(config.redis_url), cursor, process.check):
            if isinstance(message, FrameResult):
                yield joiners[message.stream_id].join(message) if frames else message
            elif isinstance(message, EndResult) and message.reason == "failed":
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
                f"{redact(stream.source)}: leave frames out, or save the annotated video with save=['video']"
            )
        path = demo_source(job.output, stream.stream_id) if stream.source == "demo" else stream.source
        yield stream, FrameJoiner(msgspec.structs.replace(stream, source=str(path)))


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
