"""The infer worker's end of the bus: frames of all streams in, detections out."""

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
"""frames of an infer worker whose beat stands still for so long are claimed by others; longer than any batch"""
CLAIM_INTERVAL_S = 2.0
MAX_DELIVERIES = 3
"""a frame that was handed out so often without an answer is given up"""


@dataclass(frozen=True, slots=True)
class QueuedFrame:
    """A frame that was handed to this worker and not answered yet."""

    stream_id: str
    entry_id: bytes
    header: FrameHeader
    pixels: bytes | None
    """None when they are no longer there"""
    num_deliveries: int
    """1 for a frame that nobody had before"""


class FrameQueue:
    """Reads the frames of many streams through the consumer group. One per infer worker; `name` outlives restarts."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._streams: deque[str] = deque()
        self._own_pending: set[str] = set()
        self._others: dict[bytes, tuple[bytes | None, float]] = {}
        self._claim_at_s = 0.0
        self._wake_ids: dict[str, bytes] = {}

    def set_streams(self, stream_ids: Iterable[str]) -> None:
        """The streams to read. Those that were not read before begin with what this worker still owes."""
        wanted = set(stream_ids)
        known = set(self._streams)
        for stream_id in wanted - known:
            self._streams.append(stream_id)
            self._own_pending.add(stream_id)
        for stream_id in known - wanted:
            self._streams.remove(stream_id)
            self._own_pending.discard(stream_id)
            self._wake_ids.pop(StreamKeys.of(stream_id).frames, None)

    def reload(self) -> None:
        """After a lost connection: a reply that never came left frames pending under our name, so read them first."""
        self._own_pending.update(self._streams)
        self._wake_ids.clear()

    def read(self, most: int) -> list[QueuedFrame]:
        """Up to `most` frames nobody had before, of as many streams as possible. Does not wait."""
        if not self._streams:
            return []
        self._streams.rotate(-1)
        chosen = list(self._streams)[:most] if len(self._streams) > most else list(self._streams)
        share, extra = divmod(most, len(chosen))
        counts = {stream_id: share + (index < extra) for index, stream_id in enumerate(chosen)}
        return self._with_pixels([(*entry, 1) for entry in self._read_group(counts, ">")])

    def read_pending(self) -> QueuedFrame | None:
        """One frame that was handed out before without an answer: our own first, then those of dead workers; or None.

        It is meant to be inferred alone, so that a poisonous frame takes no neighbour along; one that was tried too
        often becomes a gap. Answer it before the next call, which gives the same frame again otherwise.
        """
        while self._own_pending:
            stream_id = next(iter(self._own_pending))
            entries = self._read_group({stream_id: 1}, "0")
            if not entries:
                self._own_pending.discard(stream_id)
                continue
            if (frame := self._owed(*entries[0])) is not None:
                return frame
        if time.monotonic() >= self._claim_at_s:
            for stream_id in list(self._streams):
                if (frame := self._claim(stream_id)) is not None:
                    return frame
            self._claim_at_s = time.monotonic() + CLAIM_INTERVAL_S
        return None

    def wait(self, timeout_s: float) -> None:
        """Sleep until a frame may be there, at most `timeout_s`."""
        positions = {key: self._wake_ids.get(key, b"0-0") for key in self._frame_keys()}
        rung = wait_for_entries(self._client, positions, timeout_s)
        if rung:
            self._wake_ids.update(rung)
        else:  # a file that is decoded again gives lower ids: look at everything once more
            self._wake_ids.clear()

    def deliver(self, frame: QueuedFrame, message: BusMessage) -> bool:
        """Answer one frame. False when it was answered by somebody else or withdrawn."""
        keys = StreamKeys.of(frame.stream_id)
        arguments = [FRAME_GROUP, frame.entry_id, frame.header.session, encode(message)]
        return bool(scripts.DELIVER(self._client, [keys.frames, keys.detections], arguments))

    def give_up(self, frame: QueuedFrame, cause: GapCause, detail: str) -> None:
        """Answer a frame with a gap."""
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
        """One XREADGROUP per stream, pipelined: a stream that does not exist (yet) disturbs no other."""
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

    def _owed(self, stream_id: str, entry_id: bytes, fields: dict[bytes, bytes] | None) -> QueuedFrame | None:
        key = StreamKeys.of(stream_id).frames
        if not fields:
            self._client.xack(key, FRAME_GROUP, entry_id)  # the frame was withdrawn
            return None
        pending = self._client.xpending_range(key, FRAME_GROUP, entry_id, entry_id, 1)
        deliveries = int(pending[0]["times_delivered"]) if pending else 1
        return self._unless_hopeless(stream_id, entry_id, fields, deliveries)

    def _unless_hopeless(
        self, stream_id: str, entry_id: bytes, fields: dict[bytes, bytes], deliveries: int
    ) -> QueuedFrame | None:
        """The frame; or None after one that was tried too often was given up."""
        frame = self._with_pixels([(stream_id, entry_id, fields, deliveries)])[0]
        if deliveries > MAX_DELIVERIES:
            self.give_up(frame, "error", f"no answer after {deliveries - 1} attempts")
            return None
        return frame

    def _claim(self, stream_id: str) -> QueuedFrame | None:
        """One frame of a worker whose beat stands still."""
        key = StreamKeys.of(stream_id).frames
        try:
            consumers = self._client.xpending(key, FRAME_GROUP)["consumers"]
        except redis.ResponseError:  # NOGROUP: the stream is gone or not open yet
            return None
        for consumer in consumers or []:
            name = consumer["name"]
            if name == self._name.encode() or not self._stands_still(name):
                continue
            while (reply := scripts.CLAIM(self._client, [key], [FRAME_GROUP, self._name, name])) is not None:
                entry_id, deliveries, flat = reply
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                if (frame := self._unless_hopeless(stream_id, entry_id, fields, deliveries)) is not None:
                    return frame
        return None

    def _stands_still(self, consumer: bytes) -> bool:
        beat = self._client.get(f"{WORKER_PREFIX}infer:{consumer.decode()}")
        seen, since_s = self._others.get(consumer, (b"never seen", 0.0))
        if beat != seen:
            self._others[consumer] = (beat, time.monotonic())
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
