"""Who may write: one owner per role and stream, found without trusting any clock but one's own."""

from __future__ import annotations

import secrets
import time
from typing import Literal

from pipeline.bus import scripts
from pipeline.bus.connection import Client, StreamKeys
from pipeline.errors import FencedError, JobLostError

LEASE_S = 3.0
"""an owner whose beat stands still for so long is taken for dead"""
BEAT_INTERVAL_S = LEASE_S / 4

Role = Literal["decode", "track"]


class Lease:
    """One process' claim to one role of one stream.

    An owner beats (most of its writes do it for it). A candidate that saw owner and beat unchanged for `LEASE_S` takes
    the token over by compare-and-set, so two candidates cannot both win and a changed server clock means nothing.
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
        """Take the role if nobody has it, or if its owner stood still long enough. Else False: call again later."""
        stood_still = time.monotonic() - self._seen_since_s >= LEASE_S
        seen = self._seen if stood_still else (b"", b"")
        verdict, *rest = self._call("take", *seen)
        if verdict == b"ok":
            self._beat_at_s = time.monotonic()
            return True
        if verdict == b"owned" and (rest[0], rest[1]) != self._seen:
            self._seen = (rest[0], rest[1])
            self._seen_since_s = time.monotonic()
        return False

    def beat(self) -> None:
        """Tell that the owner is alive, at most every `BEAT_INTERVAL_S`.

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
        """Give the role back, so that a successor need not wait. Harmless when it is not ours."""
        self._call("release")

    def _call(self, verb: str, *seen: bytes) -> list[bytes]:
        reply: list[bytes] = scripts.LEASE(
            self._client, [self._keys.state], [verb, self._role, self.token, *(seen or (b"", b""))]
        )
        return reply
