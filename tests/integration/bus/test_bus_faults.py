"""The bus on a server that is out of memory, is restarted, hangs or denies a command."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from support.bus_parts import PIXELS, Clock, Job, set_read
from support.redis_server import RedisServer

from pipeline.bus import LOST_CONNECTION, Bus, Offer
from pipeline.bus.lease import BEAT_INTERVAL_S
from pipeline.errors import BusError


@pytest.fixture
def server(own_redis: Callable[..., RedisServer]) -> RedisServer:
    return own_redis(maxmemory="64mb")


@pytest.fixture
def own_bus(server: RedisServer) -> Iterator[Bus]:
    bus = Bus(server.url)
    yield bus
    bus.close()


def fill_memory(bus: Bus) -> None:
    """Lower maxmemory so that the server refuses every write, as if other clients had filled it."""
    bus.client.config_set("maxmemory", bus.client.info("memory")["used_memory"] // 2)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        bus.client.set("one more", "x")


# -- at maxmemory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [False, True], ids=["lossless", "latest"])
def test_at_maxmemory_only_frames_are_refused(own_bus: Bus, clock: Clock, live: bool) -> None:
    job = Job(own_bus, live=live)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    job.offer(writer, 2)
    held = queue.read(1)
    fill_memory(own_bus)
    assert job.offer(writer, 3) == [Offer.FULL] * 3
    assert job.frames() == [1, 2]
    assert len(job.pixel_keys()) == 2
    assert job.answer(queue, held) == [True]
    (entry_id, message), *_ = tracker.read()
    job.commit(tracker, 1, session=message.header.session, consumed=[entry_id])
    fill_memory(own_bus)
    job.commit(tracker, 2)  # consumes no message, so it frees no memory
    assert job.result_ids() == ["1-0", "2-0"]
    clock.now_s += BEAT_INTERVAL_S
    writer.lease.beat()
    tracker.lease.beat()
    tracker.lease.release()
    assert own_bus.result_writer(job.stream).lease.try_take()
    assert writer.open().seq == 2
    job.end(writer)
    own_bus.set_status("cam1", phase="live", error="x" * 500)
    set_read(own_bus, "cam1", "jsonl", 1)
    own_bus.beat("infer", "w1", "running")
    own_bus.finish_job("cam1", 60)
    assert set(own_bus.client.keys("*")) == {job.keys.results.encode(), b"ms:worker:infer:w1"}


def test_a_required_reader_is_added_at_maxmemory(own_bus: Bus) -> None:
    job = Job(own_bus)
    fill_memory(own_bus)
    assert own_bus.add_sink("cam1", "jsonl")
    set_read(own_bus, "cam1", "jsonl", 7)
    assert own_bus.add_sink("cam1", "jsonl")  # after a restart of the sink
    assert (job.state("sinks"), job.state("sink:jsonl")) == ("jsonl", "7")


def test_a_skipped_frame_at_maxmemory_leaves_no_pixels(own_bus: Bus) -> None:
    job = Job(own_bus, live=True)
    writer = job.writer()
    job.offer(writer)
    limit = own_bus.client.config_get("maxmemory")["maxmemory"]
    fill_memory(own_bus)
    for _ in range(2):
        assert job.offer(writer) == [Offer.FULL]
        writer.skip("overflow", "the bus was full")
    own_bus.client.config_set("maxmemory", limit)
    assert job.offer(writer) == [Offer.ACCEPTED]
    assert job.gaps() == [(2, 3, "overflow", 1)]
    assert len(job.pixel_keys()) == len(job.frames()) == 2


def test_a_frame_whose_pixels_were_refused_is_not_queued(own_bus: Bus) -> None:
    job = Job(own_bus)
    writer, queue = job.writer(), job.queue()
    header = job.header(writer)
    reply = writer._send("frame", b"", job.keys.pixels(writer.session, header.frame_seq))  # as after a refused SET
    assert reply[0] == b"unset"
    assert job.frames() == []
    assert job.offer(writer) == [Offer.ACCEPTED]
    assert queue.read(1)[0].pixels == PIXELS.tobytes()


def test_a_job_on_a_full_server_is_a_clear_error(own_bus: Bus) -> None:
    fill_memory(own_bus)
    with pytest.raises(BusError, match=r"is full: raise its maxmemory, or give another --redis-url"):
        Job(own_bus)
    assert own_bus.client.keys("*cam1*") == []


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_scripts_are_loaded_again_after_the_server_has_lost_them(bus: Bus) -> None:
    job = Job(bus)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    bus.client.script_flush()
    assert job.offer(writer) == [Offer.ACCEPTED]
    bus.client.script_flush()
    assert job.answer(queue, queue.read(1)) == [True]
    bus.client.script_flush()
    job.commit(tracker, 1)
    bus.client.script_flush()
    bus.set_status("cam1", phase="live")
    assert job.result_ids() == ["1-0"]


def test_every_call_raises_a_connection_error_if_the_server_is_gone(server: RedisServer, own_bus: Bus) -> None:
    job = Job(own_bus)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    queue.reread_pending()
    server.kill()
    calls: list[Callable[[], object]] = [
        lambda: job.offer(writer),
        lambda: queue.read(1),
        queue.read_pending,
        lambda: queue.wait(0.1),
        tracker.load,
        tracker.read,
        lambda: job.commit(tracker, 1),
        lambda: own_bus.set_status("cam1", phase="live"),
        lambda: own_bus.beat("infer", "w1", "running"),
        own_bus.clock.now_ns,
    ]
    for call in calls:
        with pytest.raises(LOST_CONNECTION):
            call()


def test_with_aof_a_job_continues_after_the_server_was_killed(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis(aof="always")
    bus = Bus(server.url)
    job = Job(bus)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    job.offer(writer, 4)
    job.answer(queue, queue.read(2))
    job.commit(tracker, 1)
    server.restart()
    position = tracker.load()
    assert position is not None
    assert (position.seq, job.state("last"), position.log_id) == (1, "4", job.log_id)
    queue.reread_pending()
    assert queue.read_pending() is None
    job.answer(queue, queue.read(4))
    for seq in (2, 3, 4):
        job.commit(tracker, seq)
    assert job.offer(writer) == [Offer.ACCEPTED]
    assert job.covered() == [1, 2, 3, 4]
    bus.close()


def test_a_server_that_hangs_is_a_lost_connection(
    server: RedisServer, own_bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.bus.connection.REPLY_TIMEOUT_S", 0.3)
    bus = Bus(server.url)
    bus.check()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LOST_CONNECTION):
            bus.streams()
    finally:
        os.kill(server.pid, signal.SIGCONT)
        bus.close()


# -- rights -----------------------------------------------------------------------------------------------------------


def test_without_rights_on_channels_results_are_written_to_the_log(server: RedisServer, own_bus: Bus) -> None:
    own_bus.client.execute_command("ACL", "SETUSER", "worker", "on", ">pw", "~*", "+@all", "resetchannels")
    bus = Bus(server.url.replace("unix://", "unix://worker:pw@"))
    job = Job(bus)
    writer, tracker = job.writer(), job.result_writer()
    job.offer(writer, 2)
    with pytest.raises(redis.exceptions.NoPermissionError):
        bus.client.publish(job.keys.channel, "x")
    job.commit(tracker, 1)
    job.commit(tracker, 1)
    job.commit(tracker, 2)
    assert job.covered() == [1, 2]
    assert job.state("seq") == "2"
    bus.close()


def test_the_clock_of_the_server_is_close_to_ours(bus: Bus) -> None:
    assert abs(bus.clock.now_ns() - time.time_ns()) < 50_000_000
    first, second = bus.clock.now_ns(), bus.clock.now_ns()
    assert 0 < second - first < 50_000_000
