"""sink: one stream's results to files. A cursor on the result log like every other reader."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import redis

from pipeline.bus import Bus, redact_url
from pipeline.bus.log_cursor import LogCursor, LogEntry
from pipeline.contract.config import OUTPUT_SUFFIXES, StreamConfig
from pipeline.contract.results import AnyResult, EndResult
from pipeline.errors import BusError, OutputError
from pipeline.exports import JsonlWriter, LiveVideoWriter, Summary, VideoWriter, read_jsonl
from pipeline.segments import SegmentReader
from workers.base import Life, log
from workers.tasks import SINK_NAME, SinkTask

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
    """The open files of one stream."""

    def __init__(self, task: SinkTask, stream: StreamConfig, log_id: str, stack: ExitStack) -> None:
        self._stream_id = task.stream_id
        self._log_id = log_id
        self._cursor = LogCursor(task.stream_id, start="start", reader=SINK_NAME)
        self._summary = Summary()
        self._jsonl: JsonlWriter | None = None
        self._video: VideoWriter | LiveVideoWriter | None = None
        self._unflushed: list[LogEntry] = []
        self._flush_at_s = time.monotonic()
        # the video of a camera shows what there is: its writer may begin anywhere in the log
        self._first_seq_expected = 0 if stream.live and "jsonl" not in task.save else 1
        if "video" in task.save:
            path = Path(task.output) / f"{task.stream_id}{OUTPUT_SUFFIXES['video']}"
            self._video = _video_writer(path, stream, stack)
        if "jsonl" in task.save:
            path = Path(task.output) / f"{task.stream_id}{OUTPUT_SUFFIXES['jsonl']}"
            self._jsonl = stack.enter_context(JsonlWriter(path))
            self._catch_up(self._jsonl)

    def _catch_up(self, jsonl: JsonlWriter) -> None:
        """Go on where the file ends when it is of this log, and draw the video again from it; else begin it anew."""
        if jsonl.found is None:
            return
        if jsonl.found.log_id != self._log_id:
            jsonl.restart()
            return
        self._cursor.resume(self._stream_id, self._log_id, jsonl.found.last_id)
        self._first_seq_expected = jsonl.found.last_id[0] + 1
        for message in read_jsonl(jsonl.path):
            self._draw(message)

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
                life.sleep(self._cursor.failed(error, time.monotonic()))
                continue
            for entry in self._cursor.digest(reply, time.monotonic()):
                self._take(entry)
                ended = isinstance(entry.message, EndResult)
            if ended or time.monotonic() >= self._flush_at_s:
                self._flush()
        self._flush()
        if ended:
            if self._video is not None:
                self._video.finish()
            bus.set_summary(self._stream_id, msgspec.json.encode(self._summary.streams[self._stream_id]))
        for command in self._cursor.last_words():
            bus.client.execute_command(*command)
        log.info("%s", "done" if ended else "stopped before the end")

    def _take(self, entry: LogEntry) -> None:
        if entry.message.log_id != self._log_id:
            raise BusError(f"a new job replaced the log of {self._stream_id}: start its sink again")
        seq, companion = entry.entry_id
        first_seq = getattr(entry.message, "from_seq", seq)
        if companion == 0 and 0 < self._first_seq_expected < first_seq:
            raise OutputError(
                f"results {self._first_seq_expected} to {first_seq - 1} of {self._stream_id} left the log before "
                "they were written: save jsonl along with the video, or give the log more room (redis_memory_mb)"
            )
        self._first_seq_expected = seq + 1
        if self._jsonl is not None:
            self._jsonl.append(entry.payload)
        self._draw(entry.message)
        self._unflushed.append(entry)

    def _draw(self, message: AnyResult) -> None:
        self._summary.add(message)
        if self._video is not None:
            self._video.write(message)

    def _flush(self) -> None:
        """Make what was written safe, then tell the log that it need not keep it for us."""
        if self._jsonl is not None:
            self._jsonl.flush()
        for entry in self._unflushed:
            self._cursor.done(entry)
        self._unflushed.clear()
        self._flush_at_s = time.monotonic() + FLUSH_INTERVAL_S


def _video_writer(path: Path, stream: StreamConfig, stack: ExitStack) -> VideoWriter | LiveVideoWriter | None:
    """The writer for the kind of source; None, with a warning, where the pictures of a camera are out of reach."""
    if not stream.live:
        return stack.enter_context(VideoWriter(path, stream))
    reason = "its decoder keeps no pictures"
    if stream.segment_folder is not None:
        try:
            reader = SegmentReader(Path(stream.segment_folder))
        except OutputError as error:
            reason = str(error)
        else:
            return stack.enter_context(LiveVideoWriter(path, reader))
    log.warning(
        "no video of %s: %s; it is written where decoder and sink are of one job on one host", stream.stream_id, reason
    )
    return None
