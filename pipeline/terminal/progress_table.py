"""The streams of a job as rows of a table for a terminal, and as lines of text for anything else.

"Frames" are frames with a result, here as in the report, `status` and summary.json; "dropped" are frames without one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

from rich.console import ConsoleDimensions, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.bus.status import StreamStatus

RATE_WINDOW_S = 5.0
MIN_RATE_SPAN_S = 0.5
NUM_FREE_LINES = 7
"""lines of the terminal that are left for the heading, the worker line, errors and the prompt"""
MOST_ERROR_LINES = 3
BAR_WIDTHS = (10, 30)

_COLUMN_WIDTHS = {
    "stream": 10,
    "state": 10,
    "progress": BAR_WIDTHS[0],
    "frames": 11,
    "fps": 6,
    "instances": 9,
    "tracks": 6,
    "dropped": 7,
    "left": 7,
}
"""heading -> minimum width in characters"""
_DISPENSABLE = ("instances", "progress", "dropped", "left", "tracks", "fps", "state")
"""columns that a narrow terminal leaves out, in this order"""
_COLUMN_GAP = 2
_PHASE_WORDS = {"ended": "done"}
_PHASE_STYLES = {
    "live": "green",
    "connecting": "yellow",
    "stalled": "bold yellow",
    "truncated": "bold yellow",
    "failed": "bold red",
}


def one_line(text: str) -> str:
    """Replace line ends and other control characters, which file names and camera replies may contain, by spaces."""
    return "".join(char if char.isprintable() else " " for char in text).strip()


class Row:
    """The latest status of one stream, and its frame rate."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self.status: StreamStatus | None = None
        self._history: deque[tuple[float, int]] = deque()
        """(monotonic time in seconds, number of frames) at each update of the last RATE_WINDOW_S"""
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] = (0.0, 0)

    def take(self, status: StreamStatus, now_s: float) -> None:
        """Store the status of a stream at `now_s`, in monotonic seconds."""
        if self._history and status.num_frames < self._history[-1][1]:
            self._history.clear()
            self._first = None
        if self._history and status.num_frames > self._history[-1][1]:
            self._first = self._first or self._history[-1]
            self._last = (now_s, status.num_frames)
        self.status = status
        self._history.append((now_s, status.num_frames))
        while len(self._history) > 2 and now_s - self._history[1][0] >= RATE_WINDOW_S:
            self._history.popleft()

    @property
    def phase(self) -> str:
        return _PHASE_WORDS.get(self.status.phase, self.status.phase) if self.status else "waiting"

    @property
    def over(self) -> bool:
        return self.status is not None and self.status.is_over

    @property
    def fps(self) -> float | None:
        """Frames per second over RATE_WINDOW_S, or over the whole stream once it has ended; None at the start."""
        if self._first is None:
            return None
        (from_s, from_frames), (to_s, to_frames) = (
            (self._first, self._last) if self.over else (self._history[0], self._history[-1])
        )
        return (to_frames - from_frames) / (to_s - from_s) if to_s - from_s >= MIN_RATE_SPAN_S else None

    @property
    def left_s(self) -> float | None:
        """Estimated seconds until the end of a file; None if its length or the frame rate is not known."""
        status, fps = self.status, self.fps
        if status is None or self.over or self.num_expected is None or not fps:
            return None
        return (self.num_expected - status.seq) / fps

    @property
    def num_expected(self) -> int | None:
        """Number of frames that the file announces; None for a live source, or if the file has turned out longer."""
        expected = self.status.num_frames_expected if self.status else None
        return None if self.status is None or not expected or expected < self.status.seq else expected

    @property
    def frames(self) -> str:
        if self.status is None:
            return ""
        num_frames, expected = self.status.num_frames, self.num_expected
        return f"{num_frames}/{expected}" if expected and not self.over else f"{num_frames}"

    @property
    def trouble(self) -> str:
        """Why the stream gives no frames; empty if it does."""
        if self.status is None or self.status.phase not in {"connecting", "stalled", "truncated", "failed"}:
            return ""
        return one_line(self.status.error)

    @property
    def num_dropped(self) -> int:
        return sum(self.status.gaps.values()) if self.status else 0

    def plain(self) -> str:
        """The row as one line of text."""
        if self.status is None:
            return f"{self.stream_id}: waiting"
        parts = [f"{self.stream_id}: {self.phase}"]
        if self.status.seq:
            parts.append(f"{self.frames} frames")
            parts += [] if self.fps is None else [f"{self.fps:.1f} fps"]
            parts += [] if self.over else [f"{self.status.num_instances} instances"]
            parts.append(f"{self.status.num_tracks} tracks")
            parts += [f"{self.num_dropped} dropped"] if self.num_dropped else []
            parts += [] if self.left_s is None else [f"{_clock_text(self.left_s)} left"]
        parts += [self.trouble] if self.trouble else []
        return ", ".join(parts)


def render_table(rows: Sequence[Row], workers_text: str, size: ConsoleDimensions) -> RenderableType:
    """The rows, the errors of streams in trouble and the workers' line, cut to a terminal of `size` in characters."""
    max_rows = max(size.height - NUM_FREE_LINES, 1)
    shown = rows if len(rows) <= max_rows else sorted(rows, key=lambda row: row.over)[:max_rows]
    cells = [_cells(row) for row in shown]
    longest_name = max((len(row.stream_id) for row in shown), default=0)
    widths = _column_widths({heading for row in cells for heading in row}, longest_name, size.width)
    table = Table(box=None, pad_edge=False, padding=(0, _COLUMN_GAP, 0, 0), header_style="dim")
    for heading, width in widths.items():
        justify: Literal["left", "right"] = "left" if heading in {"stream", "state", "progress"} else "right"
        table.add_column(heading, width=width, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in cells:
        table.add_row(*(row.get(heading, "") for heading in widths))
    notes = [Text(f"and {len(rows) - len(shown)} more", style="dim")] if len(shown) < len(rows) else []
    troubled = [row for row in rows if row.trouble][:MOST_ERROR_LINES]
    notes += [Text(f"{row.stream_id}: {row.trouble}", style="yellow") for row in troubled]
    notes += [Text(workers_text, style="dim")] if workers_text else []
    for note in notes:
        note.no_wrap, note.overflow = True, "ellipsis"
    return Group(table, *notes)


def _column_widths(headings: set[str], longest_name: int, terminal_width: int) -> dict[str, int]:
    """Heading -> width of the columns that fit the terminal; spare width goes to the stream ids, then to the bar."""
    widths = {heading: width for heading, width in _COLUMN_WIDTHS.items() if heading in headings}

    def spare() -> int:
        return terminal_width - sum(widths.values()) - _COLUMN_GAP * len(widths)

    for heading in _DISPENSABLE:
        if spare() < 0:
            widths.pop(heading, None)
    widths["stream"] = max(min(widths["stream"] + spare(), longest_name), len("stream"))
    if "progress" in widths:
        widths["progress"] = min(widths["progress"] + spare(), BAR_WIDTHS[1])
    return widths


def _cells(row: Row) -> dict[str, RenderableType]:
    """Heading -> content of the cell; a heading without content is left out."""
    cells: dict[str, RenderableType] = {
        "stream": Text(row.stream_id),
        "state": Text(row.phase, style=_PHASE_STYLES.get(row.phase, "dim")),
    }
    status = row.status
    if status is None:
        return cells
    cells |= {"frames": row.frames, "tracks": str(status.num_tracks)}
    if row.num_expected and status.phase != "failed":
        total = max(status.seq if row.over else row.num_expected, 1)
        cells["progress"] = ProgressBar(total=total, completed=min(status.seq, total))
    if row.fps is not None:
        cells["fps"] = f"{row.fps:.1f}"
    if not row.over:
        cells["instances"] = str(status.num_instances)
    if row.num_dropped:
        cells["dropped"] = Text(str(row.num_dropped), style="yellow")
    if row.left_s is not None:
        cells["left"] = _clock_text(row.left_s)
    return cells


def _clock_text(seconds: float) -> str:
    """`1:05`, or `2:03:04` from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
