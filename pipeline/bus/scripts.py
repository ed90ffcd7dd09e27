"""The Lua scripts that implement the rules of the contract (docs/contract.md)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import redis

from pipeline.bus.connection import Client

_FOLDER = Path(__file__).parent
_COMMON = (_FOLDER / "common.lua").read_text(encoding="utf-8")


class Script:
    """A Lua script, called by its SHA-1 digest and loaded into a server that does not know it (EVAL after NOSCRIPT)."""

    def __init__(self, name: str) -> None:
        self.text = _COMMON + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        self._sha1 = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Client, keys: list[str], args: list[Any]) -> Any:
        """Run the script and return its reply."""
        try:
            try:
                return client.evalsha(self._sha1, len(keys), *keys, *args)
            except redis.exceptions.NoScriptError:
                return client.eval(self.text, len(keys), *keys, *args)
        except redis.ResponseError as error:
            raise _typed(error) from None

    def set_and_call(
        self, client: Client, key: str, value: bytes | memoryview, keys: list[str], args: list[Any]
    ) -> Any:
        """SET `key` and run the script, in one round trip; returns the script's reply.

        The script runs even if Redis refused the SET, so it must check that `key` exists. The error of the SET, or else
        the error of the script, is raised.
        """
        pipe = client.pipeline(transaction=False)
        pipe.set(key, value)
        pipe.evalsha(self._sha1, len(keys), *keys, *args)
        stored, reply = pipe.execute(raise_on_error=False)
        if isinstance(stored, Exception):
            raise stored
        if isinstance(reply, redis.exceptions.NoScriptError):
            return self(client, keys, args)
        if isinstance(reply, redis.ResponseError):
            raise _typed(reply)
        if isinstance(reply, Exception):
            raise reply
        return reply


def _typed(error: redis.ResponseError) -> redis.ResponseError:
    """The error of a script as redis-py raises it for a plain command.

    Redis 6.2 puts a text of its own before the error of a command inside a script, where redis-py finds no error code.
    """
    return redis.exceptions.ReadOnlyError(str(error)) if "-READONLY " in str(error) else error


BEGIN_JOB = Script("begin_job")
LEASE = Script("lease")
OPEN = Script("open")
OFFER = Script("offer")
DELIVER = Script("deliver")
COMMIT = Script("commit")
CLAIM = Script("claim")
ADD_SINK = Script("add_sink")
PUT = Script("put")
HEARTBEAT = Script("heartbeat")
REPORT_POSITION = Script("report_position")
FINISH_JOB = Script("finish_job")
DENIED_CHANNELS = Script("denied_channels")
