"""Workers that crash repeatedly, signals to a job, and messages about outages of Redis.

The supervisor restarts a crashed worker while the worker makes progress, and otherwise ends the job with the cause.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.pipeline_runs import (
    Running,
    covered,
    end_of,
    make_scene,
    read_results,
    running,
)
from support.redis_server import RedisServer

from pipeline.bus import Bus
from pipeline.contract.results import GapResult
from workers.roles import ROLES
from workers.supervisor import HARD_EXIT_S, MAX_CRASHES

pytestmark = pytest.mark.timeout(300)  # the jobs take minutes on a busy machine

NUM_FRAMES = 160
BAD_FRAME = 10


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("restarts") / "street.mp4"
    make_scene(path, NUM_FRAMES, width=320, height=180)
    return path


def crash_in(folder: Path, label: str, code: str) -> str:
    """Return a PYTHONPATH with which workers whose label starts with `label` run this code at their start."""
    (folder / "site").mkdir()
    lines = ["import os, signal, sys", f"if ' -m workers {label}' in ' '.join(sys.orig_argv):"]
    lines += [f"    {line}" for line in code.splitlines()]
    (folder / "site" / "sitecustomize.py").write_text("\n".join(lines))
    return str(folder / "site")


def wait_for_progress(job: Running, bus: Bus, beyond: int) -> int:
    """Wait until the sink has written more than `beyond` frames; returns how many."""
    written = job.until(
        lambda: max(bus.stream_status("street", None).sinks.get("output", 0) - beyond, 0), what="progress"
    )
    return written + beyond


# -- crashes ----------------------------------------------------------------------------------------------------------


def test_workers_that_crash_any_number_of_times_but_make_progress_finish_the_job(clip: Path, tmp_path: Path) -> None:
    with running(clip, "--output", "out", "--save", "jsonl", folder=tmp_path) as job:
        bus = Bus(job.redis_url())
        job.wait_for("street: live")
        written = 0
        for _ in range(MAX_CRASHES + 1):
            written = wait_for_progress(job, bus, written)
            assert written < NUM_FRAMES, "too late to kill"
            for role in ROLES:
                worker = job.until(lambda role=role: job.worker(role), what=role)  # type: ignore[misc]
                worker.kill()
        assert job.wait(200) == 0
        bus.close()
    results = read_results(tmp_path / "out" / "street.jsonl")
    assert covered(results) == list(range(1, NUM_FRAMES + 1))
    assert end_of(results).reason == "finished"
    assert not any(isinstance(message, GapResult) for message in results)


def test_a_frame_that_crashes_the_decoder_becomes_a_gap(clip: Path, tmp_path: Path) -> None:
    code = f"""
from pipeline.source import Converter
convert = Converter.to_i420
def to_i420(self, picture, size):
    if picture.ordinal == {BAD_FRAME}:
        os.kill(os.getpid(), signal.SIGSEGV)
    return convert(self, picture, size)
Converter.to_i420 = to_i420
"""
    python_path = crash_in(tmp_path, "decode", code)
    with running(
        clip, "--output", "out", "--save", "jsonl", "--max-frames", "20", folder=tmp_path, PYTHONPATH=python_path
    ) as job:
        assert job.wait() == 0
    results = read_results(tmp_path / "out" / "street.jsonl")
    assert covered(results) == list(range(1, 21))
    gaps = [message for message in results if isinstance(message, GapResult)]
    assert [(gap.from_seq, gap.frame_seq, gap.cause) for gap in gaps] == [(BAD_FRAME, BAD_FRAME, "error")]
    assert (end_of(results).reason, end_of(results).num_gap_frames) == ("finished", 1)
    assert any("keeps crashing without progress; leaving out the next frame" in line for line in job.err)


def test_a_decoder_without_progress_fails_with_the_cause(clip: Path, tmp_path: Path) -> None:
    python_path = crash_in(tmp_path, "decode", "os.kill(os.getpid(), signal.SIGSEGV)")
    with running(clip, "--output", "out", "--save", "jsonl", folder=tmp_path, PYTHONPATH=python_path) as job:
        assert job.wait() == 1
    end = end_of(read_results(tmp_path / "out" / "street.jsonl"))
    assert end.reason == "failed"
    assert "decode street cannot be kept running: 4 crashes without progress; SIGSEGV" in end.detail
    assert sum(line.startswith("maskstream: error: ") for line in job.err) == 1, job.err


def test_an_infer_worker_that_the_kernel_kills_ends_the_job_with_the_likely_cause(clip: Path, tmp_path: Path) -> None:
    python_path = crash_in(tmp_path, "infer", "os.kill(os.getpid(), signal.SIGKILL)")
    with running(clip, "--output", "out", "--save", "jsonl", folder=tmp_path, PYTHONPATH=python_path) as job:
        assert job.wait() == 1
    (error,) = [line for line in job.err if line.startswith("maskstream: error: ")]
    assert "cannot be kept running: 4 crashes without progress; SIGKILL (the kernel sends it when memory runs" in error
    assert "lower --batch or --workers, or use a smaller model" in error


def test_an_infer_worker_without_enough_memory_ends_the_job_with_the_cause(clip: Path, tmp_path: Path) -> None:
    code = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))"
    python_path = crash_in(tmp_path, "infer", code)
    with running(clip, "--output", "out", "--save", "jsonl", folder=tmp_path, PYTHONPATH=python_path) as job:
        assert job.wait() == 1
    (error,) = [line for line in job.err if line.startswith("maskstream: error: ")]
    assert "out of memory" in error
    assert "lower --batch or --workers, or use a smaller model" in error
    assert "Traceback" not in job.output


# -- signals ----------------------------------------------------------------------------------------------------------


def test_a_second_signal_ends_a_job_at_once_even_if_redis_hangs(
    clip: Path, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis()
    with running(clip, "--output", "out", "--save", "jsonl", "--redis-url", server.url, folder=tmp_path) as job:
        job.wait_for("street: live")
        os.kill(server.pid, signal.SIGSTOP)
        time.sleep(0.5)
        job.interrupt()
        time.sleep(0.5)
        job.interrupt()
        try:
            assert job.wait(HARD_EXIT_S + 5.0) == 130
        finally:
            os.kill(server.pid, signal.SIGCONT)


def test_a_job_that_ends_before_it_reached_its_source_is_reported_as_stopped(clip: Path, tmp_path: Path) -> None:
    """The report says "stopped" and not "done"."""
    with running("rtsp://127.0.0.1:1/cam", clip, "--output", "out", "--save", "jsonl", folder=tmp_path) as job:
        job.wait_for("Connection refused")
        job.wait_for("street: live")
        job.interrupt()
        assert job.wait() == 130
    for name in ("cam1", "street"):
        assert end_of(read_results(tmp_path / "out" / f"{name}.jsonl")).reason == "stopped"
        assert any(line.startswith(f"{name}: stopped") for line in job.err), job.err
    assert "never reached: " in end_of(read_results(tmp_path / "out" / "cam1.jsonl")).detail
    assert "done" not in job.output
    summaries = json.loads((tmp_path / "out" / "summary.json").read_text())["streams"]
    assert {summary["reason"] for summary in summaries.values()} == {"stopped"}
    assert any(line.startswith("cam1: 0 frames, 0 tracks") and "stopped" in line for line in job.out), job.out


# -- outages ----------------------------------------------------------------------------------------------------------


def test_an_outage_of_redis_and_its_end_are_one_line_each_for_all_workers(
    clip: Path, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis(aof="always")
    arguments = ("--output", "out", "--save", "jsonl", "--max-frames", "60", "--redis-url", server.url)
    with running(clip, *arguments, folder=tmp_path) as job:
        bus = Bus(server.url)
        wait_for_progress(job, bus, 3)
        for _ in range(2):
            before = len(job.err)
            server.kill()
            time.sleep(3.0)
            server.start()
            job.wait_for("Redis is back after")
            job.until(lambda before=before: any("is back" in line for line in job.err[before:]))  # type: ignore[misc]
        assert job.wait() == 0
        bus.close()
    told = [line for line in job.err if line.startswith("maskstream: ")]
    assert [line.split(":")[2].strip() for line in told if "away" in line] == ["Redis is away, waiting for it"] * 2
    assert sum("Redis is back after" in line for line in told) == 2
    assert len(told) == 4, told
    assert covered(read_results(tmp_path / "out" / "street.jsonl")) == list(range(1, 61))
