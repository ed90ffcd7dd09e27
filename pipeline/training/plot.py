"""Plots of the losses and metrics of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.errors import OutputError, UsageError

_LOSSES = ("loss", "classes", "boxes", "masks", "objectness", "proposals")


def plot_losses(metrics: Path, picture: Path) -> None:
    """Plots a metrics.jsonl as PNG: losses in the upper half, average precision and learning rate in the lower half.

    Raises UsageError if matplotlib is not installed, OutputError if the picture cannot be written.
    """
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()] if metrics.is_file() else []
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "box_ap" in line]
    figure = _figure()
    above, below = figure.subplots(2, 1, sharex=True)
    for name in _LOSSES:
        above.plot(*_points(steps, name), label=name, linewidth=1.6 if name == "loss" else 0.9)
    above.set_ylabel("loss")
    above.set_ylim(bottom=0)
    above.legend(ncols=3, fontsize=8)
    for name in ("box_ap", "mask_ap"):
        below.plot(*_points(validations, name), "o-", label=name.replace("_ap", " AP"))
    below.set_ylabel("average precision")
    below.set_ylim(bottom=0)
    below.set_xlabel("step")
    if validations:
        below.legend(fontsize=8)
    rate = below.twinx()
    rate.plot(*_points(steps, "lr"), color="grey", linewidth=0.8)
    rate.set_ylabel("learning rate")
    try:
        figure.savefig(picture)
    except OSError as error:
        raise OutputError(f"cannot write {picture}: {str(error.strerror).lower()}") from None


def _points(lines: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    with_name = [line for line in lines if name in line]
    return [line["step"] for line in with_name], [line[name] for line in with_name]


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("the plot of the losses needs matplotlib: pip install 'maskstream[train]'") from None
    return Figure(figsize=(9, 7), layout="constrained")
