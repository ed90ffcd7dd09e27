"""Begin, replacement and end of jobs on the bus, their status, and servers that cannot be used."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bus_parts import Clock, Job, set_read, stream_config
from support.redis_server import RedisServer

from pipeline.bus import Bus
from pipeline.errors import BusError, FencedError
from pipeline.redaction import redact_url


@pytest.mark.parametrize("role", ["decode", "track"])
def test_a_stream_id_in_use_cannot_be_begun_again(bus: Bus, clock: Clock, role: str) -> None:
    job = Job(bus)
    lease = job.writer().lease if role == "decode" else job.result_writer().lease
    clock.on_sleep = lease.beat
    with pytest.raises(BusError, match=r"'cam1' is in use .* --stream-id"):
        Job(bus)
    assert job.state("log_id") == job.log_id


def test_a_new_job_removes_all_keys_of_a_dead_job(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    job.offer(writer, 4)
    job.answer(queue, queue.read(2))
    job.commit(tracker, 1)
    again = Job(bus)
    assert again.log_id != job.log_id
    assert (job.frames(), job.messages(), job.results(), job.pixel_keys()) == ([], [], [], [])
    assert (job.state("last"), job.state("seq")) == ("0", "0")
    with pytest.raises(FencedError):
        job.offer(writer)


def test_the_results_of_a_finished_job_remain_for_a_limited_time(bus: Bus) -> None:
    job = Job(bus, sinks=["jsonl"])
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    job.offer(writer, 3)
    job.answer(queue, queue.read(1))
    job.commit(tracker, 1)
    bus.set_status("cam1", phase="live")
    bus.finish_job("cam1", 60)
    assert bus.client.keys("*") == [job.keys.results.encode()]
    assert 0 < bus.client.ttl(job.keys.results) <= 60
    bus.set_status("cam1", phase="ended")  # by a late worker
    set_read(bus, "cam1", "jsonl", 1)
    assert bus.client.keys("*") == [job.keys.results.encode()]


def test_a_replaced_job_does_not_finish_its_successor(bus: Bus, redis_url: str) -> None:
    Job(bus)
    other = Bus(redis_url)
    taken = Job(other)
    bus.finish_job("cam1", 60)
    assert taken.state("log_id") == taken.log_id
    assert list(bus.streams()) == ["cam1"]
    other.finish_job("cam1", 60)
    assert bus.streams() == {}
    other.close()


def test_a_sink_added_to_a_running_job_becomes_a_required_reader(bus: Bus) -> None:
    job = Job(bus)
    assert bus.add_sink("cam1", "jsonl")
    assert bus.add_sink("cam1", "jsonl")
    assert (job.state("sinks"), job.state("sink:jsonl")) == ("jsonl", "0")
    assert not bus.add_sink("cam2", "jsonl")


def test_the_bus_returns_the_configuration_of_a_stream(bus: Bus) -> None:
    job = Job(bus, stride=2)
    assert bus.streams() == {"cam1": job.stream}
    assert bus.stream("cam1") == stream_config("cam1", stride=2)
    assert bus.stream("cam2") is None
    assert bus.log_id("cam1") == job.log_id


def test_status_of_a_stream(bus: Bus) -> None:
    job = Job(bus, sinks=["jsonl"])
    writer, tracker = job.writer(), job.result_writer()
    job.offer(writer, 3)
    job.commit(tracker, 1)
    bus.set_status("cam1", phase="live", num_frames=1, num_frames_expected="", **{"gap:stale": 2})
    set_read(bus, "cam1", "jsonl", 1)
    (status,) = bus.stream_statuses()
    assert (status.phase, status.last_seq, status.seq, status.num_frames) == ("live", 3, 1, 1)
    assert (status.gaps, status.sinks, status.num_frames_expected) == ({"stale": 2}, {"jsonl": 1}, None)


def test_heartbeats_of_workers(bus: Bus) -> None:
    bus.beat("infer", "w1", "starting", detail="loading street")
    bus.beat("infer", "w1", "running", counters={"frames": 3.0})
    (worker,) = bus.worker_statuses()
    assert (worker.role, worker.name, worker.state, worker.counters["frames"]) == ("infer", "w1", "running", 3.0)
    assert 0 < bus.client.ttl("ms:worker:infer:w1") <= 30
    bus.forget_worker("infer", "w1")
    assert bus.worker_statuses() == []


# -- servers that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["http://localhost:6379", "localhost", "redis://host:port", "redis://[::1", "redis://localhost/?colour=red"],
)
def test_an_invalid_url_is_a_one_line_error(url: str) -> None:
    with pytest.raises(BusError, match=r"expected redis://HOST:PORT/DB") as caught:
        Bus(url)
    assert "\n" not in str(caught.value)


def test_an_unreachable_server_is_a_one_line_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as placeholder:
        port = placeholder.getsockname()[1]
    for url in (f"redis://:secret@127.0.0.1:{port}", f"unix://{tmp_path}/none.sock?password=secret"):
        bus = Bus(url)
        with pytest.raises(BusError, match=r"^no Redis at .*; start one there") as caught:
            bus.check()
        assert "\n" not in str(caught.value)
        assert "secret" not in str(caught.value)


def test_wrong_credentials_are_a_one_line_error(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis()
    with server.client() as client:
        client.config_set("requirepass", "right")
    bus = Bus(f"{server.url}?password=wrong")
    with pytest.raises(BusError, match="refuses the credentials") as caught:
        bus.check()
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    bus.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pw@host/1", "redis://***@host/1"),
        ("rediss://me:p@ss:w/rd@host:1/1", "rediss://***@host:1/1"),
        ("redis://me@host", "redis://***@host"),
        ("unix:///run/redis.sock?db=1&password=pw", "unix:///run/redis.sock?db=1&password=***"),
        ("unix://me:pw@/run/redis.sock", "unix://***@/run/redis.sock"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert redact_url(url) == shown
