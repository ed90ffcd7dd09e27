"""The library: documented examples, loops that are left early, errors, and pixels."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil
import pycocotools.mask
import pytest
from PIL import Image
from support.pipeline_runs import ROOT, make_scene
from support.redis_server import RedisServer

import pipeline.api
from pipeline.api import run, segment
from pipeline.contract.results import FrameResult
from pipeline.errors import ConfigError, MaskStreamError, SourceError, UsageError

pytestmark = pytest.mark.timeout(300)  # the jobs take minutes on a busy machine

NUM_FRAMES = 10
GONE_S = 10.0

LeftBehind = Callable[[], list[str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of the examples, video.mp4 and photo.jpg."""
    folder = tmp_path_factory.mktemp("api")
    scene = make_scene(folder / "video.mp4", NUM_FRAMES, seed=4)
    Image.fromarray(scene.render(0).image).save(folder / "photo.jpg", quality=95)
    return folder


@pytest.fixture
def private_tmp(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a temporary folder for this test only, which is also the working folder."""
    folder = Path(tempfile.mkdtemp(prefix="api-"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def left_behind(private_tmp: Path) -> LeftBehind:
    """Return a function that waits up to GONE_S and returns the remaining processes and files of the test."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}  # servers that tests share

    def left() -> list[str]:
        children = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
        running = [" ".join(child.cmdline()) for child in children if child.is_running()]
        return [*running, *map(str, private_tmp.iterdir())]

    def wait() -> list[str]:
        deadline_s = time.monotonic() + GONE_S
        while left() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return left()

    return wait


def test_the_documented_examples_run_unchanged(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "segment" in block]
    assert code.partition("\n\n")[2] == str(pipeline.api.__doc__).partition("\n\n")[2]
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:NUM_FRAMES]] == [str(seq) for seq in range(1, NUM_FRAMES + 1)]
    assert "'car')" in done.stdout
    assert lines[-1].endswith(", 270, 480)")
    assert sorted(path.name for path in folder.iterdir()) == ["photo.jpg", "video.mp4"]


def test_leaving_the_loop_early_leaves_nothing_behind(folder: Path, left_behind: LeftBehind) -> None:
    for result in run(folder / "video.mp4", model="street"):
        assert isinstance(result, FrameResult)
        assert result.frame_seq == 1
        assert psutil.Process().children()
        break
    assert left_behind() == []


def test_invalid_arguments_raise_a_one_line_error(folder: Path, left_behind: LeftBehind) -> None:
    with pytest.raises(UsageError, match=r"source 'nope.mp4' does not exist"):
        next(run("nope.mp4"))
    with pytest.raises(ConfigError, match=r"^run\(\): conff: unknown field with the value 0.4: did you mean conf\?$"):
        run(folder / "video.mp4", conff=0.4)
    with pytest.raises(ConfigError, match=r"^run\(\): conf: expected a number from 0 to 1, got 4$"):
        run(folder / "video.mp4", conf=4)
    with pytest.raises(UsageError, match=r"run\(frames=True\) .* needs files or pictures, got rtsp://\*\*\*@host/1"):
        next(run("rtsp://joe:secret@host/1", frames=True))
    with pytest.raises(UsageError, match=r"output: .*video\.mp4 is a source that a result would replace"):
        next(run(folder / "video.mp4", output=folder, save=["video"]))
    with pytest.raises(UsageError, match=r"needs files or pictures, got webcam:7"):
        next(run(7, frames=True))
    with pytest.raises(UsageError, match=r"fp16 needs CUDA; on the CPU use fp32 or bf16"):
        next(run(folder / "video.mp4", model="street", device="cpu", precision="fp16"))
    assert left_behind() == []


def test_a_failed_source_is_raised_after_the_frames_of_the_others(folder: Path, left_behind: LeftBehind) -> None:
    words = folder.parent / "words.mp4"
    words.write_text("These are words.\n" * 1000)
    results, frames = run(words, folder / "video.mp4", model="street", max_frames=4), []
    with pytest.raises(SourceError, match=r"^words: .*words\.mp4"):
        frames.extend(results)
    assert [(frame.stream_id, frame.frame_seq) for frame in frames] == [("video", seq) for seq in range(1, 5)]
    assert left_behind() == []


def test_a_job_that_cannot_continue_is_an_error(folder: Path, own_redis: Callable[..., RedisServer]) -> None:
    """Such a job leaves a log without an end message, for which the loop would otherwise wait forever."""
    server = own_redis()
    results = run(folder / "video.mp4", model="street", redis_url=server.url, max_in_flight=1)
    assert next(results).frame_seq == 1
    server.restart()
    with pytest.raises(MaskStreamError, match=r"lost the data of video: it was restarted without its data"):
        list(results)


# -- pixels -----------------------------------------------------------------------------------------------------------


def test_frames_are_yielded_with_their_pixels(folder: Path, left_behind: LeftBehind) -> None:
    """With stride 2, the pixels equal those of the picture that PyAV decodes at the time in the result."""
    with av.open(str(folder / "video.mp4")) as container:
        decoded = {round(float(frame.time), 3): frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
    frames = list(run(folder / "video.mp4", model="street", frames=True, stride=2, conf=0.3))
    assert [frame.result.frame_seq for frame in frames] == [1, 2, 3, 4, 5]
    for frame in frames:
        expected = decoded[round(frame.result.pts_s, 3)]
        difference = np.abs(frame.image_rgb.astype(int) - expected)
        assert difference.mean() < 2, "another frame, or red and blue exchanged"
        others = [
            np.abs(frame.image_rgb.astype(int) - other).mean() for other in decoded.values() if other is not expected
        ]
        assert difference.mean() < min(others)
    instance = frames[-1].result.instances[0]
    x1, y1, x2, y2 = instance.box_xyxy
    crop = frames[-1].crop(instance)
    assert abs(crop.shape[0] - (y2 - y1)) < 2
    assert abs(crop.shape[1] - (x2 - x1)) < 2
    left, top = math.floor(x1), math.floor(y1)
    assert np.array_equal(crop, frames[-1].image_rgb[top : top + crop.shape[0], left : left + crop.shape[1]])
    assert instance.mask is not None
    inside = instance.mask.to_array()[top : top + crop.shape[0], left : left + crop.shape[1]]
    masked = frames[-1].crop(instance, masked=True)
    assert np.array_equal(masked[inside], crop[inside])
    assert not masked[~inside].any()
    changed = (frames[-1].plot() != frames[-1].image_rgb).any(axis=2)
    assert changed.shape == (frames[-1].result.height, frames[-1].result.width)
    assert changed.any()
    assert left_behind() == []


def test_pictures_are_yielded_with_their_pixels(folder: Path, private_tmp: Path) -> None:
    """The name of the folder is not UTF-8."""
    pictures = private_tmp / os.fsdecode(b"caf\xe9")
    pictures.mkdir()
    for name, value in {"a.png": 40, "b.png": 200}.items():
        Image.new("RGB", (64, 48), (value, 0, 0)).save(pictures / name)
    frames = list(run(pictures, model="street", frames=True))
    assert [frame.result.source_name for frame in frames] == ["a.png", "b.png"]
    assert [frame.image_rgb[0, 0].tolist() for frame in frames] == [[40, 0, 0], [200, 0, 0]]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
def test_detections_are_labelled_iterable_and_drawable(folder: Path) -> None:
    picture = folder / "photo.jpg"
    rgb = np.asarray(Image.open(picture))
    (detections,) = segment(picture, model="street", conf=0.4)
    assert len(detections) == len(detections.labels) == len(list(detections)) > 0
    assert min(detections.scores) >= 0.4, "segment returns nothing below its threshold"
    for instance, label, mask, box in zip(
        detections, detections.labels, detections.masks(), detections.boxes_xyxy, strict=True
    ):
        assert instance.label == label
        assert instance.box_xyxy == pytest.approx(box)
        assert instance.mask is not None
        assert np.array_equal(instance.mask.to_array(), mask)
        assert detections.crop(instance).size > 0
    assert (detections.plot() != rgb).any()
    assert detections.plot().shape == rgb.shape
    for entry, mask, box in zip(detections.to_coco(7), detections.masks(), detections.boxes_xyxy, strict=True):
        decoded = pycocotools.mask.decode(json.loads(json.dumps(entry))["segmentation"])
        assert np.array_equal(decoded.astype(bool), mask)
        assert (entry["image_id"], entry["bbox"][2]) == (7, pytest.approx(box[2] - box[0]))


@pytest.mark.parametrize(
    ("source", "kind"),
    [("video.mp4", "a video"), (".", "a folder"), ("rtsp://joe:secret@host/1", "a stream"), ("webcam:0", "a stream")],
)
def test_segment_points_to_run_for_videos_folders_and_streams(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=rf"is {kind}, but segment\(\) takes pictures: use run\(") as caught:
        segment(source, model="street")
    assert "secret" not in str(caught.value)


def test_an_unreadable_picture_is_a_source_error(folder: Path) -> None:
    words = folder.parent / "words.jpg"
    words.write_text("These are words.")
    with pytest.raises(SourceError, match=r"picture .*words\.jpg: cannot be read"):
        segment(words, model="street")
