"""Reading result logs without doing any input or output: what to ask Redis next, and what its answer means.

One core for every reader: `client.subscribe`, its asynchronous twin, sinks. A driver sends each command and hands the
reply back:

    while (command := cursor.next_command(time.monotonic())) is not None:
        try:
            reply = client.execute_command(*command)
        except redis.RedisError as error:
            time.sleep(cursor.failed(error, time.monotonic()))
            continue
        for entry in cursor.digest(reply, time.monotonic()):
            …                        # do what is to be done with the entry
            cursor.done(entry)

A log can vanish, be replaced by a new job's, or fall back in time with its server. So the cursor looks at the newest
entry of a log that was silent for a second, and of every log after a lost connection. Another log than before is read
from its beginning. The same log behind the cursor's position comes again under the same numbers: what was given out is
not given out again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import msgspec
import redis

from pipeline.bus import LOST_CONNECTION, StreamKeys
from pipeline.contract.config import check_stream_id
from pipeline.contract.results import SCHEMA_VERSION, AnyResult, EndResult, decode_result
from pipeline.errors import BusError, UsageError

EntryId: TypeAlias = tuple[int, int]
"""(frame_seq, n) of an entry: its id in Redis is `frame_seq-n`"""
Start: TypeAlias = Literal["now", "start"] | int | str
Command: TypeAlias = tuple[str | int, ...]

BLOCK_S = 1.0
"""longest wait for a reply, and after so long without an entry a log is looked at"""
TELL_EVERY_S = 0.5
READ_COUNT = 64
"""entries of all streams together in one reply; with masks an entry is some 10 KB, at worst some 100 KB"""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0

# Taking the field away first frees memory, so that a full server accepts the rest: this word lets it drop entries.
_TELL_POSITION = """
if redis.call('HGET', KEYS[1], 'log_id') ~= ARGV[1] or redis.call('HDEL', KEYS[1], ARGV[2]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
"""
_ENTRY_ID = re.compile(r"(\d+)(?:-(\d+))?")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One message of a log, with its id and the JSON as it was committed."""

    entry_id: EntryId
    payload: bytes
    message: AnyResult


@dataclass(slots=True)
class _Place:
    """Where the cursor stands in one stream's log.

    last_id    of the last entry read; None: at the newest entry, whichever that is
    log_id     of the log being read; None: not known yet
    replaced   ids of logs that were left for a newer one
    """

    stream_id: str
    keys: StreamKeys
    last_id: EntryId | None
    log_id: str | None = None
    replaced: set[str] = field(default_factory=set)
    ended: bool = False
    exists: bool = False
    look_at_s: float = float("-inf")
    wanted_since_s: float | None = None
    done_seq: int = 0
    read_seq: int = 0
    told_seq: int = 0

    def restart(self) -> None:
        """Go to the beginning of the log that took the place of this one."""
        if self.log_id is not None:
            self.replaced.add(self.log_id)
        self.log_id = None
        self.last_id = (0, 0)
        self.done_seq = self.read_seq = self.told_seq = 0


class LogCursor:
    """A position in the logs of some streams; see the module's text for how it is driven."""

    def __init__(
        self,
        *streams: str,
        start: Start = "now",
        reader: str | None = None,
        wait_s: float | None = None,
        timeout_s: float | None = None,
        server: str = "Redis",
    ) -> None:
        """
        start      "now": what is committed from here on, of a stream without a log everything; "start": from the first
                   entry kept; a number or "SEQ": what follows `SEQ-0`; "SEQ-N": what follows that entry
        reader     name under which the log is told how far it was read, where it waits for that reader
        wait_s     how long a stream without any log is waited for; None: for ever
        timeout_s  how long a server that is away is waited for; None: for ever
        server     the server's address without its password, for error texts

        Raises UsageError for arguments that mean nothing.
        """
        if not streams:
            raise UsageError("no stream to subscribe to: give at least one stream id")
        position = _parse_start(start)
        self._places = [
            _Place(stream_id, StreamKeys.of(check_stream_id(stream_id)), position)
            for stream_id in dict.fromkeys(streams)
        ]
        self._reader = reader
        self._wait_s = wait_s
        self._timeout_s = timeout_s
        self._server = server
        self._digest: Callable[[Any, float], Iterator[LogEntry]] | None = None
        self._tell_at_s = float("-inf")
        self._lost_since_s: float | None = None
        self._pause_s = FIRST_PAUSE_S

    def resume(self, stream_id: str, log_id: str, last_id: EntryId) -> None:
        """Go on behind an entry of a log that is known, instead of at `start`."""
        place = self._place(stream_id)
        place.log_id, place.last_id, place.exists = log_id, last_id, True

    def next_command(self, now_s: float) -> Command | None:
        """What to send next; None once every stream has ended. `now_s` is monotonic time in seconds."""
        reading = [place for place in self._places if not place.ended]
        told = self._tell(now_s, everything=not reading)
        if told is not None:
            return told
        if not reading:
            return None
        for place in reading:
            if place.look_at_s <= now_s:
                self._digest = partial(self._digest_newest, place)
                return ("XREVRANGE", place.keys.results, "+", "-", "COUNT", 1)
        self._digest = self._digest_read
        block_s = min(place.look_at_s for place in reading) - now_s
        block_ms = max(1, int(1000 * min(block_s, BLOCK_S)))
        count = max(1, READ_COUNT // len(reading))
        keys = [place.keys.results for place in reading]
        ids = [_id_text(place.last_id or (0, 0)) for place in reading]
        return ("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *keys, *ids)

    def digest(self, reply: Any, now_s: float) -> Iterator[LogEntry]:
        """The entries in the reply to the last command, in order. To be used up before the next command.

        Raises BusError for entries that are not messages of our schema, and for a stream that did not appear in time.
        """
        self._lost_since_s = None
        self._pause_s = FIRST_PAUSE_S
        return self._digest(reply, now_s) if self._digest else iter(())

    def done(self, entry: LogEntry) -> None:
        """The entry needs not be kept for this reader. A number counts as read when its companions are, too."""
        place = self._place(entry.message.stream_id)
        if isinstance(entry.message, EndResult):
            place.read_seq = entry.entry_id[0]
        elif entry.entry_id[0] > place.done_seq:
            place.read_seq = place.done_seq
        place.done_seq = entry.entry_id[0]

    def last_words(self) -> list[Command]:
        """What to send before leaving early, replies unread."""
        if self._lost_since_s is not None:
            return []
        return list(iter(partial(self._tell, float("inf"), everything=True), None))

    def failed(self, error: redis.RedisError, now_s: float) -> float:
        """Seconds to wait before the next command, after one that failed. Raises BusError where there is none."""
        if isinstance(error, redis.AuthenticationError):
            raise BusError(
                f"{self._server} refuses the credentials: {error}; put user and password into the URL"
            ) from None
        if not isinstance(error, LOST_CONNECTION):
            raise BusError(f"{self._server} refuses: {error}") from None
        if self._lost_since_s is None:
            self._lost_since_s = now_s
            _log.warning("%s: %s; trying again", self._server, error)
        if self._timeout_s is not None and now_s - self._lost_since_s >= self._timeout_s:
            raise BusError(
                f"no answer from {self._server} for {self._timeout_s:g} s: {error}; check that it runs and its address"
            ) from None
        for place in self._places:
            place.look_at_s = float("-inf")
            place.told_seq = 0
        pause_s = self._pause_s
        self._pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        return pause_s

    def _place(self, stream_id: str) -> _Place:
        return next(place for place in self._places if place.stream_id == stream_id)

    def _tell(self, now_s: float, *, everything: bool) -> Command | None:
        """The next command that says how far a log was read, where that is due."""
        if self._reader is None or (now_s < self._tell_at_s and not everything):
            return None
        for place in self._places:
            if place.read_seq > place.told_seq and place.log_id is not None:
                place.told_seq = place.read_seq
                self._digest = None
                return (
                    "EVAL",
                    _TELL_POSITION,
                    1,
                    place.keys.state,
                    place.log_id,
                    f"sink:{self._reader}",
                    place.read_seq,
                )
        self._tell_at_s = now_s + TELL_EVERY_S
        return None

    def _digest_read(self, reply: Any, now_s: float) -> Iterator[LogEntry]:
        for key, entries in reply or []:
            place = next(place for place in self._places if place.keys.results == key.decode())
            for raw_id, fields in entries:
                entry = self._entry(place, raw_id, fields)
                place.look_at_s = now_s + BLOCK_S
                if entry.message.log_id in place.replaced:
                    place.last_id = entry.entry_id
                    continue
                if place.log_id not in (None, entry.message.log_id):
                    place.restart()
                    break
                place.log_id, place.last_id = entry.message.log_id, entry.entry_id
                place.ended = isinstance(entry.message, EndResult)
                yield entry
                if place.ended:
                    break

    def _digest_newest(self, place: _Place, reply: Any, now_s: float) -> Iterator[LogEntry]:
        place.look_at_s = now_s + BLOCK_S
        if not reply:
            self._digest_no_log(place, now_s)
            return
        newest = self._entry(place, *reply[0])
        is_end = isinstance(newest.message, EndResult)
        if place.last_id is None:
            place.last_id, place.log_id = newest.entry_id, newest.message.log_id
        elif place.log_id is None:
            place.ended = is_end and newest.entry_id == place.last_id
            if newest.entry_id < place.last_id:
                place.restart()
        elif newest.message.log_id != place.log_id:
            if newest.message.log_id not in place.replaced:
                place.restart()
        elif is_end and newest.entry_id < place.last_id:
            # the log fell back in time, and its job ended before it came here again
            place.ended = True
            yield newest

    def _digest_no_log(self, place: _Place, now_s: float) -> None:
        if place.log_id is None:
            place.last_id = (0, 0)
        if place.exists or self._wait_s is None:
            return
        if place.wanted_since_s is None:
            place.wanted_since_s = now_s
        place.look_at_s = min(place.look_at_s, place.wanted_since_s + self._wait_s)
        if now_s - place.wanted_since_s >= self._wait_s:
            raise BusError(
                f"no results of stream {place.stream_id!r} on {self._server} after {self._wait_s:g} s: "
                "check the stream id and that its job runs (maskstream status)"
            )

    def _entry(self, place: _Place, raw_id: bytes, fields: dict[bytes, bytes]) -> LogEntry:
        seq, _, index = raw_id.decode().partition("-")
        place.exists = True
        payload = fields.get(b"j", b"")
        try:
            message = decode_result(payload)
        except msgspec.DecodeError as error:
            self._refuse_newer(place, _schema_of(payload))
            raise BusError(
                f"entry {seq}-{index} of {place.keys.results} on {self._server} is not a result: {error}"
            ) from None
        self._refuse_newer(place, message.schema)
        return LogEntry((int(seq), int(index)), payload, message)

    def _refuse_newer(self, place: _Place, schema: int) -> None:
        if schema > SCHEMA_VERSION:
            raise BusError(
                f"stream {place.stream_id!r} on {self._server} is written in result schema {schema}, this program "
                f"reads {SCHEMA_VERSION}: install a newer maskstream"
            )


class _SchemaOnly(msgspec.Struct):
    schema: int = 0


def _schema_of(payload: bytes) -> int:
    """What a message that could not be read says of its schema; 0 when not even that can be read."""
    try:
        return msgspec.json.decode(payload, type=_SchemaOnly).schema
    except msgspec.DecodeError:
        return 0


def _parse_start(start: Start) -> EntryId | None:
    if start == "now":
        return None
    if start == "start":
        return (0, 0)
    match = _ENTRY_ID.fullmatch(str(start))
    if match is None:
        raise UsageError(f"start {start!r}: expected now, start, a frame number, or the id of an entry such as 42-1")
    return int(match[1]), int(match[2] or 0)


def _id_text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
