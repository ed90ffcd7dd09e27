"""The command `train`: a run that ends well, or is stopped and can be taken up again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import ops  # noqa: F401 (sets the cache folders, before torch is imported)
from pipeline.training.reporting import Reporter
from pipeline.training.settings import TrainSettings
from pipeline.training.trainer import Trainer


def train(settings: TrainSettings) -> bool:
    """Runs or resumes it; whether it reached its end. Raises MaskStreamError."""
    reporter = Reporter()
    with _stop_signals() as stop:
        trainer = Trainer(settings, reporter)
        try:
            finished = trainer.run(lambda: bool(stop))
        finally:
            reporter.close()
    if finished:
        print(f"{trainer.weights_path} after {trainer.step} steps", file=sys.stderr)
    else:
        print(
            f"stopped after {trainer.step} steps; go on with the same command and --resume "
            f"({settings.output / 'checkpoint.pt'})",
            file=sys.stderr,
        )
    return finished


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The first SIGINT or SIGTERM is noted in the list, the second ends the process at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
