"""Result messages as JSON lines: the same bytes as in the log, one message a line, in the log's order."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from pipeline.contract.results import AnyResult, EndResult, decode_result
from pipeline.errors import OutputError
from pipeline.exports.files import output_error

_LINE_START = b'{"type":'
"""how every encoded message begins: tells our torn line from a stranger's file"""


@dataclass(frozen=True, slots=True)
class JsonlTail:
    """Where a file of results stops.

    last_id   (frame_seq, n) of its last message, as the log numbers them: n = 0 for the frame or gap, 1 and up for
              its companions
    log_id    of the log it was written from
    ended     whether its last message is an `end`
    """

    last_id: tuple[int, int]
    log_id: str
    ended: bool


class JsonlWriter:
    """Appends messages to a file; a context manager.

    Opened on a file that is there, it cuts a last line that was not written whole and tells in `found` where to go on
    (None: the file is empty).
    """

    def __init__(self, path: Path) -> None:
        """Raises OutputError when the file cannot be written or is not a file of results."""
        self.path = path
        self._pending = bytearray()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise output_error(path, error) from None
        try:
            self.found = self._repair()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, payload: bytes) -> None:
        """Take one encoded message; it reaches the disk with `flush`."""
        self._pending += payload
        self._pending += b"\n"

    def flush(self) -> None:
        """Write what was appended and wait until the disk holds it. Raises OutputError; may be tried again then."""
        try:
            while self._pending:
                written = os.write(self._file, self._pending)
                del self._pending[:written]
            os.fsync(self._file)
        except OSError as error:
            raise output_error(self.path, error) from None

    def restart(self) -> None:
        """Empty the file: another log begins."""
        self._pending.clear()
        self._truncate(0)
        self.found = None

    def close(self) -> None:
        """Flush and close. Raises OutputError."""
        if self._file < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _repair(self) -> JsonlTail | None:
        if os.fstat(self._file).st_size == 0:
            return None
        with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as content:
            size = content.rfind(b"\n") + 1
            torn = content[size : size + len(_LINE_START)].rstrip(b"\0")
            if not (torn.startswith(_LINE_START) or _LINE_START.startswith(torn)):
                raise self._foreign()
            tail = self._tail(content, size)
            is_torn = size < len(content)
        if is_torn:
            self._truncate(size)
        return tail

    def _tail(self, content: mmap.mmap, size: int) -> JsonlTail | None:
        """What the lines in content[:size] end with."""
        last: AnyResult | None = None
        num_same = 0
        while size > 0:
            start = content.rfind(b"\n", 0, size - 1) + 1
            try:
                message = decode_result(content[start : size - 1])
            except msgspec.DecodeError:
                raise self._foreign() from None
            last = last or message
            if message.frame_seq != last.frame_seq:
                break
            num_same += 1
            size = start
        if last is None:
            return None
        # number 0 has no frame: what stands before the first frame is numbered from 0-1
        index = num_same - 1 if last.frame_seq > 0 else num_same
        return JsonlTail((last.frame_seq, index), last.log_id, isinstance(last, EndResult))

    def _foreign(self) -> OutputError:
        return OutputError(
            f"{self.path} is there and holds something other than results; move it away or give another --output"
        )

    def _truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
            os.fsync(self._file)
        except OSError as error:
            raise output_error(self.path, error) from None


def read_jsonl(path: Path) -> Iterator[AnyResult]:
    """The messages of a file, in order; a torn last line is left out. Raises OutputError for a line of another kind."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decode_result(line)
            except msgspec.DecodeError as error:
                raise OutputError(f"{path}, line {number}: expected a result message, {error}") from None
