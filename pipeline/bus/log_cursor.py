"""A reader of result logs that does no input or output: it yields Redis commands and parses their replies.

`client.subscribe`, `client.subscribe_async` and the sink worker drive the same `LogCursor`. The driver sends each
command and passes the reply back:

    while (command := cursor.next_command(time.monotonic())) is not None:
        try:
            reply = client.execute_command(*command)
        except redis.RedisError as error:
            time.sleep(cursor.retry_delay_s(error, time.monotonic()))
            continue
        for entry in cursor.parse_reply(reply, time.monotonic()):
            …                             # process the entry
            cursor.acknowledge(entry)

A log can disappear, be replaced by the log of a new job, or lose its latest entries when its server restarts. The
cursor therefore reads the newest entry of a log that sent nothing for one second, and of every log after a lost
connection. A log with another `log_id` is read from its beginning. If the same log lost entries, the job commits them
again under the same ids; the cursor yields an id at most once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import redis

from pipeline.backoff import Backoff
from pipeline.bus import LOST_CONNECTION, StreamKeys
from pipeline.bus.log_entry import EntryId, LogEntry, Start, decode_entry, parse_start
from pipeline.bus.scripts import REPORT_POSITION
from pipeline.contract.config import check_stream_id
from pipeline.contract.results import EndResult
from pipeline.errors import BusError, UsageError

Command: TypeAlias = tuple[str | int, ...]

BLOCK_S = 1.0
"""maximum time a read blocks; also the time without an entry after which the newest entry of a log is checked"""
REPORT_INTERVAL_S = 0.5
"""minimum time between two reports of a required reader's position"""
SCAN_COUNT = 5000
"""number of keys that one SCAN looks at"""
READ_COUNT = 64
"""maximum number of entries in one reply, over all streams; an entry with masks has about 10 KB, at most 100 KB"""
FIRST_RETRY_S, LONGEST_RETRY_S = 0.05, 2.0
MISSING_NOTICE_S = 2.0
"""time after which a stream without a log is reported"""

_STREAM_KEY = re.compile(rb"ms:\{([^{}]+)\}:(?:state|results)")
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _StreamPosition:
    """The position of the cursor in the log of one stream."""

    stream_id: str
    keys: StreamKeys
    last_id: EntryId | None
    """id of the last entry read; None: start after the newest entry, whose id is not known yet"""
    log_id: str | None = None
    """the log being read; None while unknown"""
    replaced_log_ids: set[str] = field(default_factory=set)
    """logs that a newer log has replaced"""
    ended: bool = False
    exists: bool = False
    """whether an entry of this stream was ever read"""
    check_newest_at_s: float = float("-inf")
    missing_since_s: float | None = None
    """time of the first reply without a log; None before"""
    acknowledged_seq: int = 0
    read_seq: int = 0
    """highest number whose frame and followers have all been acknowledged"""
    reported_seq: int = 0
    """the `read_seq` that was last sent to Redis"""

    def restart(self) -> None:
        """Move to the beginning of the log that replaced this one."""
        if self.log_id is not None:
            self.replaced_log_ids.add(self.log_id)
        self.log_id = None
        self.last_id = (0, 0)
        self.acknowledged_seq = self.read_seq = self.reported_seq = 0


class LogCursor:
    """A position in the result logs of one or more streams. The module's docstring shows how to drive it."""

    def __init__(
        self,
        *streams: str,
        start: Start = "now",
        reader: str | None = None,
        wait_s: float | None = None,
        timeout_s: float | None = None,
        server: str = "Redis",
        announce_missing: bool = False,
    ) -> None:
        """
        streams    stream ids; a repeated id is read once
        start      "now": entries committed from now on, or all entries of a stream that has no log yet; "start": all
                   entries in the log; SEQ (int or str): entries after `SEQ-0`; "SEQ-N": entries after `SEQ-N`
        reader     name of the required reader whose position is reported to Redis; None: report nothing
        wait_s     seconds to wait for a stream that has no log; None: no limit
        timeout_s  seconds to wait for a server that cannot be reached; None: no limit
        server     name of the server in error texts, without credentials
        announce_missing  log one warning with the known streams if a stream has no log for MISSING_NOTICE_S

        Raises UsageError for an invalid argument.
        """
        if not streams:
            raise UsageError("no stream to subscribe to: give at least one stream id")
        last_id = parse_start(start)
        self._positions = [
            _StreamPosition(stream_id, StreamKeys.of(check_stream_id(stream_id)), last_id)
            for stream_id in dict.fromkeys(streams)
        ]
        self._reader = reader
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._server = server
        self._keys_read: list[str] = []
        """the logs that the last command reads"""
        self._parse: Callable[[Any, float], Iterator[LogEntry]] | None = None
        self._report_at_s = float("-inf")
        self._lost_since_s: float | None = None
        self._backoff = Backoff(FIRST_RETRY_S, LONGEST_RETRY_S)
        self._scan_cursor = 0 if announce_missing else None
        """where the next SCAN for known streams continues; None once the missing streams were reported"""
        self._known_streams: set[str] = set()

    def resume(self, stream_id: str, log_id: str, last_id: EntryId) -> None:
        """Continue after the entry `last_id` of the log `log_id`, instead of at `start`."""
        position = self._position(stream_id)
        position.log_id, position.last_id, position.exists = log_id, last_id, True

    def next_command(self, now_s: float) -> Command | None:
        """The next command to send, or None once every stream has ended. `now_s` is monotonic time."""
        reading = [position for position in self._positions if not position.ended]
        report = self._report(now_s, everything=not reading)
        if report is not None:
            return report
        if not reading:
            return None
        if self._scan_cursor is not None and self._missing_streams(now_s - MISSING_NOTICE_S):
            self._parse = self._parse_scan
            return ("SCAN", self._scan_cursor, "MATCH", "ms:{*}:*", "COUNT", SCAN_COUNT)
        for position in reading:
            if position.check_newest_at_s <= now_s:
                self._parse = partial(self._parse_newest, position)
                self._keys_read = [position.keys.results]
                return ("XREVRANGE", position.keys.results, "+", "-", "COUNT", 1)
        self._parse = self._parse_entries
        block_s = min(position.check_newest_at_s for position in reading) - now_s
        block_ms = max(1, int(1000 * min(block_s, BLOCK_S)))
        count = max(1, READ_COUNT // len(reading))
        keys = self._keys_read = [position.keys.results for position in reading]
        ids = [_id_text(position.last_id or (0, 0)) for position in reading]
        return ("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *keys, *ids)

    def parse_reply(self, reply: Any, now_s: float) -> Iterator[LogEntry]:
        """Yield the entries in the reply to the last command, in order.

        The iterator must be exhausted before the next command. Raises BusError for an entry that is not a message of a
        known schema, and for a stream that has no log after `wait_s`.
        """
        self._lost_since_s = None
        self._backoff.reset()
        return self._parse(reply, now_s) if self._parse else iter(())

    def acknowledge(self, entry: LogEntry) -> None:
        """Mark an entry as processed: the log may drop it.

        A number counts as read once an entry of a higher number, or the end message, is acknowledged, because the same
        number may have further followers.
        """
        position = self._position(entry.message.stream_id)
        if isinstance(entry.message, EndResult):
            position.read_seq = entry.entry_id[0]
        elif entry.entry_id[0] > position.acknowledged_seq:
            position.read_seq = position.acknowledged_seq
        position.acknowledged_seq = entry.entry_id[0]

    def closing_commands(self) -> list[Command]:
        """Commands to send before the cursor is abandoned; their replies can be ignored."""
        if self._lost_since_s is not None:
            return []
        return list(iter(partial(self._report, float("inf"), everything=True), None))

    def retry_delay_s(self, error: redis.RedisError, now_s: float) -> float:
        """Record that the last command failed and return the seconds to wait before the next one.

        Raises BusError if a retry cannot help, or if the server was away for `timeout_s`.
        """
        if isinstance(error, redis.AuthenticationError):
            raise BusError(f"{self._server} refuses the credentials: put user and password into the URL") from None
        if "WRONGTYPE" in str(error):
            keys = [f"'{key}'" for key in self._keys_read]
            raise BusError(
                f"{self._server}: expected a stream in {' and '.join(keys)}, found another type: another program wrote "
                f"the key; remove it with redis-cli DEL {' or '.join(keys)}, or give another --stream-id"
            ) from None
        if isinstance(error, redis.exceptions.NoPermissionError) and self._parse == self._parse_scan:
            self._announce_missing(now_s, "the known streams cannot be listed without the right to SCAN")
            return 0.0
        if not isinstance(error, LOST_CONNECTION):
            raise BusError(f"{self._server} refuses: {error}") from None
        if self._lost_since_s is None:
            self._lost_since_s = now_s
            _log.warning("%s: %s; trying again", self._server, error)
        if self._timeout_s is not None and now_s - self._lost_since_s >= self._timeout_s:
            raise BusError(
                f"no answer from {self._server} for {self._timeout_s:g} s: {error}; check that it runs and its address"
            ) from None
        for position in self._positions:
            position.check_newest_at_s = float("-inf")
            position.reported_seq = 0
        return self._backoff.next_s()

    def _position(self, stream_id: str) -> _StreamPosition:
        return next(position for position in self._positions if position.stream_id == stream_id)

    def _report(self, now_s: float, *, everything: bool) -> Command | None:
        """The next command that reports the position of the required reader; None if no report is due."""
        if self._reader is None or (now_s < self._report_at_s and not everything):
            return None
        for position in self._positions:
            if position.read_seq > position.reported_seq and position.log_id is not None:
                position.reported_seq = position.read_seq
                self._parse = None
                arguments = (position.log_id, f"sink:{self._reader}", position.read_seq)
                return ("EVAL", REPORT_POSITION.text, 1, position.keys.state, *arguments)
        self._report_at_s = now_s + REPORT_INTERVAL_S
        return None

    def _parse_entries(self, reply: Any, now_s: float) -> Iterator[LogEntry]:
        """Parse a reply to XREAD."""
        for key, entries in reply or []:
            position = next(position for position in self._positions if position.keys.results == key.decode())
            for raw_id, fields in entries:
                entry = self._entry(position, raw_id, fields)
                position.check_newest_at_s = now_s + BLOCK_S
                if entry.message.log_id in position.replaced_log_ids:
                    position.last_id = entry.entry_id
                    continue
                if position.log_id not in (None, entry.message.log_id):
                    position.restart()
                    break
                position.log_id, position.last_id = entry.message.log_id, entry.entry_id
                position.ended = isinstance(entry.message, EndResult)
                yield entry
                if position.ended:
                    break

    def _parse_newest(self, position: _StreamPosition, reply: Any, now_s: float) -> Iterator[LogEntry]:
        """Parse a reply to XREVRANGE, which shows whether the log was replaced or lost entries."""
        position.check_newest_at_s = now_s + BLOCK_S
        if not reply:
            self._note_missing_log(position, now_s)
            return
        newest = self._entry(position, *reply[0])
        is_end = isinstance(newest.message, EndResult)
        if position.last_id is None:
            position.last_id, position.log_id = newest.entry_id, newest.message.log_id
        elif position.log_id is None:
            position.ended = is_end and newest.entry_id == position.last_id
            if newest.entry_id < position.last_id:
                position.restart()
        elif newest.message.log_id != position.log_id:
            if newest.message.log_id not in position.replaced_log_ids:
                position.restart()
        elif is_end and newest.entry_id < position.last_id:
            # the log lost entries, and its job ended before it reached `last_id` again
            position.ended = True
            yield newest

    def _note_missing_log(self, position: _StreamPosition, now_s: float) -> None:
        """Handle a stream without a log. Raises BusError if it never had one for `wait_s`."""
        if position.log_id is None:
            position.last_id = (0, 0)
        if position.missing_since_s is None:
            position.missing_since_s = now_s
        if position.exists or self._wait_s is None:
            return
        position.check_newest_at_s = min(position.check_newest_at_s, position.missing_since_s + self._wait_s)
        if now_s - position.missing_since_s >= self._wait_s:
            raise BusError(
                f"no results of stream {position.stream_id!r} on {self._server} after {self._wait_s:g} s: "
                "check the stream id and that its job runs (maskstream status)"
            )

    def _missing_streams(self, since_s: float) -> list[str]:
        """Ids of the streams that have had no log since `since_s` or longer."""
        return [
            position.stream_id
            for position in self._positions
            if not position.exists and position.missing_since_s is not None and position.missing_since_s <= since_s
        ]

    def _parse_scan(self, reply: Any, now_s: float) -> Iterator[LogEntry]:
        """Parse a reply to SCAN; the last one of an iteration reports the missing streams."""
        self._scan_cursor, keys = int(reply[0]), reply[1]
        self._known_streams.update(match[1].decode() for key in keys if (match := _STREAM_KEY.fullmatch(key)))
        if self._scan_cursor == 0:
            known = ", ".join(sorted(self._known_streams))
            self._announce_missing(now_s, f"known streams: {known}" if known else "no stream is known there")
        return iter(())

    def _announce_missing(self, now_s: float, known: str) -> None:
        self._scan_cursor = None
        if missing := self._missing_streams(now_s):
            _log.warning("waiting for stream %s: no results yet on %s; %s", ", ".join(missing), self._server, known)

    def _entry(self, position: _StreamPosition, raw_id: bytes, fields: dict[bytes, bytes]) -> LogEntry:
        position.exists = True
        return decode_entry(raw_id, fields, position.keys.results, self._server)


def _id_text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
