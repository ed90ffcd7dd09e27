"""Results of an earlier run are replaced only with --overwrite; a sink of the same log continues its file."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus_parts import Job
from support.pipeline_runs import end_of, frames_of, make_scene, read_results, run, running
from support.redis_server import RedisServer

from pipeline.bus import Bus
from pipeline.contract.results import FrameResult
from pipeline.contract.wire import FrameDetections
from workers.stream_tracker import StreamTracker

NUM_FRAMES = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("overwrite")
    make_scene(folder / "street.mp4", NUM_FRAMES)
    return folder


def log_ids(path: Path) -> set[str]:
    return {message.log_id for message in read_results(path)}


def test_a_second_run_into_the_same_folder_is_refused_in_one_line(folder: Path) -> None:
    arguments = ("street.mp4", "--output", "out", "--save", "jsonl")
    assert run(*arguments, folder=folder).code == 0
    path = folder / "out" / "street.jsonl"
    before = path.read_bytes()
    second = run(*arguments, folder=folder)
    assert second.code == 2
    [line] = second.err
    assert "out/street.jsonl" in line
    assert "--overwrite" in line
    assert "--output" in line
    assert path.read_bytes() == before
    third = run(*arguments, "--overwrite", folder=folder)
    assert third.code == 0
    assert len(frames_of(read_results(path))) == NUM_FRAMES
    assert path.read_bytes() != before


def make_log(bus: Bus, num_frames: int, *, ended: bool) -> Job:
    """Write the result log of a job whose frames are inferred and tracked."""
    from pipeline.contract.arrays import Detections

    job = Job(bus, sinks=["output"])
    writer = job.writer()
    job.offer(writer, num_frames)
    queue = job.queue()
    for frame in queue.read(num_frames):
        found = Detections.empty(frame.header.source_width, frame.header.source_height)
        message = FrameDetections.pack(frame.header, found, model="street", queue_ms=0.0, infer_ms=1.0)
        assert queue.deliver(frame, message)
    if ended:
        job.end(writer)
    tracker = StreamTracker(bus, job.stream)
    tracker.step()
    tracker.release()
    return job


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_a_sink_that_is_started_again_continues_its_file(
    stop: signal.Signals, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis()
    bus = Bus(server.url)
    make_log(bus, NUM_FRAMES, ended=False)
    command = ("worker", "sink", "cam1", "--output", "out", "--save", "jsonl", "--redis-url", server.url)
    path = tmp_path / "out" / "cam1.jsonl"
    for _ in range(2):
        with running(*command, folder=tmp_path) as sink:
            sink.until(lambda: path.exists() and len(path.read_bytes().splitlines()) == NUM_FRAMES)
            os.kill(sink.process.pid, stop)
            sink.wait()
        assert [message.frame_seq for message in read_results(path)] == list(range(1, NUM_FRAMES + 1))
    bus.close()


def test_a_sink_does_not_replace_the_file_of_another_log(own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    server = own_redis()
    bus = Bus(server.url)
    command = ("worker", "sink", "cam1", "--output", "out", "--save", "jsonl", "--redis-url", server.url)
    make_log(bus, 5, ended=True)
    assert run(*command, folder=tmp_path).code == 0
    path = tmp_path / "out" / "cam1.jsonl"
    before = path.read_bytes()
    assert end_of(read_results(path)).num_frames == 5

    job = make_log(bus, 3, ended=True)
    refused = run(*command, folder=tmp_path)
    assert refused.code == 1
    assert sum("cam1.jsonl" in line and "--overwrite" in line for line in refused.err) == 1
    assert path.read_bytes() == before

    assert run(*command, "--overwrite", folder=tmp_path).code == 0
    assert log_ids(path) == {job.log_id}
    assert sum(isinstance(message, FrameResult) for message in read_results(path)) == 3
    bus.close()
