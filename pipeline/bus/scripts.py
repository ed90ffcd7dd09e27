"""The Lua scripts: each rule of the contract stands in one of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import redis

from pipeline.bus.connection import Client

_FOLDER = Path(__file__).parent
_COMMON = (_FOLDER / "common.lua").read_text(encoding="utf-8")


class Script:
    """One script, called by its digest; loaded into the server when it does not know it (a fresh or restarted one)."""

    def __init__(self, name: str) -> None:
        self._text = _COMMON + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        self._digest = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, client: Client, keys: list[str], args: list[Any]) -> Any:
        """The script's reply."""
        try:
            return client.evalsha(self._digest, len(keys), *keys, *args)
        except redis.exceptions.NoScriptError:
            return client.eval(self._text, len(keys), *keys, *args)

    def after_set(self, client: Client, key: str, value: bytes | memoryview, keys: list[str], args: list[Any]) -> Any:
        """SET `key`, then the script, in one round trip; the script's reply.

        The script runs even where SET was refused, so it has to look for the key. What SET raised is raised.
        """
        pipe = client.pipeline(transaction=False)
        pipe.set(key, value)
        pipe.evalsha(self._digest, len(keys), *keys, *args)
        stored, reply = pipe.execute(raise_on_error=False)
        if isinstance(stored, Exception):
            raise stored
        if isinstance(reply, redis.exceptions.NoScriptError):
            return self(client, keys, args)
        if isinstance(reply, Exception):
            raise reply
        return reply


BEGIN = Script("begin")
LEASE = Script("lease")
OPEN = Script("open")
OFFER = Script("offer")
DELIVER = Script("deliver")
COMMIT = Script("commit")
CLAIM = Script("claim")
ADD_SINK = Script("add_sink")
PUT = Script("put")
HEARTBEAT = Script("heartbeat")
FINISH = Script("finish")
