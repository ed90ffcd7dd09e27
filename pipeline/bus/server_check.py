"""Checks of a server before use (version, eviction policy, rights on channels) and explanations of error replies."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from pipeline.bus import scripts
from pipeline.bus.connection import LOST_CONNECTION, SOURCES_KEY, WORKER_PREFIX, Client, StreamKeys
from pipeline.errors import BusError
from pipeline.redaction import redact_secrets_of, redact_url

MIN_VERSION = (6, 2)

_STREAM_KEY_TYPES = {
    "state": "hash",
    "status": "hash",
    "frames": "stream",
    "detections": "stream",
    "results": "stream",
    "px": "string",
}
"""NAME of a key `ms:{ID}:NAME` or `ms:{ID}:NAME:…` -> its type"""


def check_server(client: Client, url: str) -> tuple[int, int]:
    """The version of the server, as (major, minor). Raises BusError in one line when the server cannot be used.

    The version comes from HELLO, which every user may call; INFO is in the category @dangerous. A server that evicts
    keys of a running job is refused.
    """
    try:
        reply = client.execute_command("HELLO")
    except redis.AuthenticationError:
        raise BusError(
            f"Redis at {redact_url(url)} refuses the credentials: put user and password into the URL; characters such "
            "as / # ? @ in a password are written as %2F %23 %3F %40"
        ) from None
    except redis.ResponseError as error:
        raise explained(client, url, error) from None
    except redis.RedisError as error:
        problem = redact_secrets_of(url, str(error)) or "no answer"
        raise BusError(
            f"no Redis at {redact_url(url)}: {problem}; start one there, give another --redis-url, "
            "or let `maskstream SOURCE` start one of its own by leaving the URL out"
        ) from None
    version_text = _text(_fields(reply).get("version", ""))
    match = re.match(r"(\d+)\.(\d+)", version_text)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < MIN_VERSION:
        raise BusError(
            f"Redis at {redact_url(url)} is version {version_text}: expected {MIN_VERSION[0]}.{MIN_VERSION[1]} or newer"
        )
    _refuse_eviction(client, url)
    return version


def denied_channels(client: Client, stream_ids: Iterable[str]) -> list[str]:
    """The channels of these streams on which the user may not publish; empty before Redis 7, which cannot tell."""
    denied: list[bytes] = scripts.DENIED_CHANNELS(client, [], [StreamKeys.of(name).channel for name in stream_ids])
    return [channel.decode() for channel in denied]


@contextmanager
def explained_errors(client: Client, url: str) -> Iterator[None]:
    """Convert an error reply of the server into a BusError of one line. Lost connections are not converted."""
    try:
        yield
    except LOST_CONNECTION:
        raise
    except redis.ResponseError as error:
        raise explained(client, url, error) from None


def explained(client: Client, url: str, error: redis.ResponseError) -> BusError:
    """The BusError for an error reply: its cause and what to do about it."""
    text, server = redact_secrets_of(url, str(error)), f"Redis at {redact_url(url)}"
    if "WRONGTYPE" in text and (line := _wrong_key(client)):
        return BusError(f"{server}: {line}")
    if "WRONGTYPE" in text:
        return BusError(
            f"{server}: a key named ms:… holds a value of another type than docs/contract.md says: remove it with "
            "redis-cli DEL KEY, or give another --stream-id; a user with the rights +scan and +type sees its name here"
        )
    denied = isinstance(error, redis.exceptions.NoPermissionError)
    if denied or re.search("NOPERM|can't (run|access)|No permission", text):
        return BusError(f"{server}: the user lacks a right ({text}); docs/contract.md lists the rights of each role")
    return BusError(f"{server} refuses: {text}")


def _wrong_key(client: Client) -> str:
    """A line about the first key whose type differs from the contract, and the cure; empty if none was found."""
    try:
        for key in client.scan_iter(match="ms:*", count=500):
            expected, actual = _expected_type(key.decode(errors="replace")), client.type(key).decode()
            if expected is not None and actual not in (expected, "none"):
                name = key.decode(errors="replace")
                return (
                    f"key {name} holds a {actual} where a {expected} is expected: another program wrote it; remove it "
                    f"with redis-cli DEL '{name}', or give another --stream-id"
                )
    except redis.RedisError:
        pass
    return ""


def _expected_type(key: str) -> str | None:
    if key == SOURCES_KEY:
        return "hash"
    if key.startswith(WORKER_PREFIX):
        return "string"
    match = re.fullmatch(r"ms:\{[^}]*\}:([a-z]+)(:.*)?", key)
    return _STREAM_KEY_TYPES.get(match[1]) if match else None


def _refuse_eviction(client: Client, url: str) -> None:
    """Raises BusError if the server has a memory limit at which it would evict keys.

    The policies volatile-… evict keys with a TTL: heartbeats, and the logs of ended jobs.
    """
    policy, limit_bytes = _memory_policy(client)
    if limit_bytes and policy not in ("", "noeviction"):
        raise BusError(
            f"Redis at {redact_url(url)} has maxmemory-policy {policy}: at its memory limit it would evict keys of a "
            "running job; expected noeviction: redis-cli CONFIG SET maxmemory-policy noeviction"
        )


def _memory_policy(client: Client) -> tuple[str, int]:
    """maxmemory-policy and maxmemory in bytes, from the first command that the user may call; else ("", 0)."""
    for command, names in (
        (("CONFIG", "GET", "maxmemory*"), ("maxmemory-policy", "maxmemory")),
        (("INFO", "memory"), ("maxmemory_policy", "maxmemory")),
    ):
        try:
            fields = _fields(client.execute_command(*command))
        except redis.ResponseError:
            continue
        return _text(fields.get(names[0], "")), int(_text(fields.get(names[1], 0)) or 0)
    return "", 0


def _fields(reply: Any) -> dict[str, Any]:
    """The names and values of a reply, which the client returns as a dictionary or as a flat list."""
    if isinstance(reply, dict):
        return {_text(name): value for name, value in reply.items()}
    return {_text(name): value for name, value in zip(reply[::2], reply[1::2], strict=False)}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
