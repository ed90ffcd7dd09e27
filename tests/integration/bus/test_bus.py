"""Decoder and bus: frame numbers, the lease, sessions, and the two policies for a full bus."""

from __future__ import annotations

import pytest
from support.bus_parts import PIXELS, Clock, Job

from pipeline.bus import Bus, FrameWriter, Offer
from pipeline.bus.lease import BEAT_INTERVAL_S, LEASE_S
from pipeline.contract.wire import FrameGap
from pipeline.errors import FencedError, JobLostError, PositionMovedError

ACCEPTED, FULL = Offer.ACCEPTED, Offer.FULL


# -- frame numbers ----------------------------------------------------------------------------------------------------


def test_frame_numbers_are_consecutive(bus: Bus) -> None:
    job = Job(bus)
    writer = job.writer()
    assert job.offer(writer, 5) == [ACCEPTED] * 5
    assert job.frames() == [1, 2, 3, 4, 5]
    assert job.state("last") == "5"
    assert len(job.pixel_keys()) == 5


def test_redis_refuses_a_second_entry_of_a_frame(bus: Bus) -> None:
    job = Job(bus)
    job.offer(job.writer(), 3)
    with pytest.raises(Exception, match="equal or smaller"):
        bus.client.xadd(job.keys.frames, {"h": b""}, id="3-0")


def test_an_offer_repeated_after_a_lost_reply_is_accepted_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(bus)
    writer = job.writer()
    header = job.header(writer)
    lose_reply_of_next_offer(writer, monkeypatch)
    with pytest.raises(ConnectionError):
        writer.offer(header, PIXELS.data)
    assert writer.offer(header, PIXELS.data) is ACCEPTED
    assert job.frames() == [1]
    assert job.offer(writer) == [ACCEPTED]
    assert job.frames() == [1, 2]


def test_a_repeated_offer_of_an_answered_frame_leaves_no_pixels(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(bus)
    writer, queue = job.writer(), job.queue()
    header = job.header(writer)
    lose_reply_of_next_offer(writer, monkeypatch)
    with pytest.raises(ConnectionError):
        writer.offer(header, PIXELS.data)
    job.answer(queue, queue.read(1))
    assert writer.offer(header, PIXELS.data) is ACCEPTED
    assert job.pixel_keys() == []


def test_an_end_repeated_after_a_lost_reply_is_written_once(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(bus, live=True)
    writer = job.writer()
    job.offer(writer)
    writer.skip("overflow", "the bus was full")
    lose_reply_of_next_offer(writer, monkeypatch)
    with pytest.raises(ConnectionError):
        job.end(writer)
    job.end(writer)
    assert [type(message).__name__ for message in job.messages()] == ["FrameGap", "SourceEnd"]
    assert job.state("last") == "2"


def lose_reply_of_next_offer(writer: FrameWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Redis execute the next script of the writer, but raise ConnectionError instead of returning the reply."""
    from pipeline.bus import scripts

    def fail_once(method: str) -> None:
        original = getattr(scripts.OFFER, method)

        def execute_and_fail(*arguments: object) -> object:
            original(*arguments)
            monkeypatch.undo()
            raise ConnectionError("reply lost")

        monkeypatch.setattr(type(scripts.OFFER), method, lambda self, *arguments: execute_and_fail(*arguments))

    fail_once("set_and_call")
    fail_once("__call__")


# -- the lease --------------------------------------------------------------------------------------------------------


def test_a_lease_has_one_owner(bus: Bus) -> None:
    job = Job(bus)
    job.writer()
    assert not bus.frame_writer(job.stream).lease.try_take()


def test_a_released_lease_is_free_at_once(bus: Bus) -> None:
    job = Job(bus)
    job.writer().lease.release()
    job.writer()


def test_a_decoder_that_was_replaced_cannot_write(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    old = job.writer()
    job.offer(old, 2)
    new = take_over(job, clock)
    with pytest.raises(FencedError, match="cam1"):
        job.offer(old)
    with pytest.raises(FencedError):
        old.open()
    clock.now_s += BEAT_INTERVAL_S
    with pytest.raises(FencedError):
        old.lease.beat()
    assert job.offer(new) == [ACCEPTED]
    assert job.state("session") == new.session


def test_a_token_without_a_session_cannot_write(bus: Bus) -> None:
    job = Job(bus)
    writer = bus.frame_writer(job.stream)
    assert writer.lease.try_take()
    with pytest.raises(FencedError):
        job.offer(writer)


def test_a_lease_is_taken_over_only_after_lease_s_without_a_heartbeat(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    job.writer()
    candidate = bus.frame_writer(job.stream)
    assert not candidate.lease.try_take()
    clock.now_s += LEASE_S - 0.1
    assert not candidate.lease.try_take()
    clock.now_s += 0.2
    assert candidate.lease.try_take()


def test_a_lease_is_not_taken_over_while_its_owner_sends_heartbeats(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    owner = job.writer()
    candidate = bus.frame_writer(job.stream)
    for _ in range(5):
        assert not candidate.lease.try_take()
        clock.now_s += LEASE_S + 1
        owner.lease.beat()


@pytest.mark.parametrize("write", ["offer", "full", "take again"])
def test_a_write_of_the_owner_counts_as_a_heartbeat(bus: Bus, clock: Clock, write: str) -> None:
    job = Job(bus, max_in_flight=1 if write == "full" else 16)
    owner = job.writer()
    job.offer(owner)
    candidate = bus.frame_writer(job.stream)
    for _ in range(3):
        assert not candidate.lease.try_take()
        if write == "take again":
            owner.lease.try_take()
        else:
            job.offer(owner)
        clock.now_s += LEASE_S + 1


def test_of_two_candidates_one_wins(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    job.writer()
    candidates = [bus.frame_writer(job.stream) for _ in range(2)]
    assert not any(candidate.lease.try_take() for candidate in candidates)
    clock.now_s += LEASE_S
    assert [candidate.lease.try_take() for candidate in candidates] == [True, False]


# -- sessions ---------------------------------------------------------------------------------------------------------


def take_over(job: Job, clock: Clock) -> FrameWriter:
    """Return the writer of a second decoder, which takes over after the lease of the first has expired."""
    writer = job.bus.frame_writer(job.stream)
    assert not writer.lease.try_take()
    clock.now_s += LEASE_S
    assert writer.lease.try_take()
    writer.open()
    return writer


def test_a_reopened_file_continues_after_the_last_commit(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    old, queue, tracker = job.writer(), job.queue(), job.result_writer()
    job.offer(old, 6)
    job.answer(queue, queue.read(3))
    job.commit(tracker, 1)
    job.commit(tracker, 2)
    new = take_over(job, clock)
    assert new.next_seq == 3
    assert job.frames() == []
    assert job.messages() == []
    assert job.pixel_keys() == []
    assert new.epoch == 1
    job.offer(new, 2)
    assert job.frames() == [3, 4]


def test_entry_ids_of_detections_increase_after_a_file_is_reopened(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    job.offer(writer)
    bus.client.xadd(job.keys.detections, {"m": b"", "s": b""}, id="9999999999999-0")  # from a clock that was ahead
    bus.client.xdel(job.keys.detections, "9999999999999-0")
    job.answer(queue, queue.read(1))
    assert len(tracker.read()) == 1
    writer = take_over(job, clock)
    job.offer(writer)
    job.answer(queue, queue.read(1))
    assert len(tracker.read()) == 1


def test_a_reopened_live_source_continues_its_numbers_and_starts_an_epoch(bus: Bus, clock: Clock) -> None:
    job = Job(bus, live=True)
    old = job.writer()
    job.offer(old, 2)
    new = take_over(job, clock)
    assert (new.next_seq, new.epoch) == (3, 2)
    assert job.frames() == [1, 2]
    job.offer(new)
    assert job.gaps() == [(1, 1, "overflow", 1)]  # a dropped frame keeps its epoch


def test_live_numbers_continue_if_redis_has_lost_the_last_ones(bus: Bus) -> None:
    job = Job(bus, live=True)
    writer = job.writer()
    job.offer(writer, 5)
    bus.client.hset(job.keys.state, "last", 2)  # as after a power cut
    with pytest.raises(PositionMovedError):
        job.offer(writer)
    assert writer.open().last == 5
    assert writer.next_seq == 6


def test_a_file_is_reopened_if_redis_has_lost_the_last_numbers(bus: Bus) -> None:
    job = Job(bus)
    writer = job.writer()
    job.offer(writer, 5)
    bus.client.hset(job.keys.state, "last", 2)
    with pytest.raises(PositionMovedError):
        job.offer(writer)
    assert writer.open().seq == 0
    assert job.offer(writer) == [ACCEPTED]
    assert job.frames() == [1]


def test_an_ended_job_cannot_be_opened(bus: Bus) -> None:
    job = Job(bus)
    writer = job.writer()
    bus.client.hset(job.keys.state, "ended", "finished")
    with pytest.raises(PositionMovedError):
        writer.open()


def test_every_writer_distinguishes_a_lost_job_from_a_lost_lease(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    writer, tracker = job.writer(), job.result_writer()
    header = job.header(writer)
    bus.client.flushall()
    clock.now_s += BEAT_INTERVAL_S
    for write in (
        writer.open,
        writer.lease.beat,
        lambda: writer.offer(header, PIXELS.data),
        lambda: job.end(writer),
        tracker.lease.beat,
        lambda: job.commit(tracker, 1),
    ):
        with pytest.raises(JobLostError, match=r"no longer holds the job of .*cam1"):
            write()
    assert bus.client.keys("*") == []
    assert bus.lost_jobs() == {"cam1": None}
    again = Job(Bus(bus.url))
    assert bus.lost_jobs() == {"cam1": again.log_id}


def test_consecutive_skipped_numbers_of_one_cause_become_one_gap(bus: Bus) -> None:
    job = Job(bus)
    writer = job.writer()
    job.offer(writer)
    for cause, detail in (("overflow", "full"), ("error", "kills"), ("error", "kills"), ("overflow", "full")):
        writer.skip(cause, detail)  # type: ignore[arg-type]
    job.offer(writer)
    assert job.gaps() == [(2, 2, "overflow", 1), (3, 4, "error", 1), (5, 5, "overflow", 1)]
    assert [gap.detail for gap in job.messages() if isinstance(gap, FrameGap)] == ["full", "kills", "full"]
    assert job.frames() == [1, 6]


@pytest.mark.parametrize("live", [False, True], ids=["file", "live"])
def test_pixels_without_an_accepted_frame_are_removed_when_the_decoder_is_replaced(
    bus: Bus, clock: Clock, live: bool
) -> None:
    job = Job(bus, live=live, max_in_flight=1, log_bytes=0)
    old = job.writer()
    job.offer(old)
    bus.client.hset(job.keys.state, "results_bytes", 1)  # the log is full
    assert job.offer(old) == [FULL]
    if live:
        old.skip("overflow", "the bus was full")
        assert job.offer(old) == [FULL]
    assert len(job.pixel_keys()) == 2
    take_over(job, clock)
    assert len(job.pixel_keys()) == (1 if live else 0)


# -- a full bus -------------------------------------------------------------------------------------------------------


def test_lossless_waits_at_max_in_flight_and_continues_after_a_commit(bus: Bus) -> None:
    job = Job(bus, max_in_flight=3)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    assert job.offer(writer, 4) == [ACCEPTED, ACCEPTED, ACCEPTED, FULL]
    job.answer(queue, queue.read(3))
    assert job.offer(writer) == [FULL]  # inferred frames count until they are committed
    job.commit(tracker, 1)
    assert job.offer(writer, 2) == [ACCEPTED, FULL]
    assert job.state("last") == "4"


def test_latest_drops_the_oldest_undelivered_frame_and_writes_its_gap(bus: Bus) -> None:
    job = Job(bus, live=True)
    writer = job.writer()
    assert job.offer(writer, 5) == [ACCEPTED] * 5
    assert job.frames() == [4, 5]
    assert job.gaps() == [(1, 1, "overflow", 1), (2, 2, "overflow", 1), (3, 3, "overflow", 1)]
    assert len(job.pixel_keys()) == 2


def test_latest_does_not_drop_delivered_frames(bus: Bus) -> None:
    job = Job(bus, live=True)
    writer, queue = job.writer(), job.queue()
    job.offer(writer, 2)
    held = queue.read(2)
    job.offer(writer, 4)
    assert job.frames() == [1, 2, 5, 6]
    assert [gap[:2] for gap in job.gaps()] == [(3, 3), (4, 4)]
    assert job.answer(queue, held) == [True, True]


def test_skipped_numbers_become_one_gap_before_the_next_frame(bus: Bus) -> None:
    job = Job(bus, live=True)
    writer, queue = job.writer(), job.queue()
    job.offer(writer)
    queue.read(1)
    bus.client.hset(job.keys.state, "results_bytes", job.stream.log_bytes + 1)
    for _ in range(3):
        assert job.offer(writer) == [FULL]
        writer.skip("overflow", "the bus was full")
    assert job.gaps() == []
    bus.client.hset(job.keys.state, "results_bytes", 0)
    assert writer.next_seq == 5
    assert job.offer(writer, 2) == [ACCEPTED, ACCEPTED]
    assert job.gaps() == [(2, 4, "overflow", 1)]
    assert job.frames() == [1, 5, 6]
    assert len(job.pixel_keys()) == 3


def test_numbers_skipped_at_the_end_become_a_gap_too(bus: Bus) -> None:
    job = Job(bus, live=True)
    writer = job.writer()
    job.offer(writer)
    writer.skip("overflow", "the bus was full")
    writer.skip("overflow", "the bus was full")
    job.end(writer)
    *_, gap, end = job.messages()
    assert (gap.from_seq, gap.to_seq) == (2, 3)
    assert end.last_seq == 3
    assert job.state("last") == "3"


def test_pixels_that_redis_has_lost_are_sent_again(bus: Bus) -> None:
    job = Job(bus, max_in_flight=1)
    writer, tracker = job.writer(), job.result_writer()
    assert job.offer(writer, 2) == [ACCEPTED, FULL]
    bus.client.delete(*job.pixel_keys())
    job.commit(tracker, 1)
    assert job.offer(writer, 2) == [FULL, ACCEPTED]
    assert len(job.pixel_keys()) == 1
