"""The decoder's interface to the bus."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

import redis

from pipeline.bus import scripts
from pipeline.bus.connection import FRAME_GROUP, Client, StreamKeys
from pipeline.bus.lease import Lease
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import GapCause
from pipeline.contract.wire import FrameHeader, SourceEnd, encode
from pipeline.errors import FencedError, JobLostError, PositionMovedError

LATEST_QUEUE = 2
"""undelivered frames in policy `latest`: the next one and its successor; further ones would be too old when inferred"""
LATEST_BACKLOG = 512
"""maximum numbers in flight in policy `latest`; most of them are gaps, which need little memory"""


Mode = Literal["file", "live"]
Policy = Literal["lossless", "latest"]


class Offer(Enum):
    """Outcome of `FrameWriter.offer`."""

    ACCEPTED = auto()
    FULL = auto()


@dataclass(slots=True)
class _Skip:
    """A run of numbers without a frame, and the cause and detail of the gap to write for them."""

    count: int
    cause: GapCause
    detail: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The position at which a decode session begins."""

    seq: int
    """highest committed number; a file continues after it"""
    last: int
    """highest number assigned to a frame"""
    epoch: int


class FrameWriter:
    """Numbers frames and writes them to the bus. Each decode worker has one; it holds the `decode` lease."""

    def __init__(self, client: Client, stream: StreamConfig) -> None:
        self._client = client
        self._stream = stream
        self.keys = StreamKeys.of(stream.stream_id)
        self.lease = Lease(client, self.keys, "decode")
        self._last = 0
        self._epoch = 1
        self.policy: Policy = "lossless" if stream.policy == "lossless" else "latest"
        """what happens when the queue is full; decode sets it once it knows whether the source is live"""
        self._skips: list[_Skip] = []
        self._pixels_set_for: int | None = None

    @property
    def stream_id(self) -> str:
        """Id of the stream."""
        return self._stream.stream_id

    @property
    def session(self) -> str:
        """Id of this decode session, which marks everything the decoder writes; the token of the lease."""
        return self.lease.token

    @property
    def epoch(self) -> int:
        """The stream epoch of this session."""
        return self._epoch

    @property
    def next_seq(self) -> int:
        """The number of the next frame."""
        return self._last + self._num_skipped + 1

    @property
    def _num_skipped(self) -> int:
        return sum(skip.count for skip in self._skips)

    def open(self, mode: Mode | None = None) -> Opened:
        """Begin a session; the lease must have been taken.

        mode   how the job goes on where an earlier session ended: a `file` after the last committed frame, a `live`
               source in a new epoch; None: as the job began

        Raises FencedError, JobLostError, or PositionMovedError if the job is over.
        """
        keys = self.keys
        reply = scripts.OPEN(
            self._client,
            [keys.state, keys.frames, keys.detections],
            [self.session, self._last, FRAME_GROUP, keys.pixels_prefix, mode or ""],
        )
        self._check(reply)
        opened = Opened(seq=int(reply[1]), last=int(reply[2]), epoch=int(reply[3]))
        self._last, self._epoch, self._skips, self._pixels_set_for = opened.last, opened.epoch, [], None
        return opened

    def offer(self, header: FrameHeader, pixels: memoryview) -> Offer:
        """Write one frame, whose `header.frame_seq` must be `next_seq`; `pixels` are its I420 planes.

        After FULL, offer the frame again or call `skip`.

        Raises FencedError, JobLostError, PositionMovedError, or an exception of LOST_CONNECTION, after which the same
        call can be repeated.
        """
        key = self.keys.pixels(self.session, header.frame_seq)
        try:
            if self._pixels_set_for == header.frame_seq:
                reply = self._send("frame", encode(header), key)
            else:
                reply = scripts.OFFER.set_and_call(
                    self._client, key, pixels, *self._offer_arguments("frame", encode(header), key)
                )
                self._pixels_set_for = header.frame_seq
        except redis.exceptions.OutOfMemoryError:
            return Offer.FULL
        if reply[0] == b"unset":  # the server lost the pixels
            self._pixels_set_for = None
            return Offer.FULL
        if reply[0] == b"full":
            return Offer.FULL
        self._check(reply)
        self._last, self._skips, self._pixels_set_for = header.frame_seq, [], None
        return Offer.ACCEPTED

    def skip(self, cause: GapCause, detail: str) -> None:
        """Assign `next_seq` to a frame that is not offered or that was refused as FULL.

        A gap with `cause` and `detail` is written for the number, together with the next frame or the end.
        """
        if self._pixels_set_for is not None:
            self._client.delete(self.keys.pixels(self.session, self._pixels_set_for))
            self._pixels_set_for = None
        if self._skips and (self._skips[-1].cause, self._skips[-1].detail) == (cause, detail):
            self._skips[-1].count += 1
        else:
            self._skips.append(_Skip(1, cause, detail))

    def end(self, end: SourceEnd) -> None:
        """Write that no number follows. Raises the same exceptions as `offer`."""
        reply = self._send("end", encode(end), "")
        self._check(reply)
        self._last += self._num_skipped
        self._skips = []

    def _send(self, kind: str, payload: bytes, pixel_key: str) -> list[bytes]:
        reply: list[bytes] = scripts.OFFER(self._client, *self._offer_arguments(kind, payload, pixel_key))
        return reply

    def _offer_arguments(self, kind: str, payload: bytes, pixel_key: str) -> tuple[list[str], list[str | int | bytes]]:
        stream = self._stream
        max_in_flight = stream.max_in_flight if self.policy == "lossless" else LATEST_BACKLOG
        keys = [self.keys.state, self.keys.frames, self.keys.detections, self.keys.results]
        numbers: list[str | int | bytes] = [
            self.session,
            self._last,
            self._num_skipped,
            self.policy,
            max_in_flight,
            LATEST_QUEUE,
            stream.log_bytes,
        ]
        skips = [part for skip in self._skips for part in (skip.count, skip.cause, skip.detail)]
        return keys, [*numbers, FRAME_GROUP, self._epoch, kind, payload, pixel_key, *skips]

    def _check(self, reply: list[bytes]) -> None:
        verdict = reply[0]
        if verdict == b"none":
            raise JobLostError(f"Redis no longer holds the job of {self._stream.stream_id}")
        if verdict == b"fenced":
            raise FencedError(f"another decoder took over {self._stream.stream_id}")
        if verdict != b"ok":
            raise PositionMovedError(f"{self._stream.stream_id}: {b' '.join(map(_as_bytes, reply)).decode()}")


def _as_bytes(value: bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
