"""What a person sees while a job runs: a live table on a terminal, plain lines elsewhere, at the end what was written.

Progress, notes and errors go to standard error, the report at the end to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.bus.status import StreamStatus, WorkerStatus
from pipeline.exports.summary import StreamSummary
from pipeline.progress_table import Row, one_line, render_table

Level = Literal["error", "warning", "info", "debug"]
"""debug: only with -v; info and warning: not with --quiet"""

PLAIN_INTERVAL_S = 5.0
MOST_LISTED_STREAMS = 8
"""the report of more names the folder rather than each file"""

_PREFIXES: dict[Level, str] = {"error": "maskstream: error: ", "warning": "maskstream: warning: "}
_STYLES: dict[Level, str] = {"error": "bold red", "warning": "yellow", "debug": "dim"}


def make_console(file: TextIO) -> Console:
    """A console that sends control characters to terminals only, and falls silent when nobody reads any more."""
    return _Console(file=file, force_terminal=file.isatty(), highlight=False, markup=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # the job goes on: its results go elsewhere
        self.quiet = True


class Display:
    """Shows how a job is doing; a context manager. Not for more than one thread."""

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
        """`console` takes all but the report; the defaults are standard error and output. `quiet`: errors only."""
        self._rows = {stream_id: Row(stream_id) for stream_id in stream_ids}
        self._console = console or make_console(sys.stderr)
        self._report = report or sys.stdout
        self._quiet = quiet
        self._verbose = verbose
        self._clock = clock
        self._workers_text = ""
        self._plain_said: dict[str, tuple[float, str, str]] = {}
        """stream id -> when its last plain line was written (monotonic seconds), with which phase and text"""
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
        """Leave the last table standing and stop writing over it; harmless when called again."""
        if self._live:
            self._live.stop()
            self._live = None

    def update(self, statuses: Iterable[StreamStatus], workers: Iterable[WorkerStatus]) -> None:
        """Show this; to be called several times a second."""
        now_s = self._clock()
        for status in statuses:
            self._rows.setdefault(status.stream_id, Row(status.stream_id)).take(status, now_s)
        workers_text = _describe_workers(workers)
        if self._live:
            self._workers_text = workers_text
            self._live.update(render_table(list(self._rows.values()), workers_text, self._console.size), refresh=True)
        elif not self._quiet:
            self._write_plain(workers_text, now_s)

    def message(self, level: Level, text: str) -> None:
        """Write one line, above the table where there is one."""
        if (self._quiet and level != "error") or (level == "debug" and not self._verbose):
            return
        self._console.print(
            Text(_PREFIXES.get(level, "") + one_line(text), style=_STYLES.get(level, "")), soft_wrap=True
        )

    def finish(self, streams: Mapping[str, StreamSummary], output: Path, redis_url: str | None) -> None:
        """The report: how each stream went, the files there are and how to look at them.

        redis_url   of a server that outlives the job, without credentials; None for the private one
        """
        self.close()
        for summary in streams.values():
            if summary.reason in {"failed", None}:
                self.message("error", f"{summary.stream_id}: {summary.detail or 'did not come to its end'}")
        if self._quiet:
            return
        print(*_report_lines(streams, output, redis_url), sep="\n", file=self._report, flush=True)

    def _write_plain(self, workers_text: str, now_s: float) -> None:
        if workers_text != self._workers_text:
            self._workers_text = workers_text
            if workers_text:
                self.message("info", workers_text)
        for row in self._rows.values():
            said_s, phase, text = self._plain_said.get(row.stream_id, (float("-inf"), "", ""))
            if row.phase == "waiting" or (
                row.phase == phase and (now_s - said_s < PLAIN_INTERVAL_S or row.over or row.plain() == text)
            ):
                continue
            self._plain_said[row.stream_id] = (now_s, row.phase, row.plain())
            self.message("info", row.plain())


def _describe_workers(workers: Iterable[WorkerStatus]) -> str:
    """What the workers that are not at work are doing; empty when all are."""
    starting = [worker.detail or f"{worker.role} {worker.name}" for worker in workers if worker.state == "starting"]
    if starting:
        return one_line(f"starting: {', '.join(dict.fromkeys(starting))} …")
    draining = [worker.name for worker in workers if worker.state == "draining"]
    return one_line(f"finishing what is held: {', '.join(draining)} …") if draining else ""


def _report_lines(streams: Mapping[str, StreamSummary], output: Path, redis_url: str | None) -> list[str]:
    lines = []
    for summary in streams.values():
        facts = [f"{summary.num_frames} frames", f"{summary.num_tracks} tracks"]
        dropped = sum(summary.gaps.values())
        facts += [f"{dropped} dropped"] if dropped else []
        facts += [f"{summary.num_corrupt} damaged pictures left out"] if summary.num_corrupt else []
        facts += [f"{summary.fps:.1f} fps"] if summary.fps else []
        facts += [] if summary.reason == "finished" else [summary.reason or "unfinished"]
        lines.append(f"{summary.stream_id}: {', '.join(facts)}")
        if len(streams) <= MOST_LISTED_STREAMS:
            lines += [
                f"  {what:8}{path}"
                for what, suffix in (("video", ".mp4"), ("results", ".jsonl"))
                if (path := output / f"{summary.stream_id}{suffix}").is_file()
            ]
    if len(streams) > MOST_LISTED_STREAMS:
        lines.append(f"results   {output}")
    if (summary_file := output / "summary.json").is_file():
        lines.append(f"summary   {summary_file}")
    if redis_url:
        first = next(iter(streams), "STREAM")
        lines.append(f"replay    maskstream subscribe {first} --from start --redis-url {redis_url}")
    return lines
