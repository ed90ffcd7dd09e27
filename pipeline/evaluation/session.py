"""What the evaluations share: the engine, the bar on the terminal, the files, which pictures to show."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.coco.precision import Precision
from pipeline.console import make_console
from pipeline.contract.config import JobConfig
from pipeline.errors import UsageError
from pipeline.evaluation.truth import check_pycocotools
from pipeline.exports.files import output_error, write_atomically
from pipeline.models.registry import ModelSpec, default_model, get_model
from pipeline.models.weights_table import spec_of_weights

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine

NUM_SHEET_ROWS = 6


def judged_spec(config: JobConfig) -> ModelSpec:
    """The model, whose boxes or masks are to be judged, with the classes of its weights. Raises UsageError."""
    check_pycocotools()
    spec = get_model(config.model or default_model(config.device))
    if spec.output == "keypoints":
        raise UsageError(
            f"model {spec.name} finds keypoints, which are not evaluated: expected one that finds boxes or masks"
        )
    return spec_of_weights(spec, config.weights)


def load(config: JobConfig) -> Engine:
    """The engine of `judged_spec`. Raises UsageError."""
    from pipeline.engine.engine import load_engine

    name = config.model or default_model(config.device)
    return load_engine(name, weights=config.weights, device=config.device, precision=config.precision)


@contextlib.contextmanager
def bar(text: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error where that is a terminal; what it gives is to be called after each step."""
    console = make_console(sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda: progress.advance(task)


def make_folder(output: Path | None) -> Path | None:
    """The folder for the files, made before the work begins. Raises OutputError."""
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(output, error) from None
    return output


def write_json(path: Path, value: Any) -> None:
    """Raises OutputError."""
    write_atomically(path, msgspec.json.encode(value))


def figure(value: float) -> float | None:
    """For JSON: rounded to 6 digits, None for NaN."""
    return None if math.isnan(value) else round(value, 6)


def figures_of(precision: Precision | None) -> dict[str, float | None] | None:
    """pycocotools' twelve by name."""
    return None if precision is None else {name: figure(value) for name, value in precision.figures.items()}


def about(engine: Engine, config: JobConfig) -> dict[str, Any]:
    """What was judged, for JSON."""
    weights = None if config.weights is None else str(config.weights)
    return {
        "model": engine.spec.name,
        "weights": weights,
        "device": engine.device_name,
        "precision": engine.precision,
    }


def worst_and_best(qualities: Sequence[float | None], *, apart: int = 1) -> tuple[list[int], list[int]]:
    """Indices of up to NUM_SHEET_ROWS pictures each, the most extreme first, at least `apart` from one another.

    Pictures without a quality are left out.
    """
    judged = [(quality, index) for index, quality in enumerate(qualities) if quality is not None]
    return _spread(sorted(judged), apart), _spread(sorted(judged, key=lambda pair: (-pair[0], pair[1])), apart)


def _spread(ranked: Sequence[tuple[float, int]], apart: int) -> list[int]:
    taken: list[int] = []
    for _, index in ranked:
        if len(taken) < NUM_SHEET_ROWS and all(abs(index - other) >= apart for other in taken):
            taken.append(index)
    return taken
