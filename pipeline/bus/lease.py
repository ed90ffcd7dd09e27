"""Leases: at most one decoder and one tracker write to a stream.

A lease depends only on the monotonic clock of the process that observes it, never on the clock of the server.
"""

from __future__ import annotations

import secrets
import time
from typing import Literal

from pipeline.bus import scripts
from pipeline.bus.connection import Client, StreamKeys
from pipeline.errors import FencedError, JobLostError

LEASE_S = 3.0
"""a candidate takes a role over if owner and heartbeat were unchanged for this time"""
BEAT_INTERVAL_S = LEASE_S / 4

Role = Literal["decode", "track"]


class Lease:
    """The lease of one role of one stream, as one process holds or seeks it.

    The owner renews the lease with a heartbeat counter; `offer`, `open` and `commit` renew it, too. A candidate that
    saw owner and heartbeat unchanged for `LEASE_S` takes the role over by compare-and-set, so only one of two
    candidates succeeds. `token` is the fencing token that every write is checked against.
    """

    def __init__(self, client: Client, keys: StreamKeys, role: Role) -> None:
        self._client = client
        self._keys = keys
        self._role = role
        self.token = secrets.token_hex(8)
        self._seen = (b"", b"")
        self._seen_since_s = time.monotonic()
        self._beat_at_s = float("-inf")

    def try_take(self) -> bool:
        """Take the role if it is free or its lease has expired, and return whether this process owns it.

        Call it again later if it returns False: the lease can only expire under repeated observation.
        """
        expired = time.monotonic() - self._seen_since_s >= LEASE_S
        seen = self._seen if expired else (b"", b"")
        verdict, *rest = self._call("take", *seen)
        if verdict == b"ok":
            self._beat_at_s = time.monotonic()
            return True
        if verdict == b"owned" and (rest[0], rest[1]) != self._seen:
            self._seen = (rest[0], rest[1])
            self._seen_since_s = time.monotonic()
        return False

    def beat(self) -> None:
        """Renew the lease; does nothing if it was renewed less than `BEAT_INTERVAL_S` ago.

        Raises FencedError if another process owns the role, JobLostError if Redis no longer holds the job.
        """
        if time.monotonic() - self._beat_at_s < BEAT_INTERVAL_S:
            return
        verdict = self._call("beat")[0]
        if verdict == b"none":
            raise JobLostError(f"Redis no longer holds the job of {self._keys.state}")
        if verdict != b"ok":
            raise FencedError(f"another process took over {self._role} of {self._keys.state}")
        self._beat_at_s = time.monotonic()

    def release(self) -> None:
        """Give the role up, so that a successor need not wait. Does nothing if another process owns it."""
        self._call("release")

    def _call(self, verb: str, *seen: bytes) -> list[bytes]:
        reply: list[bytes] = scripts.LEASE(
            self._client, [self._keys.state], [verb, self._role, self.token, *(seen or (b"", b""))]
        )
        return reply
