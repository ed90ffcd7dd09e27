"""Infer workers and bus: delivery of frames, answers, and frames that remain without an answer."""

from __future__ import annotations

import threading
import time

import pytest
from support.bus_parts import PIXELS, Clock, Job

from pipeline.bus import Bus, FrameQueue, QueuedFrame
from pipeline.bus.frame_queue import CLAIM_INTERVAL_S, INFER_LEASE_S, MAX_DELIVERIES
from pipeline.bus.lease import LEASE_S
from pipeline.contract.wire import FrameGap


def numbers(frames: list[QueuedFrame]) -> list[int]:
    return [frame.header.frame_seq for frame in frames]


def next_pending(queue: FrameQueue) -> QueuedFrame:
    frame = queue.read_pending()
    assert frame is not None
    return frame


# -- reading and answering --------------------------------------------------------------------------------------------


def test_a_frame_is_read_as_it_was_offered(bus: Bus) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    header = job.header(writer)
    job.offer(writer)
    (frame,) = queue.read(4)
    assert (frame.header, frame.pixels, frame.num_deliveries) == (header, PIXELS.tobytes(), 1)
    assert queue.read(4) == []


def test_two_workers_share_the_frames(bus: Bus) -> None:
    job = Job(bus)
    writer = job.writer()
    job.offer(writer, 4)
    first, second = job.queue("w1"), job.queue("w2")
    assert numbers(first.read(2)) == [1, 2]
    assert numbers(second.read(4)) == [3, 4]


def test_an_answered_frame_is_deleted_with_its_pixels(bus: Bus) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    job.offer(writer, 2)
    assert job.answer(queue, queue.read(1)) == [True]
    assert job.frames() == [2]
    assert len(job.pixel_keys()) == 1
    assert [message.header.frame_seq for message in job.messages()] == [1]
    assert bus.client.xpending(job.keys.frames, "infer")["pending"] == 0


def test_a_second_answer_to_a_frame_is_refused(bus: Bus) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    job.offer(writer)
    held = queue.read(1)
    assert job.answer(queue, held) == [True]
    assert job.answer(queue, held) == [False]
    assert len(job.messages()) == 1


@pytest.mark.parametrize("again", [False, True], ids=["withdrawn", "offered again"])
def test_an_answer_to_a_frame_of_an_old_session_writes_nothing(bus: Bus, clock: Clock, again: bool) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    job.offer(writer)
    held = queue.read(1)
    clock.now_s += LEASE_S
    other = bus.frame_writer(job.stream)
    other.lease.try_take()
    clock.now_s += LEASE_S
    assert other.lease.try_take()
    other.open()
    if again:
        job.offer(other)
    assert job.answer(queue, held) == [False]
    assert job.messages() == []
    assert job.frames() == ([1] if again else [])
    assert len(job.pixel_keys()) == int(again)


def test_an_answer_to_a_finished_job_writes_nothing(bus: Bus) -> None:
    job = Job(bus)
    queue = job.queue()
    job.offer(job.writer())
    held = queue.read(1)
    bus.finish_job("cam1", 60)
    assert job.answer(queue, held) == [False]
    assert bus.client.keys("*") == []


def test_a_frame_without_pixels_is_delivered(bus: Bus) -> None:
    job = Job(bus)
    queue = job.queue()
    job.offer(job.writer())
    bus.client.delete(*job.pixel_keys())
    (frame,) = queue.read(1)
    assert frame.pixels is None


# -- many streams -----------------------------------------------------------------------------------------------------


def test_a_missing_stream_does_not_affect_the_others(bus: Bus) -> None:
    job = Job(bus)
    job.offer(job.writer())
    queue = bus.frame_queue("w1")
    queue.set_streams(["gone", "cam1", "not-open-yet"])
    assert queue.read_pending() is None
    assert numbers(queue.read(6)) == [1]


def test_streams_have_equal_shares_of_the_batches(bus: Bus) -> None:
    jobs = [Job(bus, f"cam{index}") for index in range(3)]
    for job in jobs:
        job.offer(job.writer(), 10)
    queue = bus.frame_queue("w1")
    queue.set_streams([job.stream.stream_id for job in jobs])
    assert queue.read_pending() is None
    counts = dict.fromkeys(("cam0", "cam1", "cam2"), 0)
    for _ in range(6):
        batch = queue.read(4)
        assert len({frame.stream_id for frame in batch}) == 3
        for frame in batch:
            counts[frame.stream_id] += 1
    assert counts == {"cam0": 8, "cam1": 8, "cam2": 8}


def test_streams_take_turns_if_there_are_more_than_a_batch_holds(bus: Bus) -> None:
    jobs = [Job(bus, f"cam{index}") for index in range(5)]
    for job in jobs:
        job.offer(job.writer(), 10)
    queue = bus.frame_queue("w1")
    queue.set_streams([job.stream.stream_id for job in jobs])
    assert queue.read_pending() is None
    seen = [frame.stream_id for _ in range(5) for frame in queue.read(2)]
    assert sorted(seen) == sorted([job.stream.stream_id for job in jobs] * 2)


def test_streams_can_be_removed(bus: Bus) -> None:
    job = Job(bus)
    queue = job.queue()
    queue.set_streams([])
    job.offer(job.writer())
    assert queue.read(4) == []


@pytest.mark.parametrize("key", ["of an empty stream", "that does not exist yet"])
def test_wait_returns_when_a_frame_arrives(bus: Bus, key: str) -> None:
    job = Job(bus)
    queue = job.queue()
    writer = job.writer() if key == "of an empty stream" else None
    start_s = time.monotonic()
    timer = threading.Timer(0.2, lambda: job.offer(writer or job.writer()))
    timer.start()
    queue.wait(5.0)
    timer.join()
    assert 0.1 < time.monotonic() - start_s < 2.0


def test_wait_detects_frames_of_a_file_that_is_decoded_again(bus: Bus) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    job.offer(writer, 3)
    queue.wait(0.05)
    job.answer(queue, queue.read(3))
    writer.open()  # numbers begin at 1 again, before the last entry ID that the queue has seen
    job.offer(writer)
    queue.wait(0.05)
    assert numbers(queue.read(1)) == [1]


# -- pending frames ---------------------------------------------------------------------------------------------------


def test_a_restarted_worker_gets_its_pending_frames_first_one_at_a_time(bus: Bus) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    job.offer(writer, 3)
    queue.read(2)
    again = bus.frame_queue("w1")
    again.set_streams(["cam1"])
    for number in (1, 2):
        frame = next_pending(again)
        assert (numbers([frame]), frame.num_deliveries, frame.pixels) == ([number], 2, PIXELS.tobytes())
        job.answer(again, [frame])
    assert again.read_pending() is None
    assert numbers(again.read(4)) == [3]


def test_after_a_lost_connection_a_worker_gets_its_pending_frames_first(bus: Bus) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    job.offer(writer, 2)
    queue.read(1)  # as if this reply had been lost
    queue.reread_pending()
    assert numbers([next_pending(queue)]) == [1]


def test_a_withdrawn_frame_is_no_longer_pending(bus: Bus) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    job.offer(writer, 2)
    queue.read(2)
    bus.client.xdel(job.keys.frames, "1-0")
    queue.reread_pending()
    assert numbers([next_pending(queue)]) == [2]
    assert bus.client.xpending(job.keys.frames, "infer")["pending"] == 1


def test_frames_of_a_worker_without_heartbeat_are_claimed_one_at_a_time(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    job.offer(job.writer(), 3)
    bus.beat("infer", "dead", "running")
    job.queue("dead").read(2)
    queue = job.queue("w1")  # reads the heartbeat for the first time
    clock.now_s += INFER_LEASE_S - 0.1
    assert queue.read_pending() is None
    clock.now_s += CLAIM_INTERVAL_S
    for number in (1, 2):
        frame = next_pending(queue)
        assert (numbers([frame]), frame.num_deliveries) == ([number], 2)
        job.answer(queue, [frame])
    assert queue.read_pending() is None
    assert numbers(queue.read(4)) == [3]
    consumers = {consumer["name"] for consumer in bus.client.xinfo_consumers(job.keys.frames, "infer")}
    assert consumers == {b"w1"}


def test_frames_of_a_slow_worker_with_heartbeat_are_not_claimed(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    job.offer(job.writer())
    job.queue("slow").read(1)
    queue = job.queue("w1")
    for _ in range(4):
        bus.beat("infer", "slow", "running")
        clock.now_s += INFER_LEASE_S
        assert queue.read_pending() is None


def test_a_withdrawn_frame_of_a_dead_worker_is_not_claimed(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    job.offer(job.writer(), 2)
    job.queue("dead").read(2)
    bus.client.xdel(job.keys.frames, "1-0")
    queue = job.queue("w1")
    clock.now_s += INFER_LEASE_S
    assert numbers([next_pending(queue)]) == [2]
    assert bus.client.xpending(job.keys.frames, "infer")["pending"] == 1


def test_two_workers_do_not_claim_the_same_frame(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    job.offer(job.writer(), 2)
    job.queue("dead").read(2)
    first, second = job.queue("w1"), job.queue("w2")
    clock.now_s += INFER_LEASE_S
    assert numbers([next_pending(first), next_pending(second)]) == [1, 2]


def test_a_frame_that_kills_every_worker_becomes_a_gap(bus: Bus) -> None:
    job = Job(bus)
    job.offer(job.writer(), 2)
    job.queue().read(1)
    for delivery in range(2, MAX_DELIVERIES + 1):
        again = bus.frame_queue("w1")
        again.set_streams(["cam1"])
        assert next_pending(again).num_deliveries == delivery
    again = bus.frame_queue("w1")
    again.set_streams(["cam1"])
    assert again.read_pending() is None
    assert job.gaps() == [(1, 1, "error", 1)]
    (gap,) = job.messages()
    assert isinstance(gap, FrameGap)
    assert gap.detail == "no answer after 3 attempts"
    assert numbers(again.read(2)) == [2]


def test_a_frame_that_kills_the_worker_that_claims_it_becomes_a_gap(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    job.offer(job.writer())
    job.queue("w0").read(1)
    for index in range(1, MAX_DELIVERIES):
        queue = job.queue(f"w{index}")
        clock.now_s += INFER_LEASE_S
        assert next_pending(queue).num_deliveries == index + 1
    queue = job.queue("last")
    clock.now_s += INFER_LEASE_S
    assert queue.read_pending() is None
    assert job.gaps() == [(1, 1, "error", 1)]
