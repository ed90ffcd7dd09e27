"""Progress of a job: plain lines, the live table on a recorded terminal, the report."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.bus.status import StreamStatus, WorkerStatus
from pipeline.console import make_console
from pipeline.exports.summary import StreamSummary
from pipeline.terminal.progress import Display, read_summaries

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Clock:
    """A monotonic clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def status(stream_id: str, phase: Any = "live", seq: int = 0, **changes: Any) -> StreamStatus:
    fields: dict[str, Any] = {
        "source": "street.mp4",
        "error": "",
        "live_source": False,
        "width": 64,
        "height": 48,
        "stream_epoch": 1,
        "num_frames_expected": None,
        "last_seq": seq,
        "num_frames": seq,
        "num_instances": 3,
        "num_tracks": 5,
        "gaps": {},
        "num_corrupt": 0,
        "sinks": {},
        "num_reconnects": 0,
    }
    return StreamStatus(stream_id=stream_id, phase=phase, seq=seq, **(fields | changes))


def worker(state: Any, detail: str = "", role: str = "infer") -> WorkerStatus:
    return WorkerStatus(role=role, name="w1", state=state, pid=1, host="h", version="0", detail=detail, counters={})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> io.StringIO:
    """A standard error that is not a terminal."""
    return io.StringIO()


@pytest.fixture
def display(clock: Clock, log: io.StringIO) -> Callable[..., Display]:
    def make(*stream_ids: str, **options: Any) -> Display:
        return Display(stream_ids, console=make_console(log), report=io.StringIO(), clock=clock, **options)

    return make


def lines_of(log: io.StringIO) -> list[str]:
    """The lines that were written since the last call."""
    text = log.getvalue()
    log.seek(0)
    log.truncate()
    return text.splitlines()


def terminal(width: int, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None, record=True)


def picture(console: Console) -> list[str]:
    """The last table that was drawn."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", console.file.getvalue())  # type: ignore[attr-defined]
    rows = [line.rstrip() for line in text.split("\n")]
    starts = [index for index, row in enumerate(rows) if row.startswith("stream ")]
    return [row for row in rows[starts[-1] :] if row]


def test_plain_lines_come_at_phase_changes_and_every_five_seconds(
    display: Callable[..., Display], clock: Clock, log: io.StringIO
) -> None:
    shown = display("cam1")
    shown.update([status("cam1", "waiting")], [])
    assert lines_of(log) == []
    for step in range(101):
        clock.now_s = 100.0 + step / 10
        shown.update([status("cam1", seq=step, num_frames_expected=400)], [])
    assert lines_of(log) == [
        "cam1: live",
        "cam1: live, 50/400 frames, 10.0 fps, 3 instances, 5 tracks, 0:35 left",
        "cam1: live, 100/400 frames, 10.0 fps, 3 instances, 5 tracks, 0:30 left",
    ]
    shown.update([status("cam1", "ended", seq=100, num_frames_expected=400)], [])
    shown.update([status("cam1", "ended", seq=100, num_frames_expected=400)], [])
    assert lines_of(log) == ["cam1: done, 100 frames, 10.0 fps, 5 tracks"]


def test_the_line_of_a_stalled_stream_states_the_error_and_is_not_repeated(
    display: Callable[..., Display], clock: Clock, log: io.StringIO
) -> None:
    shown = display("cam1")
    for step in range(40):
        clock.now_s = 100.0 + step
        shown.update([status("cam1", "stalled", seq=7, error="no answer\nfrom \x1b[31mcamera")], [])
    assert lines_of(log) == ["cam1: stalled, 7 frames, 3 instances, 5 tracks, no answer from  [31mcamera"]


def test_dropped_frames_are_summed_over_causes(display: Callable[..., Display], log: io.StringIO) -> None:
    display("cam1").update([status("cam1", seq=9, gaps={"stale": 2, "overflow": 3})], [])
    assert "5 dropped" in lines_of(log)[0]


def test_frames_counts_frames_with_a_result(display: Callable[..., Display], log: io.StringIO) -> None:
    display("cam1").update([status("cam1", seq=9, num_frames=4, gaps={"stale": 5})], [])
    assert lines_of(log) == ["cam1: live, 4 frames, 3 instances, 5 tracks, 5 dropped"]


def test_a_file_that_is_longer_than_announced_has_no_total(
    display: Callable[..., Display], clock: Clock, log: io.StringIO
) -> None:
    shown = display("clip")
    shown.update([status("clip", seq=90, num_frames_expected=100)], [])
    clock.now_s += 10
    shown.update([status("clip", seq=110, num_frames_expected=100)], [])
    first, second = lines_of(log)
    assert "90/100 frames" in first
    assert second == "clip: live, 110 frames, 2.0 fps, 3 instances, 5 tracks"
    shown.update([status("clip", "ended", seq=130, num_frames_expected=100)], [])
    assert lines_of(log) == ["clip: done, 130 frames, 4.0 fps, 5 tracks"]


def test_the_frame_rate_is_that_of_the_last_seconds(
    display: Callable[..., Display], clock: Clock, log: io.StringIO
) -> None:
    shown = display("cam1")
    seq = 0
    for step in range(400):
        clock.now_s = 100.0 + step / 10
        seq += 1 if step < 200 else 5
        shown.update([status("cam1", seq=seq)], [])
    assert "50.0 fps" in lines_of(log)[-1]


def test_a_new_log_gives_no_negative_frame_rate(
    display: Callable[..., Display], clock: Clock, log: io.StringIO
) -> None:
    shown = display("cam1")
    for step in range(120):
        clock.now_s = 100.0 + step / 10
        shown.update([status("cam1", seq=1 + (step if step < 60 else step - 60) * 2)], [])
    assert re.search(r" 20\.0 fps", lines_of(log)[-1])


def test_starting_workers_are_listed_once(display: Callable[..., Display], log: io.StringIO) -> None:
    shown = display("cam1")
    for _ in range(3):
        shown.update([], [worker("starting", "loading street"), worker("starting", role="track")])
    shown.update([], [worker("running", "street on cpu")])
    assert lines_of(log) == ["starting: loading street, track …"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["maskstream: error: e", "maskstream: warning: w", "i"]),
        ({"verbose": True}, ["maskstream: error: e", "maskstream: warning: w", "i", "d"]),
        ({"quiet": True}, ["maskstream: error: e"]),
        ({"quiet": True, "verbose": True}, ["maskstream: error: e"]),
    ],
    ids=["default", "verbose", "quiet", "quiet wins"],
)
def test_levels(
    display: Callable[..., Display], log: io.StringIO, options: dict[str, bool], expected: list[str]
) -> None:
    shown = display("cam1", **options)
    for level in ("error", "warning", "info", "debug"):
        shown.message(level, level[0])
    shown.update([status("cam1", "waiting")], [])
    assert lines_of(log) == expected


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"])
def test_no_control_characters_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, log: io.StringIO, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with Display(["cam1"], console=make_console(log), report=io.StringIO(), verbose=True) as shown:
        for level in ("error", "warning", "info", "debug"):
            shown.message(level, "a\tb\x1b[1m\x9b1mc\rd [bold]e[/bold] :smile: " + "long " * 50)
        shown.update([status("cam1", seq=5, num_frames_expected=9)], [worker("starting")])
    text = log.getvalue()
    assert not CONTROL.search(text)
    assert len(text.splitlines()) == 6
    assert text.count("[bold]e[/bold] :smile:") == 4


def test_a_closed_pipe_is_ignored(clock: Clock) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", buffering=1) as file:
        shown = Display(["cam1"], console=make_console(file), report=io.StringIO(), clock=clock)
        for _ in range(3):
            shown.message("info", "still there?")
        shown.finish({}, Path("nowhere"), None)


def test_table_of_a_wide_terminal(clock: Clock) -> None:
    console = terminal(120)
    with Display(["clip", "cam1", "cam2"], console=console, clock=clock) as shown:
        for step in range(51):
            clock.now_s = 100.0 + step / 10
            streams = [
                status("clip", seq=step * 2, num_frames_expected=400),
                status("cam1", seq=step * 3, gaps={"stale": 4}),
                status("cam2", "stalled", error="connection refused"),
            ]
            shown.update(streams, [worker("starting", "loading street")])
        shown.message("warning", "above the table")
    rows = picture(console)
    assert rows[0].split() == ["stream", "state", "progress", "frames", "fps", "instances", "tracks", "dropped", "left"]
    assert re.fullmatch(r"clip +live +━+╸? +100/400 +20\.0 +3 +5 +0:15", rows[1])
    assert rows[2].split() == ["cam1", "live", "150", "30.0", "3", "5", "4"]
    assert rows[3].split()[:2] == ["cam2", "stalled"]
    assert rows[4:] == ["cam2: connection refused", "starting: loading street …"]
    assert "maskstream: warning: above the table" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_table_fits_the_terminal(clock: Clock, width: int) -> None:
    console = terminal(width, height=12)
    names = [f"a-camera-with-a-long-name-{number}" for number in range(30)]
    with Display(names, console=console, clock=clock) as shown:
        for step in range(8):
            clock.now_s = 100.0 + step
            streams = [
                status(name, seq=step, num_frames_expected=90, gaps={"lost": 1}, error="x" * 300, phase="stalled")
                for name in names
            ]
            shown.update(streams, [worker("starting", "y" * 300)])
        rows = picture(console)
    assert max(map(len, rows)) <= width
    assert len(rows) < 12
    assert "and 25 more" in rows
    assert re.match(r"stream .* frames", rows[0])


def test_running_streams_are_shown_before_ended_ones(clock: Clock) -> None:
    console = terminal(100, height=9)
    with Display([f"s{number}" for number in range(9)], console=console, clock=clock) as shown:
        shown.update([status(f"s{number}", "ended" if number < 7 else "live", seq=1) for number in range(9)], [])
        rows = picture(console)
    assert [row.split()[0] for row in rows[1:]] == ["s7", "s8", "and"]


def test_quiet_draws_no_table(clock: Clock) -> None:
    console = terminal(80)
    with Display(["cam1"], console=console, quiet=True, clock=clock) as shown:
        shown.update([status("cam1", seq=5)], [worker("starting")])
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_the_report_lists_the_existing_files(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    for name in ("clip.mp4", "clip.jsonl", "cam1.jsonl", "summary.json"):
        (tmp_path / name).touch()
    report = io.StringIO()
    shown = Display(["clip", "cam1", "bad"], console=make_console(log), report=report, clock=clock)
    summaries = {
        "clip": StreamSummary(stream_id="clip", reason="finished", num_frames=377, num_tracks=9, fps=25.21),
        "cam1": StreamSummary(stream_id="cam1", reason="stopped", num_frames=40, num_tracks=1, gaps={"stale": 3}),
    }
    shown.update([status("bad", "failed", seq=12, error="moov atom missing")], [])
    lines_of(log)
    shown.finish(summaries, tmp_path, "redis://localhost")
    assert report.getvalue().splitlines() == [
        "clip: 377 frames, 9 tracks, 25.2 fps",
        f"  jsonl   {tmp_path / 'clip.jsonl'}",
        f"  video   {tmp_path / 'clip.mp4'}",
        "cam1: 40 frames, 1 tracks, 3 dropped, stopped",
        f"  jsonl   {tmp_path / 'cam1.jsonl'}",
        "bad: 12 frames, 5 tracks, failed",
        f"summary   {tmp_path / 'summary.json'}",
        "replay    maskstream subscribe clip --from start --redis-url redis://localhost",
    ]
    assert lines_of(log) == ["maskstream: error: bad: moov atom missing"]


def test_an_error_that_was_printed_is_not_repeated_in_the_report(
    tmp_path: Path, clock: Clock, log: io.StringIO
) -> None:
    shown = Display(["bad"], console=make_console(log), report=io.StringIO(), clock=clock, quiet=True)
    shown.message("error", "decode bad: moov atom missing")
    shown.update([status("bad", "failed", error="moov atom missing")], [])
    shown.finish({}, tmp_path, None)
    assert lines_of(log) == ["maskstream: error: decode bad: moov atom missing"]


def test_quiet_reports_failures_only(tmp_path: Path, clock: Clock, log: io.StringIO) -> None:
    report = io.StringIO()
    shown = Display(["bad", "good"], console=make_console(log), report=report, clock=clock, quiet=True)
    shown.update([status("bad", "failed", error="moov atom missing"), status("good", "ended", seq=5)], [])
    shown.finish({}, tmp_path, None)
    assert lines_of(log) == ["maskstream: error: bad: moov atom missing"]
    assert report.getvalue() == ""


def test_a_folder_without_summary_has_no_summaries(tmp_path: Path) -> None:
    assert read_summaries(tmp_path / "summary.json") == {}
