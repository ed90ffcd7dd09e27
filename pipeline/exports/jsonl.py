"""The `jsonl` export: result messages as JSON lines, the same bytes and the same order as in the result log."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pipeline.contract.config import StreamConfig
from pipeline.contract.exports import would_replace_error
from pipeline.contract.results import AnyResult, EndResult, FrameResult, GapResult, decode_result
from pipeline.errors import OutputError
from pipeline.exports.files import output_error
from pipeline.exports.writer import LogPosition, Writer

_LINE_START = b'{"type":'
"""The first bytes of every encoded message. They distinguish a torn line of ours from a file of another program."""


@dataclass(frozen=True, slots=True)
class JsonlTail:
    """Where a file of result messages ends.

    position  of its last message
    log_id    of the log that it was written from
    ended     whether its last message is an `end`
    """

    position: LogPosition
    log_id: str
    ended: bool


class JsonlWriter(Writer):
    """Appends messages to a file.

    Opening an existing file truncates an incomplete last line. `tail` then describes the end of the file; it is None
    for an empty file.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Raises OutputError if the file cannot be written or holds something other than result messages.

        overwrite   whether `begin` may empty a file that holds the results of another log
        """
        self.path = path
        self._overwrite = overwrite
        self._pending = bytearray()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise output_error(path, error) from None
        try:
            self.tail = self._repair()
        except BaseException:
            os.close(self._file)
            raise

    def begin(self, log_id: str) -> LogPosition | None:
        """Continue a file of this log. Empties a file of another log, or raises OutputError without `overwrite`."""
        if self.tail is None:
            return None
        if self.tail.log_id == log_id:
            return self.tail.position
        if not self._overwrite:
            raise OutputError(would_replace_error(self.path))
        self._truncate(0)
        self.tail = None
        return None

    def write(self, message: AnyResult, payload: bytes) -> None:
        """Buffer one encoded message; `flush` writes it to disk."""
        self._pending += payload
        self._pending += b"\n"

    def flush(self) -> None:
        """Write the buffered messages and wait until they are on disk. Raises OutputError; may then be called again."""
        try:
            while self._pending:
                written = os.write(self._file, self._pending)
                del self._pending[:written]
            os.fsync(self._file)
        except OSError as error:
            raise output_error(self.path, error) from None

    def finish(self) -> None:
        """Flush and close the file. Raises OutputError."""
        if self._file < 0:
            return
        try:
            self.flush()
        finally:
            self._close()

    def discard(self) -> None:
        """Close the file after an error, and keep the messages in it: what is written stays valid."""
        if self._file >= 0:
            self.finish()

    def read_back(self) -> Iterator[tuple[LogPosition, AnyResult, bytes]]:
        """Position, message and JSON of each message in the file."""
        seq, follower = 0, 0
        for message, payload in _read_lines(self.path):
            is_numbered = isinstance(message, FrameResult | GapResult)
            seq, follower = message.frame_seq, 0 if is_numbered else follower + 1
            yield (seq, follower), message, payload

    def _close(self) -> None:
        os.close(self._file)
        self._file = -1

    def _repair(self) -> JsonlTail | None:
        """Truncate an incomplete last line; describe the end of what remains."""
        if os.fstat(self._file).st_size == 0:
            return None
        with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as content:
            size = content.rfind(b"\n") + 1
            torn = content[size : size + len(_LINE_START)].rstrip(b"\0")
            if not (torn.startswith(_LINE_START) or _LINE_START.startswith(torn)):
                raise self._foreign_error()
            tail = self._tail(content, size)
            is_torn = size < len(content)
        if is_torn:
            self._truncate(size)
        return tail

    def _tail(self, content: mmap.mmap, size: int) -> JsonlTail | None:
        """The end of the lines in content[:size]."""
        last: AnyResult | None = None
        num_same = 0
        while size > 0:
            start = content.rfind(b"\n", 0, size - 1) + 1
            try:
                message = decode_result(content[start : size - 1])
            except msgspec.DecodeError:
                raise self._foreign_error() from None
            last = last or message
            if message.frame_seq != last.frame_seq:
                break
            num_same += 1
            size = start
        if last is None:
            return None
        # frame 0 does not exist: the messages before the first frame have the positions (0, 1), (0, 2) …
        index = num_same - 1 if last.frame_seq > 0 else num_same
        return JsonlTail((last.frame_seq, index), last.log_id, isinstance(last, EndResult))

    def _foreign_error(self) -> OutputError:
        return OutputError(
            f"{self.path} exists and holds something other than result messages; move it or give another --output"
        )

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
            os.fsync(self._file)
        except OSError as error:
            raise output_error(self.path, error) from None


def open_writer(path: Path, stream: StreamConfig, *, overwrite: bool) -> Writer:
    """The writer of a stream's JSON lines. Raises OutputError."""
    return JsonlWriter(path, overwrite=overwrite)


def read_jsonl(path: Path) -> Iterator[AnyResult]:
    """The messages of a file in order, without an incomplete last line. Raises OutputError for an invalid line."""
    for message, _ in _read_lines(path):
        yield message


def _read_lines(path: Path) -> Iterator[tuple[AnyResult, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            payload = line[:-1]
            try:
                yield decode_result(payload), payload
            except msgspec.DecodeError as error:
                raise OutputError(f"{path}, line {number}: expected a result message, {error}") from None
