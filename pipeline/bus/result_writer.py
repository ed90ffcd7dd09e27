"""The tracker's interface to the bus: it reads detections in any order and commits each result once, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.bus import scripts
from pipeline.bus.connection import Client, StreamKeys
from pipeline.bus.lease import Lease
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import AnyResult, encode_result
from pipeline.contract.wire import BusMessage, FrameDetections, FrameGap, decode_message
from pipeline.errors import FencedError, JobLostError, PositionMovedError

READ_COUNT = 128


@dataclass(frozen=True, slots=True)
class CommittedState:
    """The committed position of a stream, and the checkpoint of the track worker at it."""

    log_id: str
    seq: int
    """highest committed number"""
    ended: bool
    checkpoint: bytes
    """checkpoint of the track worker for this stream after `seq` (MessagePack, `Progress`); empty before the first
    commit"""


class ResultWriter:
    """Reads the detections of one stream and commits its results; holds the `track` lease."""

    def __init__(self, client: Client, stream: StreamConfig) -> None:
        self._client = client
        self._stream = stream
        self.keys = StreamKeys.of(stream.stream_id)
        self.lease = Lease(client, self.keys, "track")
        self._cursor = b"-"
        self._session = b""

    def load(self) -> CommittedState | None:
        """Return the committed state, or None if there is no job, and restart `read` at the first message."""
        self._cursor = b"-"
        fields = self._client.hmget(self.keys.state, "log_id", "seq", "ended", "tracker")
        if fields[0] is None:
            return None
        return CommittedState(
            log_id=fields[0].decode(),
            seq=int(fields[1]),
            ended=fields[2] is not None,
            checkpoint=fields[3] or b"",
        )

    def read(self) -> list[tuple[bytes, BusMessage]]:
        """The messages that were not read since `load`, with their ids. Does not block."""
        entries = self._client.xrange(self.keys.detections, min=self._cursor, count=READ_COUNT)
        if entries:
            self._cursor = b"(" + entries[-1][0]
        return [(entry_id, decode_message(fields[b"m"])) for entry_id, fields in entries]

    def first_present_seq(self, from_seq: int) -> int | None:
        """The lowest number >= `from_seq` among the frames and detections in Redis, or None if there is none.

        Numbers below it are lost, not late. The frames are read before the detections: a frame that is delivered in
        between is then seen twice rather than missed.
        """
        frames = self._client.xrange(self.keys.frames, min=f"{from_seq}-0", count=1)
        numbers = [int(frames[0][0].split(b"-")[0])] if frames else []
        for _, fields in self._client.xrange(self.keys.detections):
            message = decode_message(fields[b"m"])
            first, last = seq_range(message)
            if last >= from_seq:
                numbers.append(max(first, from_seq))
        return min(numbers, default=None)

    def refresh_last_assigned(self) -> int:
        """Return the highest number assigned to a frame, and read the decode session that assigned it.

        `commit` attributes results without a session to the session read here.
        """
        last, session = self._client.hmget(self.keys.state, "last", "session")
        self._session = session or b""
        return int(last or 0)

    def commit(
        self,
        *,
        seq_before: int,
        seq_after: int,
        session: str,
        results: list[tuple[str, AnyResult]],
        consumed: list[bytes],
        checkpoint: bytes,
        end_reason: str = "",
    ) -> None:
        """Append results and set the committed position to `seq_after`, in one step.

        results     (id, message) pairs in ascending order; an id is `seq-n`
        session     decode session of the results; "" for gaps of lost numbers, which belong to the session that the
                    last call of `refresh_last_assigned` read
        consumed    ids of the detections messages to remove
        checkpoint  checkpoint of the track worker for this stream, after the results
        end_reason  reason of the end of the stream; "" if more results follow

        Raises FencedError, JobLostError, PositionMovedError (load again), or an exception of LOST_CONNECTION, after
        which the same call can be repeated.
        """
        entries: list[Any] = [part for entry_id, result in results for part in (entry_id, encode_result(result))]
        log_bytes = self._stream.log_bytes
        head: list[Any] = [
            self.lease.token,
            seq_before,
            seq_after,
            session or self._session,
            log_bytes,
            self.keys.channel,
            checkpoint,
            end_reason,
        ]
        reply = scripts.COMMIT(
            self._client,
            [self.keys.state, self.keys.results, self.keys.detections],
            [*head, len(results), *entries, *consumed],
        )
        if reply[0] == b"none":
            raise JobLostError(f"Redis no longer holds the job of {self._stream.stream_id}")
        if reply[0] == b"fenced":
            raise FencedError(f"another tracker took over {self._stream.stream_id}")
        if reply[0] != b"ok":
            raise PositionMovedError(f"{self._stream.stream_id}: {reply}")

    def discard(self, entry_ids: list[bytes]) -> None:
        """Remove messages that no result needs: those of committed numbers and of earlier sessions."""
        if entry_ids:
            self._client.xdel(self.keys.detections, *entry_ids)

    @property
    def wait_position(self) -> tuple[str, bytes]:
        """Key and position to pass to `wait_for_entries`."""
        return self.keys.detections, self._cursor.lstrip(b"(") if self._cursor != b"-" else b"0-0"


def seq_range(message: BusMessage) -> tuple[int, int]:
    """The first and the last number that a message covers; for a SourceEnd, twice the number after its last."""
    if isinstance(message, FrameDetections):
        return message.header.frame_seq, message.header.frame_seq
    if isinstance(message, FrameGap):
        return message.from_seq, message.to_seq
    return message.last_seq + 1, message.last_seq + 1
