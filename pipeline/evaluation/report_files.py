"""The files that an evaluation writes: their folder, JSON, and the choice of pictures for the sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipeline.coco.average_precision import AveragePrecision
from pipeline.exports.files import output_error, write_atomically

NUM_SHEET_ROWS = 6


def make_folder(output: Path | None) -> Path | None:
    """Creates the output folder and returns it, before the evaluation begins. Raises OutputError."""
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(output, error) from None
    return output


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file. Raises OutputError."""
    write_atomically(path, msgspec.json.encode(value))


def json_number(value: float) -> float | None:
    """The number rounded to 6 decimals, or None for NaN, which JSON does not have."""
    return None if math.isnan(value) else round(value, 6)


def json_metrics(precision: AveragePrecision | None) -> dict[str, float | None] | None:
    """COCO's twelve metrics by name."""
    return None if precision is None else {name: json_number(value) for name, value in precision.metrics.items()}


def worst_and_best(qualities: Sequence[float | None], *, apart: int = 1) -> tuple[list[int], list[int]]:
    """The indices of up to NUM_SHEET_ROWS lowest and of as many highest qualities, the most extreme first.

    apart: smallest difference between two indices of one list. Pictures without a quality (None) are left out.
    """
    known = [(quality, index) for index, quality in enumerate(qualities) if quality is not None]
    return _first_apart(sorted(known), apart), _first_apart(sorted(known, key=lambda pair: (-pair[0], pair[1])), apart)


def _first_apart(ranked: Sequence[tuple[float, int]], apart: int) -> list[int]:
    indices: list[int] = []
    for _, index in ranked:
        if len(indices) < NUM_SHEET_ROWS and all(abs(index - other) >= apart for other in indices):
            indices.append(index)
    return indices
