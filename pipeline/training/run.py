"""A training run that can be interrupted and resumed, for the command `train`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import pipeline.engine  # noqa: F401 (sets the cache folders; must come before torchvision)
from pipeline.training.reporting import Reporter
from pipeline.training.settings import TrainSettings
from pipeline.training.trainer import Trainer


def train(settings: TrainSettings) -> bool:
    """Runs or resumes a training run; returns whether it reached its end. Raises MaskStreamError."""
    reporter = Reporter()
    with _stop_signals() as received:
        trainer = Trainer(settings, reporter)
        try:
            finished = trainer.run(lambda: bool(received))
        finally:
            reporter.close()
    if finished:
        print(f"{trainer.weights_path} after {trainer.step} steps", file=sys.stderr)
    else:
        print(
            f"stopped after {trainer.step} steps; continue with the same command and --resume "
            f"({settings.output / 'checkpoint.pt'})",
            file=sys.stderr,
        )
    return finished


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that receives the number of the first SIGINT or SIGTERM; the second one ends the process at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    previous = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
