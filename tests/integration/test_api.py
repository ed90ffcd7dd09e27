"""The library: the examples of its documentation, leaving early, and what it raises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from support.pipeline_runs import ROOT, make_scene

import pipeline.api
from pipeline.api import run
from pipeline.contract.results import FrameResult
from pipeline.errors import SourceError, UsageError

pytestmark = pytest.mark.timeout(300)  # real jobs, on a machine that may be busy

NUM_FRAMES = 10
GONE_S = 10.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds video.mp4 and photo.jpg, as the examples call them."""
    folder = tmp_path_factory.mktemp("api")
    scene = make_scene(folder / "video.mp4", NUM_FRAMES, seed=4)
    Image.fromarray(scene.render(0).image).save(folder / "photo.jpg", quality=95)
    return folder


@pytest.fixture
def private_tmp(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder for this test alone, which is the working folder, too."""
    folder = Path(tempfile.mkdtemp(prefix="api-"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.chdir(folder)
    return folder


def left_behind(private_tmp: Path) -> list[str]:
    """Processes and files of the library, after a while in which they may go."""
    deadline_s = time.monotonic() + GONE_S
    while (left := _left(private_tmp)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return left


def _left(private_tmp: Path) -> list[str]:
    children = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True) if child.is_running()]
    return [*children, *map(str, private_tmp.iterdir())]


def test_the_examples_run_as_they_stand(folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "pipeline.api" in block]
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


def test_leaving_the_loop_early_leaves_nothing_behind(folder: Path, private_tmp: Path) -> None:
    for result in run(folder / "video.mp4", model="street"):
        assert isinstance(result, FrameResult)
        assert result.frame_seq == 1
        assert psutil.Process().children()
        break
    assert left_behind(private_tmp) == []


def test_a_request_that_cannot_work_is_a_usage_error(folder: Path, private_tmp: Path) -> None:
    with pytest.raises(UsageError, match=r"source 'nope.mp4' does not exist"):
        next(run("nope.mp4"))
    with pytest.raises(UsageError, match="conff"):
        next(run(folder / "video.mp4", conff=0.4))
    with pytest.raises(UsageError, match=r"fp16 needs CUDA; on the CPU use fp32 or bf16"):
        next(run(folder / "video.mp4", model="street", device="cpu", precision="fp16"))
    assert left_behind(private_tmp) == []


def test_a_source_that_fails_is_raised_behind_the_frames_of_the_others(folder: Path, private_tmp: Path) -> None:
    words = folder.parent / "words.mp4"
    words.write_text("These are words.\n" * 1000)
    results, frames = run(words, folder / "video.mp4", model="street", max_frames=4), []
    with pytest.raises(SourceError, match=r"^words: .*words\.mp4"):
        frames.extend(results)
    assert [(frame.stream_id, frame.frame_seq) for frame in frames] == [("video", seq) for seq in range(1, 5)]
    assert left_behind(private_tmp) == []
