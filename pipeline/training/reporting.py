"""Reports of a training run: metrics.jsonl, a progress line, a plot of the losses."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.text import Text

from pipeline.coco.average_precision import CocoMetrics
from pipeline.console import make_console
from pipeline.training.plot import plot_losses

_LINE_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a run after `step` steps.

    losses       means since the last report
    progress     completed share of the run, 0 to 1
    elapsed_s    training time so far, including the time before the run was resumed
    left_s       estimate of the remaining time
    """

    step: int
    epoch: int
    losses: dict[str, float]
    lr: float
    pictures_per_s: float
    elapsed_s: float
    left_s: float
    progress: float


class Reporter:
    """Writes metrics.jsonl into the folder of the run, and a progress line to standard error."""

    def __init__(self) -> None:
        self._console = make_console(sys.stderr)
        self._live: Live | None = None
        self._line_time = -math.inf
        self._folder = Path()

    def begin(self, folder: Path, step: int) -> None:
        """Starts reporting. Of an existing metrics.jsonl, the lines up to `step` are kept; none if `step` is 0."""
        self._folder = folder
        path = self._metrics
        if path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            path.write_text("".join(f"{line}\n" for line in kept) if step else "", encoding="utf-8")
        if self._console.is_terminal:
            self._live = Live(Text(""), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()

    def warn(self, line: str) -> None:
        """Prints a warning to standard error."""
        print(f"maskstream: warning: {line}", file=sys.stderr, flush=True)

    def step(self, report: Report) -> None:
        line: dict[str, Any] = {
            "step": report.step,
            "epoch": report.epoch,
            "loss": round(sum(report.losses.values()), 5),
            **{name: round(value, 5) for name, value in report.losses.items()},
            "lr": report.lr,
            "pictures_per_s": round(report.pictures_per_s, 2),
            "elapsed_s": round(report.elapsed_s, 1),
            "left_s": round(report.left_s, 1) if math.isfinite(report.left_s) else None,
        }
        self._append(line)
        parts = " ".join(f"{name} {value:.3f}" for name, value in report.losses.items())
        self._show(
            f"{report.progress:4.0%} step {report.step} loss {sum(report.losses.values()):.3f} ({parts}) "
            f"{report.pictures_per_s:.1f} pictures/s, {_duration(report.left_s)} left"
        )

    def validation(self, step: int, epoch: int, precision: CocoMetrics) -> None:
        line: dict[str, Any] = {"step": step, "epoch": epoch, "box_ap": round(precision.boxes.ap, 4)}
        text = f"validation after step {step}: box AP {precision.boxes.ap:.3f}"
        kind = precision.boxes
        if precision.masks is not None:
            kind = precision.masks
            line["mask_ap"] = round(kind.ap, 4)
            text += f", mask AP {kind.ap:.3f}"
        line["ap_per_class"] = {name: round(ap, 4) for name, ap in kind.per_class.items() if math.isfinite(ap)}
        self._append(line)
        self._console.print(
            text + " (" + ", ".join(f"{name} {ap:.3f}" for name, ap in line["ap_per_class"].items()) + ")"
        )

    def finish(self) -> None:
        """Stops reporting and draws loss.png."""
        self.close()
        plot_losses(self._metrics, self._folder / "loss.png")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def _metrics(self) -> Path:
        return self._folder / "metrics.jsonl"

    def _append(self, line: dict[str, Any]) -> None:
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _show(self, text: str) -> None:
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"))
        elif time.monotonic() - self._line_time > _LINE_INTERVAL_S:
            self._line_time = time.monotonic()
            print(text, file=sys.stderr, flush=True)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return sys.maxsize


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
