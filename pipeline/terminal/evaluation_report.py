"""Prints the metrics of the verb `evaluate` as tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.console import make_console

_MAX_NAMES = 6
_MEANING = {
    "AP": "average precision, IoU 0.50:0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    "APs": "objects under 32x32 px",
    "APm": "up to 96x96 px",
    "APl": "larger ones",
    "AR1": "average recall, 1 detection per picture",
    "AR10": "10 detections per picture",
    "AR100": "100 detections per picture",
    "ARs": "objects under 32x32 px",
    "ARm": "up to 96x96 px",
    "ARl": "larger ones",
}

_MOT_NAMES = {
    "num_objects": "objects",
    "num_ids": "ids",
    "deta": "DetA",
    "assa": "AssA",
    "smotsa": "sMOTSA",
    "frag": "Frag",
}


def print_coco(metrics: dict[str, Any]) -> None:
    """Print the metrics of `evaluate coco` to standard output."""
    console, num = make_console(sys.stdout), metrics["num_pictures"]
    _print_header(console, metrics, f"{num} picture{'s' if num > 1 else ''} of {metrics['data']}")
    kinds = [kind for kind in ("box", "mask") if metrics[kind] is not None]
    _print_columns(
        console,
        ["", "", *kinds],
        [[name, meaning, *(metrics[kind][name] for kind in kinds)] for name, meaning in _MEANING.items()],
    )
    columns = {f"{kind} AP": f"{kind}_ap" for kind in kinds}
    whole = {"num_objects": metrics["num_objects"]} | {f"{kind}_ap": metrics[kind]["AP"] for kind in kinds}
    if "mask" in kinds:
        columns |= {"IoU": "iou", "Dice": "dice"}
        whole |= {"iou": metrics["mean_iou"], "dice": metrics["mean_dice"]}
    rows = [*metrics["classes"].items(), ("all", whole)]
    _print_columns(
        console,
        ["class", "objects", *columns],
        [[label, row["num_objects"], *(row[name] for name in columns.values())] for label, row in rows],
    )
    if "mask" in kinds:
        _say(
            console,
            f"IoU and Dice are over all pixels of a class, for detections that score at least {metrics['conf']:g}.",
        )
    else:
        _say(console, f"No mask metrics: {metrics['no_masks']}.")
    if metrics["left_out_classes"]:
        names = metrics["left_out_classes"]
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        _say(
            console,
            f"Classes that {metrics['model']} does not know are left out: {', '.join(names[:_MAX_NAMES])}{more}.",
        )
    _say(
        console,
        f"Speed: {metrics['pictures_per_s']:.1f} pictures/s including reading; "
        f"the engine takes {metrics['engine_ms']:.0f} ms per picture (median).",
    )


def print_video(metrics: dict[str, Any]) -> None:
    """Print the metrics of `evaluate video` to standard output."""
    console = make_console(sys.stdout)
    scene = metrics["scene"]
    _print_header(
        console,
        metrics,
        f"{scene['num_frames']} frames of {scene['width']}x{scene['height']} at {scene['fps']:g} fps",
    )
    pipeline, engine_alone = metrics["pipeline"], metrics["engine_alone"]
    rows: list[list[Any]] = []
    for kind in ("mask", "box"):
        if pipeline[kind] is not None:
            rows += [
                [f"{kind} {name}", pipeline[kind][name], engine_alone[kind][name]] for name in ("AP", "AP50", "AP75")
            ]
            of_class = f"{kind}_ap_of_class"
            rows += [
                [f"{kind} AP, {label}", pipeline[of_class][label], engine_alone[of_class][label]]
                for label in metrics["classes"]
            ]
    rows += [[name.upper(), pipeline[name], engine_alone[name]] for name in ("mota", "motsa", "idf1")]
    rows += [[name, pipeline[f"num_{name}"], engine_alone[f"num_{name}"]] for name in ("missed", "false", "switches")]
    _print_columns(
        console,
        ["", "pipeline", "engine alone", "difference"],
        [[*row, _difference(*row[1:])] for row in rows],
    )
    if metrics["no_masks"]:
        _say(console, f"No mask metrics: {metrics['no_masks']}.")
    _say(
        console,
        f"{metrics['num_objects']} objects over all frames. Objects with fewer than {metrics['min_area_px']} visible "
        "pixels are ignored.",
    )
    _say(console, "Engine alone: uncompressed frames at full size, without codec and Redis, with the same tracker.")


def print_mot(metrics: dict[str, Any]) -> None:
    """Print the metrics of `evaluate mot` to standard output."""
    console, num = make_console(sys.stdout), len(metrics["sequences"])
    what = "results" if metrics["tracker"] is None else "detections, tracked by MaskStream's tracker"
    _say(
        console,
        f"{what} on {num} sequence{'s' if num > 1 else ''} of {metrics['gt']}, matched by IoU of {metrics['iou_of']}",
    )
    rows = [*metrics["sequences"].items(), ("all", metrics["combined"])]
    counts = ["num_objects", "num_ids", "fp", "fn", "idsw", "frag", "mt", "ml"]
    shares = [name for name in metrics["combined"] if name not in counts]
    for names in (shares, counts):
        _print_columns(
            console,
            ["sequence", *(_MOT_NAMES.get(name, name.upper()) for name in names)],
            [[label, *(row[name] for name in names)] for label, row in rows],
        )
    left_out = "objects in ignored regions" if metrics["iou_of"] == "masks" else "ground truth rows with flag 0"
    _say(console, f"Computed by TrackEval {metrics['trackeval']}, excluding {left_out}; no other preprocessing.")


def _print_header(console: Console, metrics: dict[str, Any], what: str) -> None:
    name = metrics["model"] if metrics["weights"] is None else f"{metrics['model']} with {metrics['weights']}"
    _say(console, f"{name} ({metrics['precision']}, {metrics['device']}) on {what}")


def _say(console: Console, text: str) -> None:
    """Print one line, without wrapping it to the terminal."""
    console.print(text, soft_wrap=True)


def _difference(pipeline: float | None, engine_alone: float | None) -> str:
    """The signed difference of two metrics as text; empty if one of them is missing."""
    if pipeline is None or engine_alone is None:
        return ""
    difference = pipeline - engine_alone
    return f"{difference:+d}" if isinstance(difference, int) else f"{difference:+.3f}"


def _print_columns(console: Console, headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for number, heading in enumerate(headings):
        is_text = number == 0 or not heading
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(_cell, row))
    console.print()
    console.print(table)
    console.print()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
