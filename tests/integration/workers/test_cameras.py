"""The command line with cameras of a real RTSP server: overload, a camera that is off, reconnection, Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.pipeline_runs import (
    Running,
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
from support.rtsp_server import RtspServer

from pipeline.contract.results import AnyResult, EpochResult, EventResult, GapResult

pytestmark = pytest.mark.timeout(300)  # the jobs take minutes on a busy machine

STOP_TIMEOUT_S = 20.0
"""far below the drain deadline of a job, far above the time that draining needs"""
MAX_STALENESS_S = 0.6
SLACK_S = 0.1
"""time between the check of a frame's age and the measurement of its queue time"""

RtspServers = Callable[..., RtspServer]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cameras") / "clip.mp4"
    make_scene(path, 20, width=320, height=180)
    return path


def status_of(url: str, folder: Path) -> dict[str, Any]:
    ended = run("status", "--json", "--redis-url", url, folder=folder)
    assert ended.code in (0, 1)
    report: dict[str, Any] = json.loads("\n".join(ended.out))
    return report


def results_so_far(path: Path) -> list[AnyResult]:
    """Return the messages of a JSONL file to which a sink still writes; it writes complete lines only."""
    return read_results(path) if path.exists() else []


def assert_numbers_are_covered(results: list[AnyResult]) -> None:
    """Check that frames and gaps cover every number once, and that `dropped_before` counts the frames of the gaps."""
    end = end_of(results)
    numbers = covered(results)
    assert numbers == list(range(1, len(numbers) + 1))
    assert end.frame_seq == len(numbers)
    assert (end.num_frames, end.num_gap_frames) == (len(frames_of(results)), len(numbers) - len(frames_of(results)))
    before = 0
    for frame in frames_of(results):
        assert frame.dropped_before == frame.frame_seq - before - 1
        before = frame.frame_seq


def test_two_cameras_and_a_file_share_one_model_and_ctrl_c_ends_them(
    clip: Path, rtsp_server: RtspServers, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    cameras, server = rtsp_server(north=clip, south=clip), own_redis()
    make_scene(tmp_path / "street.mp4", 24, seed=4)
    with running(
        cameras.url_of("north"), cameras.url_of("south"), "street.mp4", "--stream-id", "north", "--stream-id", "south",
        "--max-staleness-s", str(MAX_STALENESS_S), "--redis-url", server.url, "--save", "jsonl", "--output", "out",
        folder=tmp_path,
    ) as job:  # fmt: skip
        job.wait_for("street: done")
        job.until(lambda: all(count_frames(tmp_path / "out" / f"{name}.jsonl") > 5 for name in ("north", "south")))
        report = status_of(server.url, tmp_path)
        assert listening(job) == []
        job.interrupt()
        assert job.wait(STOP_TIMEOUT_S) == 130
    assert "finishing the frames in flight" in job.output
    assert {stream["phase"] for stream in report["streams"]} == {"live", "ended"}
    (infer,) = [worker for worker in report["workers"] if worker["role"] == "infer"]
    assert infer["counters"]["mixed_batches"] > 0
    for name, reason in {"north": "stopped", "south": "stopped", "street": "finished"}.items():
        results = read_results(tmp_path / "out" / f"{name}.jsonl")
        assert end_of(results).reason == reason
        assert_numbers_are_covered(results)
        if reason == "finished":
            assert len(frames_of(results)) == 24
        else:
            assert {gap.cause for gap in results if isinstance(gap, GapResult)} <= {"overflow", "stale"}
            assert max(frame.timing_ms.queue for frame in frames_of(results)) <= (MAX_STALENESS_S + SLACK_S) * 1000
            assert {frame.clock for frame in frames_of(results)} <= {"host", "rtcp"}
    # two cores cannot infer two streams of 25 pictures per second
    assert any(isinstance(message, GapResult) for message in read_results(tmp_path / "out" / "north.jsonl"))
    assert_only_the_logs_are_left(server, tmp_path / "out", ["north", "south", "street"])


def count_frames(path: Path) -> int:
    return len(frames_of(results_so_far(path)))


def listening(job: Running) -> list[Any]:
    """Return the network ports on which processes of the job listen."""
    return [
        connection
        for process in job.processes()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def assert_only_the_logs_are_left(server: RedisServer, output: Path, names: list[str]) -> None:
    with server.client() as client:
        assert sorted(key.decode() for key in client.keys("*")) == [f"ms:{{{name}}}:results" for name in names]
        for name in names:
            assert 3500 < client.ttl(f"ms:{{{name}}}:results") <= 3600
            assert read_log(client, name) == read_results(output / f"{name}.jsonl")


def test_a_camera_that_is_off_affects_no_other_stream_and_is_retried(tmp_path: Path) -> None:
    make_scene(tmp_path / "street.mp4", 10)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"rtsp://user:secret@127.0.0.1:{taken.getsockname()[1]}/cam"
    with running(
        url, "street.mp4", "--stream-id", "gone", "--save", "jsonl", "--output", "out", folder=tmp_path
    ) as job:
        job.wait_for("street: done")
        bus = job.redis_url()
        (gone,) = [stream for stream in status_of(bus, tmp_path)["streams"] if stream["stream_id"] == "gone"]
        tries = gone["num_reconnects"]
        assert (gone["phase"], gone["last_seq"]) == ("stalled", 0)
        assert "connection refused" in gone["error"].lower()
        job.until(lambda: reconnects(bus, tmp_path, "gone") > tries, what="another attempt")
        job.interrupt()
        assert job.wait(STOP_TIMEOUT_S) == 130
    assert "secret" not in job.output
    assert len(frames_of(read_results(tmp_path / "out" / "street.jsonl"))) == 10
    end = end_of(read_results(tmp_path / "out" / "gone.jsonl"))
    assert (end.reason, end.num_frames, end.num_gap_frames) == ("stopped", 0, 0)


def reconnects(url: str, folder: Path, stream_id: str) -> int:
    streams = {stream["stream_id"]: stream for stream in status_of(url, folder)["streams"]}
    return int(streams[stream_id]["num_reconnects"])


def test_a_camera_that_comes_back_starts_a_new_epoch(clip: Path, rtsp_server: RtspServers, tmp_path: Path) -> None:
    camera, log = rtsp_server(cam=clip), tmp_path / "out" / "cam1.jsonl"
    with running(camera.url, "--max-fps", "5", "--save", "jsonl", "--output", "out", folder=tmp_path) as job:
        job.until(lambda: count_frames(log) > 5, what="the camera")
        camera.restart()
        job.wait_for("stalled")
        job.until(lambda: count_frames_of_epoch(log, 2) > 5, what="the camera again")
        camera.process.send_signal(signal.SIGSTOP)  # a camera that sends nothing must not delay the end
        job.interrupt()
        assert job.wait(STOP_TIMEOUT_S) == 130
    results = read_results(log)
    assert_numbers_are_covered(results)
    assert len({message.log_id for message in results}) == 1
    assert [message.stream_epoch for message in results if isinstance(message, EpochResult)] == [2]
    assert [one.stream_epoch <= two.stream_epoch for one, two in pairwise(results)].count(False) == 0
    started = [event.track_id for event in results if isinstance(event, EventResult) and event.event == "track_start"]
    assert started == sorted(set(started))
    assert started


def count_frames_of_epoch(path: Path, epoch: int) -> int:
    return sum(frame.stream_epoch == epoch for frame in frames_of(results_so_far(path)))


def test_max_frames_counts_over_reconnections_and_dropped_frames(
    clip: Path, rtsp_server: RtspServers, tmp_path: Path
) -> None:
    camera, log = rtsp_server(cam=clip), tmp_path / "out" / "cam1.jsonl"
    flags = ["--max-fps", "10", "--max-frames", "30", "--max-staleness-s", "0.05"]
    with running(camera.url, *flags, "--save", "jsonl", "--output", "out", folder=tmp_path) as job:
        job.until(lambda: len(covered(results_so_far(log))) > 5, what="the camera")
        camera.restart()
        assert job.wait() == 0
    results = read_results(log)
    assert_numbers_are_covered(results)
    assert [message.stream_epoch for message in results if isinstance(message, EpochResult)] == [2]
    assert (end_of(results).reason, end_of(results).frame_seq) == ("finished", 30)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["streams"]["cam1"]
    assert summary["source"] == camera.url


def test_a_camera_over_udp_ends_after_max_frames(clip: Path, rtsp_server: RtspServers, tmp_path: Path) -> None:
    camera, log = rtsp_server(cam=clip), tmp_path / "out" / "cam1.jsonl"
    ended = run(
        camera.url, "--rtsp-transport", "udp", "--max-frames", "8", "--save", "jsonl", "--output", "out",
        folder=tmp_path,
    )  # fmt: skip
    assert ended.code == 0
    results = read_results(log)
    assert_numbers_are_covered(results)
    assert end_of(results).reason == "finished"
    assert end_of(results).frame_seq == 8
