"""sink: writes the results of one stream to files. It reads the result log with a cursor, like every other reader."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import redis

from pipeline.bus import Bus
from pipeline.bus.log_cursor import LogCursor
from pipeline.bus.log_entry import LogEntry
from pipeline.contract.config import StreamConfig
from pipeline.contract.exports import EXPORTS, check_source_safe, has_content, would_replace_error
from pipeline.contract.results import AnyResult, EndResult
from pipeline.errors import BusError, OutputError
from pipeline.exports.summary import Summary
from pipeline.exports.writer import LogPosition, MessageStore, Writer, open_writer
from pipeline.redaction import redact_url
from workers.base import Life, log
from workers.roles.sink import SINK_NAME, SinkTask

FLUSH_INTERVAL_S = 0.5


def run(task: SinkTask, life: Life) -> None:
    """Write until the stream ends or the worker is asked to stop. Raises OutputError when a file cannot be written."""
    bus = Bus(task.redis_url)
    stream = bus.stream(task.stream_id)
    log_id = bus.log_id(task.stream_id)
    if stream is None or log_id is None or not bus.add_sink(task.stream_id, SINK_NAME):
        raise BusError(f"no stream {task.stream_id!r} on {redact_url(task.redis_url)}: start its decoder first")
    with ExitStack() as stack:
        FileSink(task, stream, log_id, stack).follow(bus, life)


class FileSink:
    """The output files of one stream, and how far each of them has got."""

    def __init__(self, task: SinkTask, stream: StreamConfig, log_id: str, stack: ExitStack) -> None:
        """Opens the writers; `stack` closes them. Raises OutputError."""
        self._stream_id = task.stream_id
        self._log_id = log_id
        self._cursor = LogCursor(task.stream_id, start="start", reader=SINK_NAME)
        self._summary = Summary()
        self._unflushed: list[LogEntry] = []
        self._flush_at_s = time.monotonic()
        self._writers = _open_writers(task, stream, log_id, stack)
        # a file that may lack results can begin anywhere in the log
        self._next_seq = 1 if any(writer.needs_whole_log for writer, _ in self._writers) else 0
        self._catch_up()

    def _catch_up(self) -> None:
        """Give the messages of the JSONL file to the other writers, and continue after the last of them."""
        for writer, position in self._writers:
            if isinstance(writer, MessageStore) and position is not None:
                for place, message, payload in writer.read_back():
                    self._write(place, message, payload)
                self._cursor.resume(self._stream_id, self._log_id, position)
                self._next_seq = position[0] + 1
                return

    def follow(self, bus: Bus, life: Life) -> None:
        """Write what is committed until the end message is safe, or the worker is asked to stop."""
        ended = False
        while not ended and not life.stopping:
            command = self._cursor.next_command(time.monotonic())
            if command is None:
                break
            try:
                reply = bus.client.execute_command(*command)
            except redis.RedisError as error:
                life.sleep(self._cursor.retry_delay_s(error, time.monotonic()))
                continue
            for entry in self._cursor.parse_reply(reply, time.monotonic()):
                self._take(entry)
                ended = isinstance(entry.message, EndResult)
            if ended or time.monotonic() >= self._flush_at_s:
                self._flush()
        self._flush()
        if ended:
            for writer, _ in self._writers:
                writer.finish()
            bus.set_summary(self._stream_id, msgspec.json.encode(self._summary.streams[self._stream_id]))
        for command in self._cursor.closing_commands():
            bus.client.execute_command(*command)
        log.info("%s", "done" if ended else "stopped before the end")

    def _take(self, entry: LogEntry) -> None:
        """Write one entry of the log. Raises OutputError if results before it were dropped before they were read."""
        if entry.message.log_id != self._log_id:
            raise BusError(f"a new job replaced the log of {self._stream_id}: start its sink again")
        seq, follower = entry.entry_id
        first_seq = getattr(entry.message, "from_seq", seq)
        if follower == 0 and 0 < self._next_seq < first_seq:
            raise OutputError(
                f"results {self._next_seq} to {first_seq - 1} of {self._stream_id} were dropped from the log before "
                "they were written: save jsonl along with the video, or raise redis_memory_mb"
            )
        self._next_seq = seq + 1
        self._write(entry.entry_id, entry.message, entry.payload)
        self._unflushed.append(entry)

    def _write(self, place: LogPosition, message: AnyResult, payload: bytes) -> None:
        self._summary.add(message)
        for writer, position in self._writers:
            if position is None or place > position:
                writer.write(message, payload)

    def _flush(self) -> None:
        """Make the files safe on disk, then let the log drop what is in them."""
        for writer, _ in self._writers:
            writer.flush()
        for entry in self._unflushed:
            self._cursor.acknowledge(entry)
        self._unflushed.clear()
        self._flush_at_s = time.monotonic() + FLUSH_INTERVAL_S


def _open_writers(
    task: SinkTask, stream: StreamConfig, log_id: str, stack: ExitStack
) -> list[tuple[Writer, LogPosition | None]]:
    """The writer of each export that the task asks for, with the position up to which its file is written.

    Raises OutputError rather than replace the results of another log, unless the task allows it, and ConfigError rather
    than replace the source. A file without a position of its own belongs to this log if the JSONL file beside it does.
    """
    opened: list[tuple[Writer, LogPosition | None]] = []
    fresh_paths: list[Path] = []
    for export in EXPORTS.values():
        if export.name not in task.save:
            continue
        path = export.path(Path(task.output), stream)
        check_source_safe(path, [stream])
        existed = has_content(path)
        writer = open_writer(export, path, stream, overwrite=task.overwrite)
        if writer is None:
            continue
        stack.enter_context(writer)
        position = writer.begin(log_id)
        opened.append((writer, position))
        if existed and position is None:
            fresh_paths.append(path)
    is_resumed = any(isinstance(writer, MessageStore) and position is not None for writer, position in opened)
    if fresh_paths and not is_resumed and not task.overwrite:
        raise OutputError(would_replace_error(fresh_paths[0]))
    return opened
