"""Parity of the engine with torchvision's own forward pass in fp32, on pictures with ground truth.

    python -m benchmarks.parity --data VAL.json [--images DIR] [--num N] [--model NAME] [--weights FILE]
                                [--precision fp32|bf16|fp16] [--device DEVICE] [--threads N] [--json]

Both sides get the same I420 picture at the model's input size: the engine as it is, torchvision as float RGB by the
reference conversion, with its own resize disabled. Boxes and masks of both are in pixels of the picture in the file.

partners    share of torchvision's detections (with a score of at least 0.05) that match a detection of the engine
            one to one: same class, box IoU >= 0.99, score difference at most 0.001
masks       mask IoU of the matched pairs: the engine's RLE strings, and torchvision's pasting, > 0.5, encoded by
            pycocotools. torchvision truncates the widened box to whole pixels. If an edge is within 0.0001 px of a
            whole pixel, rounding decides between two pastings that differ by a pixel; those masks are not compared, and
            their share is printed
AP          COCO's AP of boxes and of masks of both, by pycocotools; a class that is not labelled on a picture
            (`labelled_category_ids` in VAL.json) is ignored there
conversion  AP of torchvision on the I420 picture, beside torchvision on the picture in the file, which torchvision
            resizes itself: the loss by 4:2:0 subsampling at the model's size. This row does not assess the engine.

Exits with 1 if a goal is missed. In fp32: 99.5 % of the detections match, all mask IoUs are at least 0.99, and AP is
equal within 0.001. In 16 bits: AP is equal within 0.005; the other figures have no goal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from benchmarks.judge import Torchvision, agreement, average_precision, model_frame
from benchmarks.report import add_threads, use_threads
from pipeline.contract.arrays import Detections
from pipeline.engine import load_engine
from pipeline.models.registry import MODELS, get_model

MIN_SHARE = 0.995
MIN_MASK_IOU = 0.99
MAX_SHARE_UNDECIDED = 0.01
MAX_AP_DIFFERENCE = {"fp32": 0.001, "bf16": 0.005, "fp16": 0.005}


class Results(NamedTuple):
    """Detections by image ID."""

    ours: dict[int, Detections]
    theirs: dict[int, Detections]
    """torchvision's detections on the same I420 picture"""
    direct: dict[int, Detections]
    """torchvision's detections on the picture in the file"""


class Figure(NamedTuple):
    """One row. `peer` is NaN if there is no peer; the goal "" cannot be missed."""

    case: str
    ours: float
    peer: float
    goal: str
    reached: bool


def figures(truth: COCO, results: Results, precision: str) -> list[Figure]:
    """All rows. The AP of masks is left out for a model that detects boxes only."""
    exact = precision == "fp32"
    agreed = agreement(list(results.ours.values()), list(results.theirs.values()))
    with_masks = any(found.rle_counts is not None for found in results.theirs.values())
    lines = [_judged("partners: share", agreed.share, MIN_SHARE, exact=exact)]
    if with_masks and len(agreed.mask_ious):
        good = float((agreed.mask_ious >= MIN_MASK_IOU).mean())
        lines.append(_judged("masks of partners: least IoU", agreed.least_iou, MIN_MASK_IOU, exact=exact))
        lines.append(Figure(f"masks of partners: share with IoU >= {MIN_MASK_IOU}", good, float("nan"), "", True))
        undecided, most = agreed.share_undecided, MAX_SHARE_UNDECIDED
        lines.append(Figure("masks of partners: undecided", undecided, float("nan"), f"<= {most}", undecided <= most))
    aps = [average_precision(truth, detections) for detections in results]
    limit = MAX_AP_DIFFERENCE[precision]
    for kind in ("boxes", "masks") if with_masks else ("boxes",):
        ours, theirs, _ = (getattr(ap, kind) for ap in aps)
        lines.append(Figure(f"AP of {kind}", ours, theirs, f"within {limit}", abs(ours - theirs) <= limit))
    for kind in ("boxes", "masks") if with_masks else ("boxes",):
        _, through, direct = (getattr(ap, kind) for ap in aps)
        lines.append(Figure(f"conversion: AP of {kind} through I420, from the file", through, direct, "", True))
    return lines


def _judged(case: str, value: float, least: float, *, exact: bool) -> Figure:
    if not exact:
        return Figure(case, value, float("nan"), "", True)
    return Figure(case, value, float("nan"), f">= {least}", value >= least)


def pictures(truth: COCO, folder: Path, num: int | None) -> Iterator[tuple[int, Image.Image]]:
    """(image ID, picture) of all images, or of `num` images spread evenly. Ends the program if a file is missing."""
    image_ids = sorted(truth.imgs)
    if num is not None and num < len(image_ids):
        image_ids = [image_ids[index * len(image_ids) // num] for index in range(num)]
    for image_id in image_ids:
        path = folder / truth.imgs[image_id]["file_name"]
        if not path.is_file():
            sys.exit(f"{path}: there is no such file; expected the pictures of --data (see --images)")
        with Image.open(path) as opened:
            yield image_id, opened.convert("RGB")


def read_truth(path: Path) -> COCO:
    """The annotations of a COCO file, without the output that pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="VAL.json", help="COCO annotations")
    parser.add_argument("--images", type=Path, metavar="DIR", help="(default: `images` beside VAL.json)")
    parser.add_argument("--num", type=int, help="number of pictures, spread over the file (default: all)")
    parser.add_argument("--model", choices=list(MODELS), default="street")
    parser.add_argument("--weights", metavar="FILE", help="(default: the model's own)")
    parser.add_argument("--precision", choices=list(MAX_AP_DIFFERENCE), default="fp32", help="of ours (default fp32)")
    parser.add_argument("--device", default="cpu", help="of the engine (default cpu); torchvision runs on the CPU")
    add_threads(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    if not arguments.data.is_file():
        sys.exit(f"--data {arguments.data}: there is no such file")
    cpu = use_threads(arguments.threads)
    spec = get_model(arguments.model)
    engine = load_engine(spec.name, weights=arguments.weights, device=arguments.device, precision=arguments.precision)
    torchvision = Torchvision.load(spec, arguments.weights)
    truth = read_truth(arguments.data)
    results = Results({}, {}, {})
    for image_id, picture in pictures(truth, arguments.images or arguments.data.parent / "images", arguments.num):
        frame = model_frame(picture, spec)
        (results.ours[image_id],) = engine.infer([frame], min_scores=[0.0], class_ids=[None])
        results.theirs[image_id] = torchvision.on_frame(frame)
        results.direct[image_id] = torchvision.on_picture(picture)
        if sys.stderr.isatty():
            print(f"\r{len(results.ours)} pictures", end="", file=sys.stderr, flush=True)
    lines = figures(truth, results, engine.precision)
    device = cpu if engine.device_name == "cpu" else engine.device_name
    about = {"model": spec.name, "precision": engine.precision, "pictures": len(results.ours)}
    about |= {"detections": sum(map(len, results.theirs.values())), "device": device}
    about["versions"] = {name: version(name) for name in ("torch", "torchvision", "pycocotools")}
    _print(lines, about, as_json=arguments.json)
    if not all(line.reached for line in lines):
        sys.exit(1)


def _print(lines: list[Figure], about: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        for line in lines:
            peer = None if np.isnan(line.peer) else round(line.peer, 6)
            row = {"case": line.case, "ours": round(line.ours, 6), "peer": peer}
            row["ratio"] = round(line.ours / line.peer, 6) if peer else None
            print(json.dumps(row | {"goal": line.goal or None, "reached": line.reached} | about))
        return
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{'':>52} {'ours':>9} {'torchvision':>12} {'difference':>11}  goal")
    for line in lines:
        peer, difference = ("", "") if np.isnan(line.peer) else (f"{line.peer:.5f}", f"{line.ours - line.peer:+.5f}")
        verdict = f"{line.goal}{'' if line.reached else ': MISSED'}"
        print(f"{line.case:>52} {line.ours:9.5f} {peer:>12} {difference:>11}  {verdict}".rstrip())


if __name__ == "__main__":
    main()
