"""A single worker process: signals, drain deadline, read-only Redis, Redis without the job, too little memory."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus_parts import Job, stream_config
from support.pipeline_runs import make_scene
from support.redis_server import RedisServer
from support.worker_processes import worker_process

from pipeline.bus import Bus
from pipeline.contract.exit_codes import EXIT_DISCONNECTED, EXIT_DONE, EXIT_FAILED, EXIT_MEMORY
from workers.base import WORKER_DRAIN_S
from workers.decode import FINISH_S
from workers.roles.decode import DecodeTask
from workers.roles.infer import InferTask
from workers.roles.sink import SinkTask
from workers.roles.track import TrackTask

pytestmark = pytest.mark.timeout(180)

SLACK_S = 5.0


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("life") / "street.mp4"
    make_scene(path, 12, width=320, height=180)
    return path


def decode_task(bus: Bus, source: Path, result_ttl_s: int | None = None, **options: object) -> DecodeTask:
    bus.begin_job(stream_config("street", source=str(source), **options), [])
    return DecodeTask(redis_url=bus.url, stream_id="street", result_ttl_s=result_ttl_s)


# -- signals ----------------------------------------------------------------------------------------------------------


def test_a_decoder_without_a_tracker_leaves_within_its_drain_deadline(bus: Bus, clip: Path) -> None:
    with worker_process(decode_task(bus, clip, result_ttl_s=60)) as decoder:
        decoder.wait_for("waiting for the last results of street")
        time.sleep(1.0)
        assert decoder.process.poll() is None
        asked_s = time.monotonic()
        decoder.process.send_signal(signal.SIGTERM)
        assert decoder.wait(FINISH_S + SLACK_S) == EXIT_DONE
        assert time.monotonic() - asked_s > FINISH_S / 2, "it did not wait for anybody"
    assert "0 of 12 frames have one" in decoder.lines[-1]
    assert bus.stream("street") is not None, "a stream whose results are missing was removed"


def test_a_second_signal_ends_a_worker_at_once(bus: Bus, clip: Path) -> None:
    with worker_process(decode_task(bus, clip, result_ttl_s=60)) as decoder:
        decoder.wait_for("waiting for the last results of street")
        decoder.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        decoder.process.send_signal(signal.SIGTERM)
        assert decoder.wait(1.0) == 128 + signal.SIGTERM


@pytest.mark.parametrize("num_signals", [1, 2])
def test_a_decoder_that_hangs_inside_its_source_obeys_signals(bus: Bus, tmp_path: Path, num_signals: int) -> None:
    """The source is a pipe without a writer: FFmpeg blocks in C, so the main thread runs no Python signal handler."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with worker_process(decode_task(bus, tmp_path / "pipe.mp4")) as decoder:
        deadline_s = time.monotonic() + 30
        while bus.stream_status("street", None).phase != "connecting" and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(0.5)
        for _ in range(num_signals):
            decoder.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        if num_signals == 2:
            assert decoder.wait(1.0) == 128 + signal.SIGTERM
        else:
            assert decoder.wait(WORKER_DRAIN_S + SLACK_S) == EXIT_FAILED
            assert f"did not finish within {WORKER_DRAIN_S:.0f} s after the request to stop" in decoder.lines[-1]


# -- Redis ------------------------------------------------------------------------------------------------------------


def test_a_worker_waits_until_a_read_only_replica_is_promoted(
    own_redis: Callable[..., RedisServer], clip: Path
) -> None:
    """Reads and PING succeed on the replica, writes fail."""
    server, primary = own_redis(), own_redis(port=str(free_port()))
    port = primary.option("port")
    bus = Bus(server.url)
    task = decode_task(bus, clip)
    with Bus(primary.url).client as client, server.client() as replica:
        assert client.ping()
        decode_task(Bus(primary.url), clip)
        replica.replicaof("127.0.0.1", port)
        deadline_s = time.monotonic() + 20
        while replica.info("replication")["master_link_status"] != "up" and time.monotonic() < deadline_s:
            time.sleep(0.05)
        with worker_process(task) as decoder:
            decoder.wait_for("Redis is a read-only replica, waiting until it accepts writes")
            calls_before = replica.info("stats")["total_commands_processed"]
            time.sleep(3.0)
            assert decoder.process.poll() is None
            assert replica.info("stats")["total_commands_processed"] - calls_before < 40
            replica.replicaof("NO", "ONE")
            assert decoder.wait(30) == EXIT_DONE
        assert sum("read-only replica" in line for line in decoder.lines) == 1
        assert sum("Redis is back after" in line for line in decoder.lines) == 1
        assert bus.stream_status("street", None).last_seq == 12
    bus.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("waits", [False, True], ids=["while it decodes", "while it waits for results"])
def test_a_decoder_whose_job_was_deleted_reports_it(bus: Bus, clip: Path, waits: bool) -> None:
    task = decode_task(bus, clip, result_ttl_s=60, max_in_flight=16 if waits else 4)
    with worker_process(task) as decoder:
        if waits:
            decoder.wait_for("waiting for the last results of street")
        else:
            deadline_s = time.monotonic() + 30
            while bus.stream_status("street", None).last_seq < 4 and time.monotonic() < deadline_s:
                time.sleep(0.05)
        bus.client.flushall()
        assert decoder.wait(20) == EXIT_DISCONNECTED
    assert decoder.lines[-1] == "WARNING decode street: Redis no longer holds the job of street"
    assert not any("took over" in line for line in decoder.lines)


def test_a_tracker_reports_a_deleted_job_and_continues(bus: Bus) -> None:
    job = Job(bus, "street")
    with worker_process(TrackTask(redis_url=bus.url, name="t")) as tracker:
        deadline_s = time.monotonic() + 60
        while not job.state("track") and time.monotonic() < deadline_s:
            time.sleep(0.05)
        bus.client.delete(job.keys.state)
        tracker.wait_for("Redis no longer holds the job of")
        assert not any("took over" in line for line in tracker.lines)
        assert tracker.process.poll() is None


# -- memory -----------------------------------------------------------------------------------------------------------


def infer_task(bus: Bus) -> InferTask:
    return InferTask(
        redis_url=bus.url, name="i", model="street", weights=None, device="cpu", precision="fp32", batch=4,
        batch_timeout_ms=20.0, num_threads=1,
    )  # fmt: skip


def limit_address_space(mib: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))


@pytest.mark.parametrize("mib", [700, 1000, 1500])
def test_an_infer_worker_without_enough_memory_reports_it(bus: Bus, mib: int) -> None:
    """The limits fail in different places: the dynamic loader, an import, the model."""
    with worker_process(infer_task(bus), preexec=limit_address_space(mib), OMP_NUM_THREADS="1") as worker:
        code = worker.wait(90)
    assert code == EXIT_MEMORY
    assert worker.lines[-1].startswith("ERROR i: out of memory")
    assert worker.lines[-1].endswith("; lower --batch or --workers, or use a smaller model")
    assert not any("Traceback" in line for line in worker.lines)


def test_a_sink_without_a_job_is_a_clear_error(bus: Bus, tmp_path: Path) -> None:
    task = SinkTask(redis_url=bus.url, stream_id="nowhere", output=str(tmp_path), save=["jsonl"])
    with worker_process(task) as sink:
        assert sink.wait(30) == EXIT_FAILED
    assert sink.lines[-1].startswith("ERROR sink nowhere: no stream 'nowhere' on ")
