"""Tracker and bus: commits of results, and the size limit of the result log."""

from __future__ import annotations

import pytest
import redis
from support import result_samples
from support.bus_parts import Clock, Job, set_read

from pipeline.bus import Bus, Offer, ResultWriter
from pipeline.bus.lease import LEASE_S
from pipeline.contract.results import AnyResult, FrameResult, encode_result
from pipeline.errors import FencedError, JobLostError, PositionMovedError

ACCEPTED, FULL = Offer.ACCEPTED, Offer.FULL
FRAME_BYTES = len(encode_result(result_samples.frame(100, log_id="0" * 16)))
"""approximate size of a result in these tests"""


def running(bus: Bus, **options: object) -> tuple[Job, ResultWriter]:
    """Return a job with three inferred frames, and the log of its tracker."""
    job = Job(bus, **options)  # type: ignore[arg-type]
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    job.offer(writer, 3)
    job.answer(queue, queue.read(3))
    return job, tracker


# -- commits ----------------------------------------------------------------------------------------------------------


def test_a_commit_writes_results_position_and_checkpoint_and_publishes(bus: Bus) -> None:
    job, tracker = running(bus)
    (entry_id, message), *_ = tracker.read()
    with bus.client.pubsub() as channel:
        channel.subscribe(job.keys.channel)
        channel.get_message(timeout=1.0)
        job.commit(tracker, 1, session=message.header.session, consumed=[entry_id])
        published = channel.get_message(timeout=1.0)
    assert job.results() == [job.result(1)]
    assert published["data"] == encode_result(job.result(1))
    assert [message.header.frame_seq for message in job.messages()] == [2, 3]
    position = tracker.load()
    assert position is not None
    assert (position.seq, job.state("last"), position.checkpoint) == (1, "3", b"checkpoint 1")
    assert (position.log_id, position.ended) == (job.log_id, False)


def test_a_commit_repeated_after_a_lost_reply_is_accepted_once(bus: Bus) -> None:
    job, tracker = running(bus)
    job.commit(tracker, 1)
    job.commit(tracker, 1)
    assert job.result_ids() == ["1-0"]
    job.commit(tracker, 2)
    assert job.result_ids() == ["1-0", "2-0"]


def test_redis_refuses_a_second_entry_of_a_result(bus: Bus) -> None:
    job, tracker = running(bus)
    job.commit(tracker, 1)
    with pytest.raises(redis.ResponseError, match="equal or smaller"):
        bus.client.xadd(job.keys.results, {"j": b"{}"}, id="1-0")


def test_followers_come_after_their_frame(bus: Bus) -> None:
    job, tracker = running(bus)
    end = result_samples.end(1, log_id=job.log_id)
    epoch = result_samples.epoch(1, log_id=job.log_id)
    tracker.commit(
        seq_before=0,
        seq_after=1,
        session="",
        results=[("1-0", job.result(1)), ("1-1", epoch)],
        consumed=[],
        checkpoint=b"",
    )
    tracker.commit(
        seq_before=1,
        seq_after=1,
        session="",
        results=[("1-2", end)],
        consumed=[],
        checkpoint=b"",
        end_reason="finished",
    )
    assert job.result_ids() == ["1-0", "1-1", "1-2"]
    assert job.results() == [job.result(1), epoch, end]
    position = tracker.load()
    assert position is not None
    assert position.ended


def test_a_tracker_that_was_replaced_cannot_write(bus: Bus, clock: Clock) -> None:
    job, old = running(bus)
    job.commit(old, 1)
    new = bus.result_writer(job.stream)
    assert not new.lease.try_take()
    clock.now_s += LEASE_S
    assert new.lease.try_take()
    with pytest.raises(FencedError, match="cam1"):
        job.commit(old, 2)
    position = new.load()
    assert position is not None
    assert (position.seq, position.checkpoint) == (1, b"checkpoint 1")
    assert [message.header.frame_seq for _, message in new.read()] == [1, 2, 3]
    job.commit(new, 2)
    assert job.covered() == [1, 2]


WRONG = {
    "before the position": (0, 1, ["1-0"]),
    "a number left out": (2, 3, ["3-0"]),
    "a number that was not assigned": (1, 4, ["4-0"]),
    "an existing id": (1, 2, ["1-0", "2-0"]),
    "ids in the wrong order": (1, 3, ["3-0", "2-0"]),
    "an id twice": (1, 2, ["2-0", "2-0"]),
}


@pytest.mark.parametrize(("before", "after", "ids"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_commit_writes_nothing(bus: Bus, before: int, after: int, ids: list[str]) -> None:
    job, tracker = running(bus)
    (entry_id, _), *_ = tracker.read()
    job.commit(tracker, 1)
    results: list[tuple[str, AnyResult]] = [(entry, job.result(after)) for entry in ids]
    if before == 0:
        results[0] = ("1-1", job.result(1))
    with pytest.raises(PositionMovedError):
        tracker.commit(
            seq_before=before,
            seq_after=after,
            session="",
            results=results,
            consumed=[entry_id],
            checkpoint=b"wrong",
        )
    assert job.result_ids() == ["1-0"]
    assert len(job.messages()) == 3
    assert (job.state("seq"), job.state("tracker")) == ("1", "checkpoint 1")


def test_a_result_of_an_old_decode_session_is_refused(bus: Bus, clock: Clock) -> None:
    job, tracker = running(bus)
    (entry_id, message), *_ = tracker.read()
    bus.client.hset(job.keys.state, "session", "another")
    with pytest.raises(PositionMovedError):
        job.commit(tracker, 1, session=message.header.session, consumed=[entry_id])
    assert job.results() == []


def test_numbers_of_a_reopened_file_do_not_become_lost_gaps(bus: Bus, clock: Clock) -> None:
    job = Job(bus)
    writer, tracker = job.writer(), job.result_writer()
    job.offer(writer, 3)
    last = tracker.refresh_last_assigned()
    clock.now_s += LEASE_S
    other = bus.frame_writer(job.stream)
    other.lease.try_take()
    clock.now_s += LEASE_S
    assert other.lease.try_take()
    other.open()
    assert tracker.first_present_seq(1) is None
    job.offer(other, last)
    with pytest.raises(PositionMovedError):
        tracker.commit(
            seq_before=0,
            seq_after=last,
            session="",
            results=[(f"{last}-0", result_samples.gap(1, last, "lost"))],
            consumed=[],
            checkpoint=b"",
        )


def test_first_present_seq_finds_gaps_queued_frames_and_detections(bus: Bus) -> None:
    job = Job(bus, live=True)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    assert tracker.first_present_seq(1) is None
    job.offer(writer, 5)  # 1 to 3 are gaps, 4 and 5 are frames
    assert tracker.first_present_seq(1) == 1
    tracker.discard([entry_id for entry_id, message in tracker.read() if message.to_seq < 3])
    assert tracker.first_present_seq(1) == 3
    assert tracker.first_present_seq(4) == 4
    job.answer(queue, queue.read(1))
    assert tracker.first_present_seq(4) == 4
    assert tracker.first_present_seq(6) is None
    assert tracker.refresh_last_assigned() == 5


def test_read_returns_new_messages_only_until_load(bus: Bus) -> None:
    _, tracker = running(bus)
    assert len(tracker.read()) == 3
    assert tracker.read() == []
    tracker.load()
    assert len(tracker.read()) == 3


def test_without_a_job_load_returns_none_and_commit_raises(bus: Bus) -> None:
    job = Job(bus)
    tracker = job.result_writer()
    bus.client.flushall()
    assert tracker.load() is None
    with pytest.raises(JobLostError):
        job.commit(tracker, 1)


# -- the size limit of the log ----------------------------------------------------------------------------------------


def fill(job: Job, tracker: ResultWriter, to_seq: int, from_seq: int = 1) -> None:
    """Commit the frames one at a time."""
    job.bus.client.hset(job.keys.state, "last", to_seq)
    for seq in range(from_seq, to_seq + 1):
        job.commit(tracker, seq)


def log_bytes(job: Job) -> int:
    return sum(len(fields[b"j"]) for _, fields in job.bus.client.xrange(job.keys.results))


def test_without_required_readers_the_log_is_trimmed_to_its_size_limit(bus: Bus) -> None:
    job = Job(bus, log_bytes=10 * FRAME_BYTES)
    tracker = job.result_writer()
    fill(job, tracker, 300)
    assert job.covered()[-1] == 300
    assert 8 <= len(job.result_ids()) <= 10
    assert job.state("results_bytes") == str(log_bytes(job))


def test_the_log_keeps_everything_that_the_slowest_reader_has_not_read(bus: Bus) -> None:
    job = Job(bus, sinks=["jsonl", "video"], log_bytes=10 * FRAME_BYTES)
    tracker = job.result_writer()
    fill(job, tracker, 100)
    assert job.covered() == list(range(1, 101))
    set_read(bus, "cam1", "jsonl", 100)
    set_read(bus, "cam1", "video", 60)
    fill(job, tracker, 101, from_seq=101)
    assert job.covered() == list(range(61, 102))
    set_read(bus, "cam1", "video", 101)
    fill(job, tracker, 102, from_seq=102)
    assert 8 <= len(job.result_ids()) <= 10


def test_followers_are_trimmed_with_their_frame(bus: Bus) -> None:
    job = Job(bus, sinks=["jsonl"], log_bytes=1)
    tracker = job.result_writer()
    fill(job, tracker, 1)
    for follower in (1, 2):
        tracker.commit(
            seq_before=1,
            seq_after=1,
            session="",
            results=[(f"1-{follower}", result_samples.epoch(1))],
            consumed=[],
            checkpoint=b"",
        )
    set_read(bus, "cam1", "jsonl", 1)
    fill(job, tracker, 2, from_seq=2)
    # the last entry before the commit stays, so that a repeated commit is recognised
    assert job.result_ids() == ["1-2", "2-0"]


@pytest.mark.parametrize("live", [False, True], ids=["lossless", "latest"])
def test_a_full_log_stops_the_decoder_until_the_reader_has_read(bus: Bus, live: bool) -> None:
    job = Job(bus, live=live, sinks=["jsonl"], log_bytes=5 * FRAME_BYTES)
    writer, queue, tracker = job.writer(), job.queue(), job.result_writer()
    seq = 0
    while job.offer(writer) == [ACCEPTED]:
        job.answer(queue, queue.read(1))
        seq += 1
        job.commit(tracker, seq)
    assert seq in (5, 6)
    set_read(bus, "cam1", "jsonl", 0)
    assert job.offer(writer) == [FULL]
    # no frame is in flight, so no commit will trim the log: the offer itself must trim it
    set_read(bus, "cam1", "jsonl", seq - 1)
    assert job.offer(writer) == [ACCEPTED]
    assert job.covered()[0] > 1
    assert job.state("results_bytes") == str(log_bytes(job))


def test_entries_that_a_slow_reader_has_read_are_trimmed_at_once(bus: Bus) -> None:
    job = Job(bus, sinks=["jsonl"], log_bytes=5 * FRAME_BYTES)
    writer, tracker = job.writer(), job.result_writer()
    fill(job, tracker, 200)
    writer.open()
    assert job.offer(writer) == [FULL]
    set_read(bus, "cam1", "jsonl", 200)
    assert job.offer(writer) == [ACCEPTED]
    assert len(job.result_ids()) <= 5


def test_results_contain_the_ids_of_stream_and_log(bus: Bus) -> None:
    job, tracker = running(bus)
    job.commit(tracker, 1)
    (result,) = job.results()
    assert isinstance(result, FrameResult)
    assert (result.stream_id, result.log_id) == ("cam1", job.log_id)
