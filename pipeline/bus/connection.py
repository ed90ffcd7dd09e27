"""Connections to Redis, the names of its keys, and its clock."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, TypeAlias

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from pipeline.errors import BusError
from pipeline.redaction import redact_url

CONNECT_TIMEOUT_S = 3.0
REPLY_TIMEOUT_S = 10.0
"""longer than a blocking read (1 s) and than any script"""
CLOCK_REFRESH_S = 30.0
EXPECTED_URL = (
    "expected redis://HOST:PORT/DB, rediss://… or unix:///PATH, with USER:PASSWORD@ before HOST where needed and known "
    "options only; characters such as / # ? @ in a password are written as %2F %23 %3F %40"
)
FRAME_GROUP = "infer"
SOURCES_KEY = "ms:sources"
WORKER_PREFIX = "ms:worker:"

Client: TypeAlias = Any
"""a redis.Redis; its annotations are unions over RESP versions and decoding modes, so mypy cannot use them"""

LOST_CONNECTION = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
)
"""exceptions of a server that is unreachable, starting or failing over; workers wait and try again"""


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """The names of one stream's keys. The braces keep them in one slot of a Redis Cluster."""

    frames: str
    detections: str
    results: str
    state: str
    status: str
    channel: str
    pixels_prefix: str

    @classmethod
    def of(cls, stream_id: str) -> StreamKeys:
        base = f"ms:{{{stream_id}}}:"
        return cls(
            frames=base + "frames",
            detections=base + "detections",
            results=base + "results",
            state=base + "state",
            status=base + "status",
            channel=f"ms:results:{stream_id}",
            pixels_prefix=base + "px:",
        )

    def pixels(self, session: str, frame_seq: int) -> str:
        """The key of one frame's pixels."""
        return f"{self.pixels_prefix}{session}:{frame_seq}"


def connect(url: str) -> Client:
    """A client of its own connection pool, without silent retries, which would hide that the server went back in time.

    Raises BusError when the URL is malformed. Does not talk to the server yet.
    """
    try:
        client = redis.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=REPLY_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # an unknown option shows only here
    except (ValueError, TypeError):
        # the library's own text may quote parts of a password
        raise BusError(f"Redis URL {redact_url(url)!r}: {EXPECTED_URL}") from None
    return client


class RedisClock:
    """The server's UTC time, estimated from this process' monotonic clock.

    One TIME round trip every half minute; the error is at most half the round trip plus the drift in between.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._offset_ns = 0
        self._refresh_at_s = float("-inf")

    def now_ns(self) -> int:
        """Nanoseconds since 1970, Redis server time."""
        if time.monotonic() >= self._refresh_at_s:
            before_ns = time.monotonic_ns()
            seconds, microseconds = self._client.time()
            middle_ns = (before_ns + time.monotonic_ns()) // 2
            self._offset_ns = (seconds * 1_000_000 + microseconds) * 1_000 - middle_ns
            self._refresh_at_s = time.monotonic() + CLOCK_REFRESH_S
        return time.monotonic_ns() + self._offset_ns
