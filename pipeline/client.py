"""Subscribing to result logs.

    for result in subscribe("redis://localhost", "cam1"):
        print(result.frame_seq, result)

    async for result in subscribe_async("redis://localhost", "cam1", "cam2", start="start"):
        ...

Both read the durable log, so nothing is missed or repeated, whatever happens to the connection or the server. More in
docs/subscribing.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff

from pipeline.bus import redact_url
from pipeline.bus.connection import CONNECT_TIMEOUT_S, REPLY_TIMEOUT_S, connect
from pipeline.bus.log_cursor import LogCursor, Start
from pipeline.contract.results import AnyResult
from pipeline.errors import BusError


def subscribe(
    url: str,
    *streams: str,
    start: Start = "now",
    reader: str | None = None,
    wait_s: float | None = None,
    timeout_s: float | None = None,
) -> Generator[AnyResult, None, None]:
    """The result messages of some streams, each stream's in order, until every one of them has ended.

    url        redis://, rediss:// or unix://
    start      "now": what comes from here on, of a stream that has no log yet everything; "start": from the first
               message kept; a number SEQ: I have seen frame SEQ, go on behind it; "SEQ-N": and also N companions of it
    reader     a name from the job's `readers`: the log keeps every message until this subscriber has asked for the next
    wait_s     seconds after which a stream that has no log is given up; default never
    timeout_s  seconds after which a server that cannot be reached is given up; default never

    A stream whose log is replaced by a new job's goes on at the beginning of that: another `log_id`, numbers from 1.
    Raises UsageError at once for arguments that mean nothing; BusError while reading.
    """
    cursor = LogCursor(
        *streams, start=start, reader=reader, wait_s=wait_s, timeout_s=timeout_s, server=f"Redis at {redact_url(url)}"
    )
    return read_log(connect(url), cursor)


def subscribe_async(
    url: str,
    *streams: str,
    start: Start = "now",
    reader: str | None = None,
    wait_s: float | None = None,
    timeout_s: float | None = None,
) -> AsyncGenerator[AnyResult, None]:
    """The same as `subscribe`, for `async for`."""
    cursor = LogCursor(
        *streams, start=start, reader=reader, wait_s=wait_s, timeout_s=timeout_s, server=f"Redis at {redact_url(url)}"
    )
    return _read_async(_connect_async(url), cursor)


def read_log(
    client: Any, cursor: LogCursor, check: Callable[[], None] = lambda: None
) -> Generator[AnyResult, None, None]:
    """Drive a cursor over a connection, which is closed in the end.

    `check` is called before every command, so at least about once a second; it raises to end the reading.
    """
    try:
        while (command := cursor.next_command(time.monotonic())) is not None:
            check()
            try:
                reply = client.execute_command(*command)
            except redis.RedisError as error:
                time.sleep(cursor.retry_delay_s(error, time.monotonic()))
                continue
            for entry in cursor.parse_reply(reply, time.monotonic()):
                yield entry.message
                cursor.acknowledge(entry)
    finally:
        with contextlib.suppress(redis.RedisError):
            for command in cursor.closing_commands():
                client.execute_command(*command)
        client.close()


async def _read_async(client: Any, cursor: LogCursor) -> AsyncGenerator[AnyResult, None]:
    try:
        while (command := cursor.next_command(time.monotonic())) is not None:
            try:
                reply = await client.execute_command(*command)
            except redis.RedisError as error:
                await asyncio.sleep(cursor.retry_delay_s(error, time.monotonic()))
                continue
            for entry in cursor.parse_reply(reply, time.monotonic()):
                yield entry.message
                cursor.acknowledge(entry)
    finally:
        with contextlib.suppress(redis.RedisError):
            for command in cursor.closing_commands():
                await client.execute_command(*command)
        await client.aclose()


def _connect_async(url: str) -> Any:
    try:
        return redis.asyncio.Redis.from_url(
            url,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=REPLY_TIMEOUT_S,
            retry=AsyncRetry(NoBackoff(), 0),
            protocol=2,
        )
    except ValueError as error:
        raise BusError(f"Redis URL {redact_url(url)!r}: expected redis://, rediss:// or unix://; {error}") from None
