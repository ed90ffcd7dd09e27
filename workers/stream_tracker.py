"""One stream in the track worker: reads detections in any order and commits results in order, each exactly once."""

from __future__ import annotations

import time

from pipeline.bus import Bus, seq_range
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import GapCause
from pipeline.contract.wire import BusMessage, FrameDetections, FrameGap
from pipeline.errors import BusError, JobLostError, PositionMovedError
from pipeline.models.weights_table import spec_of_stream
from pipeline.tracking.results import Commit, ResultAssembler
from workers.base import log_outage

LOST_CHECK_S = 1.0
"""time without progress after which the tracker asks Redis whether the next frame number still exists"""
STATUS_INTERVAL_S = 0.25


class StreamTracker:
    """Holds the `track` lease of one stream, reads its detections and commits its results.

    pipeline/tracking/results.py assembles the messages; this class reads, waits for missing numbers and commits.
    """

    def __init__(self, bus: Bus, stream: StreamConfig) -> None:
        self.stream = stream
        self._bus = bus
        self.result_writer = bus.result_writer(stream)
        self._labels = spec_of_stream(stream).labels
        self._has_lease = False
        self._loaded = False
        self._ended = False
        self._log_id = bus.log_id(stream.stream_id) or ""
        self._assembler = self._new_assembler()
        self._waiting: dict[int, tuple[bytes, BusMessage]] = {}
        """messages ahead of the position, by their first frame number: entry ID and message"""
        self._lost_check_due_at_s = 0.0
        self._status_due_at_s = 0.0

    @property
    def log_id(self) -> str:
        """Identifier of the result log that this tracker writes, or waits to write."""
        return self._log_id

    @property
    def active(self) -> bool:
        """Whether this process reads the stream: it holds the lease and the stream has not ended."""
        return self._has_lease and not self._ended

    def step(self) -> None:
        """Take the lease if it is free, read new messages, and commit every message that is next in order.

        Raises FencedError if another process has taken the lease, JobLostError, BusError for a stored state that cannot
        be read, and the errors of LOST_CONNECTION.
        """
        if not self._has_lease:
            if not self.result_writer.lease.try_take():
                return
            self._has_lease = True
        if not self._loaded:
            self._load()
        if self._ended:
            return
        self.result_writer.lease.beat()
        try:
            for entry_id, message in self.result_writer.read():
                self._enqueue(entry_id, message)
            self._advance()
            if time.monotonic() >= self._lost_check_due_at_s:
                self._commit_lost()
        except PositionMovedError as moved:
            cause = "new decode session, or Redis lost its latest writes"
            log_outage("the position moved (%s), loading it again: %s", cause, moved)
            self.forget()
        self._set_status()

    def forget(self) -> None:
        """Discard the state in memory: the next step loads it from Redis and reads the detections from the start."""
        self._loaded = False

    def release(self) -> None:
        """Give the lease back."""
        if self._has_lease:
            self.result_writer.lease.release()
            self._has_lease = False

    def _new_assembler(self, seq: int = 0, checkpoint: bytes = b"") -> ResultAssembler:
        now_ns = self._bus.clock.now_ns
        return ResultAssembler(self.stream, self._labels, self._log_id, now_ns, seq=seq, checkpoint=checkpoint)

    def _load(self) -> None:
        self._waiting.clear()
        self._lost_check_due_at_s = time.monotonic() + LOST_CHECK_S
        position = self.result_writer.load()
        if position is None:
            raise JobLostError(f"Redis no longer holds the job of {self.stream.stream_id}")
        self._log_id, self._ended = position.log_id, position.ended
        try:
            self._assembler = self._new_assembler(position.seq, position.checkpoint)
        except ValueError as error:
            raise BusError(
                f"the state of {self.stream.stream_id} in Redis cannot be read ({error}): if another version of "
                "MaskStream wrote it, continue the job with that version, or start the job again"
            ) from None
        self._loaded = True

    def _enqueue(self, entry_id: bytes, message: BusMessage) -> None:
        """Keep a message until it is next; discard it if its numbers are committed.

        A later copy replaces an earlier one.
        """
        seq = self._assembler.seq
        first, last = seq_range(message)
        if last <= seq:
            self.result_writer.discard([entry_id])
            return
        first = max(first, seq + 1)
        if first in self._waiting:
            self.result_writer.discard([self._waiting[first][0]])
        self._waiting[first] = (entry_id, message)

    def _advance(self) -> None:
        """Commit the waiting messages that follow the position without a missing number."""
        while (entry := self._waiting.pop(self._assembler.seq + 1, None)) is not None:
            entry_id, message = entry
            if isinstance(message, FrameDetections):
                self._commit(self._assembler.frame(message), [entry_id], message.header.session)
            elif isinstance(message, FrameGap):
                self._commit_gap(message.to_seq, message.cause, message.detail, [entry_id], message.session)
            else:
                self._commit(self._assembler.end(message), [entry_id], message.session)
                self._ended = True
                self._set_status()
                self.release()
                return

    def _commit_lost(self) -> None:
        """Commit a gap for frame numbers that were assigned but are neither in the frame queue nor among the
        detections: no worker will deliver them.
        """
        self._lost_check_due_at_s = time.monotonic() + LOST_CHECK_S
        seq = self._assembler.seq
        last = self.result_writer.refresh_last_assigned()
        if last <= seq:
            return
        present = self.result_writer.first_present_seq(seq + 1)
        to_seq = last if present is None else min(last, present - 1)
        if to_seq > seq:
            self._commit_gap(to_seq, "lost", "no worker holds these frames any more", [], "")
            self._advance()

    def _commit_gap(self, to_seq: int, cause: GapCause, detail: str, consumed: list[bytes], session: str) -> None:
        self._commit(self._assembler.gap(to_seq, cause, detail), consumed, session)

    def _commit(self, commit: Commit, consumed: list[bytes], session: str) -> None:
        self.result_writer.commit(
            seq_before=commit.seq_before,
            seq_after=commit.seq_after,
            session=session,
            results=commit.results,
            consumed=consumed,
            checkpoint=self._assembler.checkpoint(),
            end_reason=commit.end_reason,
        )
        self._lost_check_due_at_s = time.monotonic() + LOST_CHECK_S

    def _set_status(self) -> None:
        if time.monotonic() < self._status_due_at_s and not self._ended:
            return
        self._status_due_at_s = time.monotonic() + STATUS_INTERVAL_S
        self._bus.set_status(self.stream.stream_id, **self._assembler.counters())
