"""Progress of a job: a live table on a terminal, plain lines otherwise, and a report at the end.

Progress, messages and errors go to standard error, the report goes to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TextIO

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.bus.status import StreamStatus, WorkerStatus
from pipeline.console import make_console
from pipeline.contract.exports import EXPORTS, SUMMARY_NAME
from pipeline.contract.results import EndReason
from pipeline.exports.summary import StreamSummary
from pipeline.terminal.progress_table import Row, one_line, render_table

PLAIN_INTERVAL_S = 5.0
MOST_LISTED_STREAMS = 8
"""with more streams, the report names the folder instead of each file"""

_PREFIXES: dict[str, str] = {"error": "maskstream: error: ", "warning": "maskstream: warning: "}
_STYLES: dict[str, str] = {"error": "bold red", "warning": "yellow", "debug": "dim"}


def read_summaries(path: Path) -> dict[str, StreamSummary]:
    """The streams of a summary.json; empty if the file does not exist."""
    return msgspec.json.decode(path.read_bytes(), type=_SummaryFile).streams if path.is_file() else {}


class _SummaryFile(msgspec.Struct):
    streams: dict[str, StreamSummary]


class Display:
    """Shows the progress of a job. A context manager; use it from one thread."""

    def __init__(
        self,
        stream_ids: Iterable[str],
        *,
        console: Console | None = None,
        report: TextIO | None = None,
        quiet: bool = False,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a display for these streams.

        console   receives everything but the report; default standard error
        report    receives the report; default standard output
        quiet     print errors only
        verbose   print debug messages, too
        clock     monotonic time in seconds
        """
        self._rows = {stream_id: Row(stream_id) for stream_id in stream_ids}
        self._console = console or make_console(sys.stderr)
        self._report = report or sys.stdout
        self._quiet = quiet
        self._verbose = verbose
        self._clock = clock
        self._printed_workers: set[str] = set()
        self._errors: list[str] = []
        self._printed_rows: dict[str, tuple[float, str, str]] = {}
        """stream id -> (monotonic time in seconds, phase, text) of the last plain line"""
        on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = (
            Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            if on_terminal and not quiet
            else None
        )

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop updating the table and leave it on the terminal. May be called more than once."""
        if self._live:
            self._live.stop()
            self._live = None

    def update(self, statuses: Iterable[StreamStatus], workers: Iterable[WorkerStatus]) -> None:
        """Show the state of streams and workers; to be called several times per second."""
        now_s = self._clock()
        for status in statuses:
            self._rows[status.stream_id].take(status, now_s)
        workers_text = _describe_workers(workers)
        if self._live:
            self._live.update(render_table(list(self._rows.values()), workers_text, self._console.size), refresh=True)
        elif not self._quiet:
            self._write_plain(workers_text, now_s)

    def message(self, level: str, text: str) -> None:
        """Print one line, above the table if there is one. level: debug, info, warning or error."""
        if (self._quiet and level != "error") or (level == "debug" and not self._verbose):
            return
        if level == "error":
            self._errors.append(one_line(text))
        self._console.print(
            Text(_PREFIXES.get(level, "") + one_line(text), style=_STYLES.get(level, "")), soft_wrap=True
        )

    @property
    def began(self) -> bool:
        """Whether the display has received the status of a stream."""
        return any(row.status for row in self._rows.values())

    def finish(self, summaries: Mapping[str, StreamSummary], output: Path, redis_url: str | None) -> None:
        """Print an error line for each failed stream, and the report: figures and files of each stream.

        summaries   stream id -> summary; a stream without one is reported by its latest status
        output      folder of the result files
        redis_url   URL, without credentials, of a server that outlives the job; None for a private server
        """
        self.close()
        streams = [summaries.get(stream_id) or _summary_of(row) for stream_id, row in self._rows.items()]
        for summary in streams:
            detail = one_line(summary.detail)
            if summary.reason in ("failed", "truncated") and not any(detail in error for error in self._errors):
                self.message("error", f"{summary.stream_id}: {detail}")
        if not self._quiet:
            print(*_report_lines(streams, output, redis_url), sep="\n", file=self._report, flush=True)

    def _write_plain(self, workers_text: str, now_s: float) -> None:
        if workers_text and workers_text not in self._printed_workers:
            self._printed_workers.add(workers_text)
            self.message("info", workers_text)
        for row in self._rows.values():
            printed_s, phase, text = self._printed_rows.get(row.stream_id, (float("-inf"), "", ""))
            if row.phase == "waiting" or (
                row.phase == phase and (now_s - printed_s < PLAIN_INTERVAL_S or row.over or row.plain() == text)
            ):
                continue
            self._printed_rows[row.stream_id] = (now_s, row.phase, row.plain())
            self.message("info", row.plain())


def _describe_workers(workers: Iterable[WorkerStatus]) -> str:
    """The workers that are starting; empty if all are running."""
    starting = [worker.detail or worker.role for worker in workers if worker.state == "starting"]
    return one_line(f"starting: {', '.join(dict.fromkeys(starting))} …") if starting else ""


def _summary_of(row: Row) -> StreamSummary:
    """A summary from the latest status of the stream."""
    summary = StreamSummary(stream_id=row.stream_id)
    if row.status is not None:
        reasons: dict[str, EndReason] = {
            "ended": "finished",
            "truncated": "truncated",
            "stopped": "stopped",
            "failed": "failed",
        }
        summary.reason, summary.detail = reasons.get(row.status.phase), row.status.error
        summary.num_frames, summary.num_tracks = row.status.num_frames, row.status.num_tracks
        summary.num_corrupt, summary.gaps = row.status.num_corrupt, {"lost": row.num_dropped}
        summary.fps = row.fps
    return summary


def _report_lines(streams: list[StreamSummary], output: Path, redis_url: str | None) -> list[str]:
    lines = []
    for summary in streams:
        facts = [f"{summary.num_frames} frames", f"{summary.num_tracks} tracks"]
        dropped = sum(summary.gaps.values())
        facts += [f"{dropped} dropped"] if dropped else []
        facts += [f"{summary.num_corrupt} damaged pictures left out"] if summary.num_corrupt else []
        facts += [f"{summary.fps:.1f} fps"] if summary.fps else []
        facts += [] if summary.reason == "finished" else [summary.reason or "unfinished"]
        lines.append(f"{summary.stream_id}: {', '.join(facts)}")
        if len(streams) <= MOST_LISTED_STREAMS:
            paths = {export.name: export.possible_paths(output, summary.stream_id) for export in EXPORTS.values()}
            lines += [f"  {name:8}{path}" for name, of_kind in paths.items() for path in of_kind if path.exists()]
    if len(streams) > MOST_LISTED_STREAMS:
        lines.append(f"results   {output}")
    if (summary_file := output / SUMMARY_NAME).is_file():
        lines.append(f"summary   {summary_file}")
    if redis_url:
        lines.append(f"replay    maskstream subscribe {streams[0].stream_id} --from start --redis-url {redis_url}")
    return lines
