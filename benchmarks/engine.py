"""Speed of the engine, from I420 frames to boxes and RLE strings, beside torchvision in fp32 and pycocotools.

    python -m benchmarks.engine [--runs N] [--threads N] [--case TEXT] [--profile] [--json]

Both sides get the same pictures of a synthetic street, at the size of the frames on the bus, and return boxes and masks
as COCO RLE strings of the source frame. The engine starts from I420 planes. torchvision starts from float RGB that is
made before the clock starts, without its resize; its pasted masks go through `> 0.5` and pycocotools' `encode`. Its
network is not modified: fp32 and NCHW. Both return the same number of detections, `detections_per_img`, because more
detections than that pass the score threshold of 0.05.

`street` has its trained weights. The ResNet has random weights, set so that each stage gets as many candidates and
proposals as with trained weights (see `benchmarks.networks`).

The engine is timed in fp32 and in the precision `auto`. Before a figure is printed, the detections of the engine in
fp32 are compared with torchvision's: 99 % must have a match of the same class with box IoU >= 0.99, a score difference
of at most 0.001 and mask IoU >= 0.99.

--profile adds the milliseconds per frame of each stage of the engine.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import peers, report
from benchmarks.judge import agreement, rgb_of
from benchmarks.networks import SCORE_THRESHOLD, network_for, street_frames
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.engine import Engine
from pipeline.engine.device import choose_dtype
from pipeline.models.registry import bus_hw, get_model

MIN_SHARE = 0.99
"""share of torchvision's detections that must have a match"""

STAGES = (
    "preprocess",
    "trunk",
    "proposals",
    "box_roi_align",
    "box_head",
    "boxes",
    "mask_roi_align",
    "mask_head",
    "paste",
)
"""names of the stages in torch's profiler"""

_PROFILED_RUNS = 3


class Case(NamedTuple):
    model: str
    source_wh: tuple[int, int]
    num_detections: int
    """number of detections on each frame"""
    batch: int = 1


CASES = {
    "maskrcnn_resnet50_fpn, 1080p, 15 detections": Case("maskrcnn_resnet50_fpn", (1920, 1080), 15),
    "maskrcnn_resnet50_fpn, 1080p, 100 detections": Case("maskrcnn_resnet50_fpn", (1920, 1080), 100),
    "maskrcnn_resnet50_fpn, 4 x 1080p, 15 detections": Case("maskrcnn_resnet50_fpn", (1920, 1080), 15, 4),
    "street, 768x432, 15 detections": Case("street", (768, 432), 15),
    "street, 1080p, 15 detections": Case("street", (1920, 1080), 15),
    "street, 4 x 1080p, 15 detections": Case("street", (1920, 1080), 15, 4),
}


def frames_of(case: Case) -> list[I420Frame]:
    height, width = bus_hw(get_model(case.model), case.source_wh[::-1])
    return street_frames((width, height), case.source_wh, case.batch)


def run_ours(engine: Engine, frames: list[I420Frame]) -> list[Detections]:
    return engine.infer(frames, min_scores=[SCORE_THRESHOLD] * len(frames), class_ids=[None] * len(frames))


def fault(case: Case, found: list[Detections], expected: list[Detections]) -> str | None:
    """How the engine's detections differ from torchvision's, or None."""
    nums = [len(of_frame) for of_frame in [*found, *expected]]
    if set(nums) != {case.num_detections}:
        return f"expected {case.num_detections} detections of each frame, got {nums}"
    same = agreement(found, expected)
    if same.share < MIN_SHARE:
        return f"only {same.share:.1%} of torchvision's detections have a match"
    if same.least_iou < 0.99:
        return f"a matched pair has a mask IoU of only {same.least_iou:.3f}"
    return None


def stages_ms(call: Callable[[], object], num_frames: int) -> dict[str, float]:
    """Milliseconds per frame of each stage on the CPU; `rest` is the time outside all stages."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(_PROFILED_RUNS):
            with record_function("whole"):
                call()
    frame_ms = {
        event.key: event.cpu_time_total / 1e3 / _PROFILED_RUNS / num_frames for event in profiler.key_averages()
    }
    stages = {name: frame_ms[name] for name in STAGES if name in frame_ms}
    return stages | {"rest": frame_ms["whole"] - sum(stages.values())}


def measure(table: report.Report, name: str, num_runs: int) -> dict[str, Engine]:
    """Add the rows of one case to the table. Returns the engines by precision."""
    case, spec = CASES[name], get_model(CASES[name].model)
    frames, source_hw = frames_of(case), case.source_wh[::-1]
    pictures = [rgb_of(frame) for frame in frames]
    cpu = torch.device("cpu")
    network = network_for(spec, frames[0], case.num_detections, cpu)
    precisions = dict.fromkeys(["fp32", choose_dtype("auto", cpu)[0]])
    engines = {precision: Engine(copy.deepcopy(network), spec, cpu, precision) for precision in precisions}
    found = peers.forward(network, pictures, source_hw)
    expected = peers.detections(found, peers.to_rle(found), spec, source_hw)
    report.gate(name, fault(case, run_ours(engines["fp32"], frames), expected))
    del found
    calls: list[Callable[[], object]] = [partial(run_ours, engine, frames) for engine in engines.values()]
    calls.append(lambda: peers.to_rle(peers.forward(network, pictures, source_hw)))
    *ours_ms, peer_ms = report.take_turns(calls, num_runs)
    for precision, times_ms in zip(engines, ours_ms, strict=True):
        table.add(f"{name}, {precision}", times_ms, peer_ms)
    return engines


def print_profiles(name: str, engines: dict[str, Engine], *, as_json: bool) -> None:
    """Print the milliseconds per frame of each stage."""
    frames = frames_of(CASES[name])
    for precision, engine in engines.items():
        stages = stages_ms(partial(run_ours, engine, frames), len(frames))
        rounded = {stage: round(time_ms, 2) for stage, time_ms in stages.items()}
        if as_json:
            print(json.dumps({"case": f"{name}, {precision}", "stages_ms": rounded}), flush=True)
        else:
            print("    " + ", ".join(f"{stage} {time_ms}" for stage, time_ms in rounded.items()), flush=True)


def main() -> None:
    parser = report.arguments("benchmarks.engine", __doc__, num_runs=9)
    report.add_threads(parser)
    parser.add_argument("--profile", action="store_true", help="also print the milliseconds per frame of each stage")
    arguments = parser.parse_args()
    device = report.use_threads(arguments.threads)
    packages = ("torch", "torchvision", "pycocotools", "numba")
    names = report.selected(list(CASES), arguments.case)
    table = report.Report(device, packages, "torchvision", as_json=arguments.json)
    for name in names:
        engines = measure(table, name, arguments.runs)
        if arguments.profile:
            print_profiles(name, engines, as_json=arguments.json)


if __name__ == "__main__":
    main()
