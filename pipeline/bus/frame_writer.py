"""The decoder's end of the bus."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

import redis

from pipeline.bus import scripts
from pipeline.bus.connection import FRAME_GROUP, Client, StreamKeys
from pipeline.bus.lease import Lease
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import GapCause
from pipeline.contract.wire import FrameHeader, SourceEnd, encode
from pipeline.errors import FencedError, JobLostError, PositionMovedError

LATEST_QUEUE = 2
"""undelivered frames kept in policy `latest`: one to run, one to follow; more would only grow older until inferred"""
LATEST_BACKLOG = 512
"""numbers between decoder and log in policy `latest`; most are gaps, which are small"""


class Offer(Enum):
    """What became of an offered frame."""

    ACCEPTED = auto()
    FULL = auto()


@dataclass(slots=True)
class _Skip:
    """A run of numbers that were given to no frame, and the gap to write for them."""

    count: int
    cause: GapCause
    detail: str


@dataclass(frozen=True, slots=True)
class Opened:
    """Where a decode session begins."""

    seq: int
    """highest committed number: a file goes on right behind it"""
    last: int
    """highest number given"""
    epoch: int


class FrameWriter:
    """Gives numbers to frames and puts them on the bus. One per decode process; holds the `decode` role."""

    def __init__(self, client: Client, stream: StreamConfig) -> None:
        self._client = client
        self._stream = stream
        self.keys = StreamKeys.of(stream.stream_id)
        self.lease = Lease(client, self.keys, "decode")
        self._last = 0
        self._epoch = 1
        self._skips: list[_Skip] = []
        self._pixels_set_for: int | None = None

    @property
    def stream_id(self) -> str:
        """The stream whose frames these are."""
        return self._stream.stream_id

    @property
    def session(self) -> str:
        """Marks everything this decoder writes."""
        return self.lease.token

    @property
    def epoch(self) -> int:
        """The stream epoch of this session."""
        return self._epoch

    @property
    def next_seq(self) -> int:
        """The number the next accepted frame will have."""
        return self._last + self._num_skipped + 1

    @property
    def _num_skipped(self) -> int:
        return sum(skip.count for skip in self._skips)

    def open(self) -> Opened:
        """Begin a session under the lease.

        Raises FencedError, JobLostError, or PositionMovedError if the job is over.
        """
        keys = self.keys
        reply = scripts.OPEN(
            self._client,
            [keys.state, keys.frames, keys.detections],
            [self.session, self._last, FRAME_GROUP, keys.pixels_prefix],
        )
        self._check(reply)
        opened = Opened(seq=int(reply[1]), last=int(reply[2]), epoch=int(reply[3]))
        self._last, self._epoch, self._skips, self._pixels_set_for = opened.last, opened.epoch, [], None
        return opened

    def offer(self, header: FrameHeader, pixels: memoryview) -> Offer:
        """Put one frame on the bus. `header.frame_seq` must be `next_seq`. After FULL offer it again or call `skip`.

        Raises FencedError, JobLostError, PositionMovedError, or what a lost connection raises (then the same call may
        be repeated).
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
        if reply[0] == b"unset":  # the server forgot the pixels
            self._pixels_set_for = None
            return Offer.FULL
        if reply[0] == b"full":
            return Offer.FULL
        self._check(reply)
        self._last, self._skips, self._pixels_set_for = header.frame_seq, [], None
        return Offer.ACCEPTED

    def skip(self, cause: GapCause, detail: str) -> None:
        """Give `next_seq` to a frame that is not offered, or that was refused as FULL.

        The gap of this number, with `cause` and `detail`, is written with the next frame or the end of the source.
        """
        if self._pixels_set_for is not None:
            self._client.delete(self.keys.pixels(self.session, self._pixels_set_for))
            self._pixels_set_for = None
        if self._skips and (self._skips[-1].cause, self._skips[-1].detail) == (cause, detail):
            self._skips[-1].count += 1
        else:
            self._skips.append(_Skip(1, cause, detail))

    def end(self, end: SourceEnd) -> None:
        """Say that no number follows. Raises as `offer`."""
        reply = self._send("end", encode(end), "")
        self._check(reply)
        self._last += self._num_skipped
        self._skips = []

    def _send(self, kind: str, payload: bytes, pixel_key: str) -> list[bytes]:
        reply: list[bytes] = scripts.OFFER(self._client, *self._offer_arguments(kind, payload, pixel_key))
        return reply

    def _offer_arguments(self, kind: str, payload: bytes, pixel_key: str) -> tuple[list[str], list[str | int | bytes]]:
        stream = self._stream
        most = stream.max_in_flight if stream.policy == "lossless" else LATEST_BACKLOG
        keys = [self.keys.state, self.keys.frames, self.keys.detections, self.keys.results]
        numbers: list[str | int | bytes] = [
            self.session,
            self._last,
            self._num_skipped,
            stream.policy,
            most,
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
