"""The infer worker's interface to the bus: it reads frames of all streams and delivers detections."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import redis

from pipeline.bus import scripts
from pipeline.bus.connection import FRAME_GROUP, WORKER_PREFIX, Client, StreamKeys
from pipeline.bus.stream_wait import wait_for_entries
from pipeline.contract.results import GapCause
from pipeline.contract.wire import BusMessage, FrameGap, FrameHeader, decode_header, encode

INFER_LEASE_S = 15.0
"""pending frames of an infer worker whose heartbeat has not changed for this long are claimed; must exceed the time of
one batch"""
CLAIM_INTERVAL_S = 2.0
MAX_DELIVERIES = 3
"""a frame that was delivered more often than this without an answer becomes a gap"""


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A frame that was delivered to this worker and has no answer yet."""

    stream_id: str
    entry_id: bytes
    header: FrameHeader
    pixels: bytes | None
    """I420 planes; None if the key no longer exists"""
    num_deliveries: int
    """1 for a frame that was never delivered before, to any consumer"""


class FrameQueue:
    """Reads the frames of many streams through a consumer group.

    Each infer worker has one. `name` is the name of the consumer and should stay the same after a restart of the
    worker, which then reads its own pending frames first. Under another name these frames are claimed after
    INFER_LEASE_S.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._streams: deque[str] = deque()
        self._own_pending: set[str] = set()
        self._heartbeats_seen: dict[bytes, tuple[bytes | None, float]] = {}
        """of each other infer worker: its latest heartbeat, and the time since which it has not changed"""
        self._claim_at_s = 0.0
        self._wake_ids: dict[str, bytes] = {}

    def set_streams(self, stream_ids: Iterable[str]) -> None:
        """Set the streams to read. A stream that was not read before starts with the pending frames of this worker."""
        wanted = set(stream_ids)
        known = set(self._streams)
        for stream_id in wanted - known:
            self._streams.append(stream_id)
            self._own_pending.add(stream_id)
        for stream_id in known - wanted:
            self._streams.remove(stream_id)
            self._own_pending.discard(stream_id)
            self._wake_ids.pop(StreamKeys.of(stream_id).frames, None)

    def reread_pending(self) -> None:
        """Make `read_pending` begin with the pending frames of this worker again: a lost reply may have left some."""
        self._own_pending.update(self._streams)
        self._wake_ids.clear()

    def read(self, max_frames: int) -> list[QueuedFrame]:
        """Read up to `max_frames` new frames, from as many streams as possible. Does not block."""
        if not self._streams:
            return []
        self._streams.rotate(-1)
        chosen = list(self._streams)[:max_frames] if len(self._streams) > max_frames else list(self._streams)
        share, extra = divmod(max_frames, len(chosen))
        counts = {stream_id: share + (index < extra) for index, stream_id in enumerate(chosen)}
        return self._with_pixels([(*entry, 1) for entry in self._read_group(counts, ">")])

    def read_pending(self) -> QueuedFrame | None:
        """One frame that was delivered before without an answer, or None.

        The pending frames of this worker come first, then those of workers whose heartbeat stopped. The caller should
        infer the frame alone, because the frame may have crashed a worker, and must answer it: without an answer, a
        frame of this worker comes again at the next call, and a frame that was claimed comes again only after
        `reread_pending` or a restart. A frame with more than MAX_DELIVERIES deliveries becomes a gap.
        """
        while self._own_pending:
            stream_id = next(iter(self._own_pending))
            entries = self._read_group({stream_id: 1}, "0")
            if not entries:
                self._own_pending.discard(stream_id)
                continue
            if (frame := self._pending_frame(*entries[0])) is not None:
                return frame
        if time.monotonic() >= self._claim_at_s:
            for stream_id in list(self._streams):
                if (frame := self._claim(stream_id)) is not None:
                    return frame
            self._claim_at_s = time.monotonic() + CLAIM_INTERVAL_S
        return None

    def wait(self, timeout_s: float) -> None:
        """Block until there may be a frame to read, at most `timeout_s`."""
        positions = {key: self._wake_ids.get(key, b"0-0") for key in self._frame_keys()}
        found = wait_for_entries(self._client, positions, timeout_s)
        if found:
            self._wake_ids.update(found)
        else:  # a file that is decoded again has lower ids than before: wait from the beginning
            self._wake_ids.clear()

    def deliver(self, frame: QueuedFrame, message: BusMessage) -> bool:
        """Answer a frame. Returns False if another worker answered it or if it was removed."""
        keys = StreamKeys.of(frame.stream_id)
        arguments = [FRAME_GROUP, frame.entry_id, frame.header.session, encode(message)]
        return bool(scripts.DELIVER(self._client, [keys.frames, keys.detections], arguments))

    def give_up(self, frame: QueuedFrame, cause: GapCause, detail: str) -> None:
        """Answer a frame with a gap instead of detections."""
        header = frame.header
        gap = FrameGap(
            session=header.session,
            stream_epoch=header.stream_epoch,
            from_seq=header.frame_seq,
            to_seq=header.frame_seq,
            cause=cause,
            detail=detail,
        )
        self.deliver(frame, gap)

    def _frame_keys(self) -> list[str]:
        return [StreamKeys.of(stream_id).frames for stream_id in self._streams]

    def _read_group(self, counts: dict[str, int], position: str) -> list[tuple[str, bytes, dict[bytes, bytes]]]:
        """One XREADGROUP per stream, pipelined, so that a stream that does not exist fails alone (NOGROUP)."""
        pipe = self._client.pipeline(transaction=False)
        for stream_id, count in counts.items():
            pipe.xreadgroup(FRAME_GROUP, self._name, {StreamKeys.of(stream_id).frames: position}, count=count)
        found = []
        for stream_id, reply in zip(counts, pipe.execute(raise_on_error=False), strict=True):
            if isinstance(reply, redis.ResponseError) and str(reply).startswith("NOGROUP"):
                continue
            if isinstance(reply, Exception):
                raise reply
            found += [(stream_id, entry_id, fields) for _, entries in reply or [] for entry_id, fields in entries]
        return found

    def _pending_frame(self, stream_id: str, entry_id: bytes, fields: dict[bytes, bytes] | None) -> QueuedFrame | None:
        key = StreamKeys.of(stream_id).frames
        if not fields:
            self._client.xack(key, FRAME_GROUP, entry_id)  # the frame was removed from the stream
            return None
        pending = self._client.xpending_range(key, FRAME_GROUP, entry_id, entry_id, 1)
        deliveries = int(pending[0]["times_delivered"]) if pending else 1
        return self._frame_or_gap(stream_id, entry_id, fields, deliveries)

    def _frame_or_gap(
        self, stream_id: str, entry_id: bytes, fields: dict[bytes, bytes], deliveries: int
    ) -> QueuedFrame | None:
        """The frame, or None if it had too many deliveries and was answered with a gap."""
        frame = self._with_pixels([(stream_id, entry_id, fields, deliveries)])[0]
        if deliveries > MAX_DELIVERIES:
            self.give_up(frame, "error", f"no answer after {deliveries - 1} attempts")
            return None
        return frame

    def _claim(self, stream_id: str) -> QueuedFrame | None:
        """Claim one pending frame of a worker whose heartbeat stopped; None if there is none."""
        key = StreamKeys.of(stream_id).frames
        try:
            consumers = self._client.xpending(key, FRAME_GROUP)["consumers"]
        except redis.ResponseError:  # NOGROUP: no decoder has opened the stream, or its job is over
            return None
        for consumer in consumers or []:
            name = consumer["name"]
            if name == self._name.encode() or not self._has_stopped(name):
                continue
            while (reply := scripts.CLAIM(self._client, [key], [FRAME_GROUP, self._name, name])) is not None:
                entry_id, deliveries, flat = reply
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                if (frame := self._frame_or_gap(stream_id, entry_id, fields, deliveries)) is not None:
                    return frame
        return None

    def _has_stopped(self, consumer: bytes) -> bool:
        beat = self._client.get(f"{WORKER_PREFIX}infer:{consumer.decode()}")
        seen, since_s = self._heartbeats_seen.get(consumer, (b"unknown consumer", 0.0))
        if beat != seen:
            self._heartbeats_seen[consumer] = (beat, time.monotonic())
            return False
        return time.monotonic() - since_s >= INFER_LEASE_S

    def _with_pixels(self, found: list[tuple[str, bytes, dict[bytes, bytes], int]]) -> list[QueuedFrame]:
        if not found:
            return []
        pipe = self._client.pipeline(transaction=False)
        for _, _, fields, _ in found:
            pipe.get(fields[b"px"])
        return [
            QueuedFrame(stream_id, entry_id, decode_header(fields[b"h"]), pixels, deliveries)
            for (stream_id, entry_id, fields, deliveries), pixels in zip(found, pipe.execute(), strict=True)
        ]
