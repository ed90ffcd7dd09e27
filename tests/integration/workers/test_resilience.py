"""Workers, the supervisor and Redis are killed in the middle of a file: every frame still has one result, in order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.pipeline_runs import (
    Running,
    content,
    count_pictures,
    covered,
    end_of,
    frames_of,
    make_scene,
    read_log,
    read_results,
    run,
    running,
)
from support.redis_server import RedisServer

from pipeline.bus import StreamKeys
from pipeline.bus.connection import connect
from pipeline.contract.results import AnyResult, GapResult

pytestmark = pytest.mark.timeout(300)  # real jobs, on a machine that may be busy

NUM_FRAMES = 40
KILL_AT = 10
"""number of results in the log when a process is killed"""
GONE_S = 10.0
BOTH = ("--output", "out", "--save", "jsonl,video")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resilience") / "street.mp4"
    make_scene(path, NUM_FRAMES, width=320, height=180)
    return path


@pytest.fixture(scope="module")
def undisturbed(clip: Path) -> list[AnyResult]:
    """Return the results of the same job without a kill. Results do not depend on the other frames of a batch."""
    ended = run(clip, "--output", "out", "--save", "jsonl", folder=clip.parent)
    assert ended.code == 0
    results = read_results(clip.parent / "out" / "street.jsonl")
    assert covered(results) == list(range(1, NUM_FRAMES + 1))
    assert any(instance.track_id for frame in frames_of(results) for instance in frame.instances)
    return results


def wait_for_results(job: Running, url: str, count: int) -> None:
    """Wait until the log holds `count` results. Fails if the job is already finished by then."""
    with connect(url) as client:
        job.until(lambda: client.xlen(StreamKeys.of("street").results) >= count, what=f"{count} results")
        assert not any(message.frame_seq == NUM_FRAMES for message in read_log(client, "street")), "too late to kill"


def test_killed_workers_lose_no_result(clip: Path, undisturbed: list[AnyResult], tmp_path: Path) -> None:
    """One worker of each role is killed, one after the other, each after further results."""
    with running(clip, *BOTH, folder=tmp_path) as job:
        for num_kills, role in enumerate(("decode", "track", "sink", "infer")):
            wait_for_results(job, job.redis_url(), KILL_AT + 6 * num_kills)
            worker = job.until(lambda role=role: job.worker(role), what=f"the {role} worker")  # type: ignore[misc]
            worker.kill()
            job.until(
                lambda num=num_kills + 1: sum("SIGKILL; starting it again" in line for line in job.err) == num,  # type: ignore[misc]
                what=f"the restart of the {role} worker",
            )
        assert job.wait() == 0
    results = read_results(tmp_path / "out" / "street.jsonl")
    assert covered(results) == list(range(1, NUM_FRAMES + 1))
    assert end_of(results).reason == "finished"
    assert content(results) == content(undisturbed)
    assert count_pictures(tmp_path / "out" / "street.mp4") == NUM_FRAMES


def test_nothing_outlives_a_killed_supervisor(clip: Path, tmp_path: Path) -> None:
    with running(clip, *BOTH, folder=tmp_path) as job:
        wait_for_results(job, job.redis_url(), 3)
        assert len(job.processes()) >= 7  # the supervisor, four workers, the server and its watchdog
        job.process.send_signal(signal.SIGKILL)
        job.wait()
        deadline_s = time.monotonic() + GONE_S
        while (left := job.processes()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert left == []
        assert list(job.temporary.iterdir()) == []
    results = read_results(tmp_path / "out" / "street.jsonl")
    assert covered(results) == list(range(1, len(frames_of(results)) + 1))


def test_a_job_continues_after_redis_was_killed_and_restarted(
    clip: Path, undisturbed: list[AnyResult], own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis(aof="always")
    with running(clip, *BOTH, "--redis-url", server.url, folder=tmp_path) as job:
        wait_for_results(job, server.url, KILL_AT)
        server.kill()
        time.sleep(1.0)
        server.start()
        assert job.wait() == 0
    results = read_results(tmp_path / "out" / "street.jsonl")
    assert covered(results) == list(range(1, NUM_FRAMES + 1))
    assert content(results) == content(undisturbed)
    with server.client() as client:
        assert read_log(client, "street") == results
        assert [key.decode() for key in client.keys("*")] == [StreamKeys.of("street").results]


def test_a_redis_restarted_without_its_data_ends_the_job_with_one_line(
    clip: Path, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis()
    with running(clip, *BOTH, "--redis-url", server.url, folder=tmp_path) as job:
        wait_for_results(job, server.url, KILL_AT)
        server.restart()
        assert job.wait(40) == 1
    assert "Traceback" not in job.output
    errors = [line for line in job.err if line.startswith("maskstream: error: ")]
    assert len(errors) == 1, job.err
    assert f"Redis at {server.url} lost the data of street: it was restarted without its data" in errors[0]
    assert "start the command again, or use a server with AOF" in errors[0]
    assert "took over" not in job.output
    assert "no end message in out/street.jsonl" in job.output


def test_a_frame_whose_pixels_were_deleted_becomes_a_gap(
    clip: Path, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis()
    with running(clip, *BOTH, "--redis-url", server.url, folder=tmp_path) as job, server.client() as client:
        wait_for_results(job, server.url, 1)
        lost = job.until(lambda: delete_pixels(client), what="pixels to delete")
        assert job.wait() == 0
    results = read_results(tmp_path / "out" / "street.jsonl")
    assert covered(results) == list(range(1, NUM_FRAMES + 1))
    gaps = [message for message in results if isinstance(message, GapResult)]
    assert [(gap.from_seq, gap.frame_seq, gap.cause) for gap in gaps] == [(lost, lost, "corrupt")]
    assert (end_of(results).reason, end_of(results).num_gap_frames) == ("finished", 1)
    assert count_pictures(tmp_path / "out" / "street.mp4") == NUM_FRAMES


def delete_pixels(client: Any) -> int:
    """Delete the pixels of the newest queued frame; returns its number, 0 if no frame is queued."""
    newest = client.xrevrange(StreamKeys.of("street").frames, count=1)
    if not newest:
        return 0
    entry_id, fields = newest[0]
    client.delete(fields[b"px"])
    return int(entry_id.split(b"-")[0])


def test_ctrl_c_while_the_model_is_loaded_ends_the_job_at_once(
    clip: Path, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis()
    with running(clip, *BOTH, "--redis-url", server.url, folder=tmp_path) as job:
        job.wait_for("starting: ")
        job.interrupt()
        assert job.wait(GONE_S) == 130
    assert "Traceback" not in job.output
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"street.jsonl", "summary.json"}
    with server.client() as client:
        assert client.keys("*") == []
