"""What the sink asks of an export: the `Writer` protocol, and opening the writer of a row of the table."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from pipeline.contract.config import StreamConfig
from pipeline.contract.exports import Export
from pipeline.contract.results import AnyResult

LogPosition = tuple[int, int]
"""(frame_seq, n): the id of a message in the result log; n is 0 for a frame or gap, 1 and up for its followers"""


class Writer(Protocol):
    """Writes the results of one stream to one file (or one folder).

    Use as a context manager: leaving the block finishes the file, or discards it after an exception.
    """

    needs_whole_log: bool = True
    """False if the file may be incomplete when results were trimmed from the log before the sink read them"""

    def begin(self, log_id: str) -> LogPosition | None:
        """Prepare to write the log `log_id`, before the first `write`. The default starts from nothing.

        Returns the position of the last message that the file already holds on disk: `write` gets only later messages.
        None asks for all messages. Raises OutputError if the file may not be written.
        """
        return None

    def write(self, message: AnyResult, payload: bytes) -> None:
        """Take the next message of the log; `payload` is its JSON, as committed. Raises OutputError."""
        ...

    def flush(self) -> None:
        """Persist every message passed to `write`. Raises OutputError.

        Required of a writer whose `begin` returns positions: the log may trim those messages afterwards.
        """
        return

    def finish(self) -> None:
        """Complete the file with what was written so far; may be called more than once. Raises OutputError."""
        ...

    def discard(self) -> None:
        """Release all resources; may be called at any time.

        A file that is useless until complete is removed. Other files keep what was written.
        """
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.discard()


@runtime_checkable
class MessageStore(Protocol):
    """A writer whose file holds every message whole, so that the other writers can start over from it."""

    def read_back(self) -> Iterator[tuple[LogPosition, AnyResult, bytes]]:
        """Position, message and JSON of each message in the file, in the order of the log."""
        ...


def open_writer(export: Export, path: Path, stream: StreamConfig, *, overwrite: bool) -> Writer | None:
    """The writer of one export of a stream, or None if this stream cannot have the file (logged as a warning).

    overwrite   whether the file may replace the results of an earlier run
    Raises OutputError when the file cannot be written.
    """
    module = importlib.import_module(export.module)
    writer: Writer | None = module.open_writer(path, stream, overwrite=overwrite)
    return writer
