"""Subscribe to the result logs of streams.

    for result in subscribe("redis://localhost", "cam1"):
        print(result.frame_seq, result)

    async for result in subscribe_async("redis://localhost", "cam1", "cam2", start="start"):
        ...

Both functions read the durable log, so a lost connection or a restarted server loses and repeats no message.
docs/subscribing.md describes the messages.
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

from pipeline.bus.connection import CONNECT_TIMEOUT_S, EXPECTED_URL, REPLY_TIMEOUT_S, connect
from pipeline.bus.log_cursor import LogCursor
from pipeline.bus.log_entry import Start
from pipeline.contract.results import AnyResult
from pipeline.errors import BusError
from pipeline.redaction import redact_url


def subscribe(
    url: str,
    *streams: str,
    start: Start = "now",
    reader: str | None = None,
    wait_s: float | None = None,
    timeout_s: float | None = None,
) -> Generator[AnyResult, None, None]:
    """Yield the result messages of one or more streams until every stream has ended.

    The messages of one stream come in order, each once.

    url        redis://, rediss:// or unix://
    streams    stream ids
    start      "now": messages committed from now on, or all messages of a stream that has no log yet; "start": all
               messages in the log; SEQ: messages after the frame or gap SEQ; "SEQ-N": messages after the entry SEQ-N
    reader     name from the job's `readers`: the log keeps every message until this subscriber requests the next one
    wait_s     seconds to wait for a stream that has no log yet; None: no limit
    timeout_s  seconds to wait for a server that cannot be reached; None: no limit

    A stream that has no log yet is reported once, as a warning of the logger `pipeline.bus.log_cursor`. If a new job
    replaces the log, the iteration continues at the beginning of the new log, whose messages have another `log_id`.

    Raises UsageError at once for an invalid argument, and BusError while reading.
    """
    cursor = LogCursor(
        *streams,
        start=start,
        reader=reader,
        wait_s=wait_s,
        timeout_s=timeout_s,
        server=f"Redis at {redact_url(url)}",
        announce_missing=True,
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
    """`subscribe` for `async for`: the same arguments, messages and exceptions."""
    cursor = LogCursor(
        *streams,
        start=start,
        reader=reader,
        wait_s=wait_s,
        timeout_s=timeout_s,
        server=f"Redis at {redact_url(url)}",
        announce_missing=True,
    )
    return _read_async(_connect_async(url), cursor)


def read_log(
    client: Any, cursor: LogCursor, check: Callable[[], None] = lambda: None
) -> Generator[AnyResult, None, None]:
    """Yield the messages that `cursor` reads over `client`, and close `client` at the end.

    `check` is called before every command, which is at least about once a second. It can raise to stop the reading.
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
    except (ValueError, TypeError):
        # the library's own text may quote parts of a password
        raise BusError(f"Redis URL {redact_url(url)!r}: {EXPECTED_URL}") from None
