"""RoIAlign over a feature pyramid on the CPU, against torchvision's MultiScaleRoIAlign.

    python -m benchmarks.roi_align [--runs N] [--threads N] [--json]

Ours reads channels-last maps in float32 or bf16. torchvision reads what it can: NCHW in float32; where a case says
"from bf16", what a bf16 network gives it has to be converted first, and that is part of its time. Boxes lie anywhere in
the picture, sides from 16 to 600 pixels (250 for `street`) with an even spread of their logarithm. Both get the same
threads and make a result of their own; they take turns, and the ratio is the median over the turns. Before a figure is
given the results are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

# As the workers do: OpenMP's threads spin while they wait, torch's on the core that numba's are about to need, and read
# this when they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import MultiScaleRoIAlign

from ops.roi_align import infer_scales, roi_align

STRIDES = (4, 8, 16, 32)


class Case(NamedTuple):
    name: str
    image_hw: tuple[int, int]
    channels: int
    num_boxes: int
    side: int
    bf16: bool
    from_bf16: bool = False
    """the peer starts from the bf16 maps too"""


CASES = [
    Case("1000 7x7, 256 channels, fp32", (800, 1344), 256, 1000, 7, bf16=False),
    Case("1000 7x7, 256 channels, bf16", (800, 1344), 256, 1000, 7, bf16=True),
    Case("100 14x14, 256 channels, fp32", (800, 1344), 256, 100, 14, bf16=False),
    Case("100 14x14, 256 channels, bf16", (800, 1344), 256, 100, 14, bf16=True),
    Case("street: 300 7x7, 128 channels, fp32", (320, 576), 128, 300, 7, bf16=False),
    Case("street: 300 7x7, 128 channels, from bf16", (320, 576), 128, 300, 7, bf16=True, from_bf16=True),
    Case("street: 20 14x14, 128 channels, fp32", (320, 576), 128, 20, 14, bf16=False),
    Case("street: 20 14x14, 128 channels, from bf16", (320, 576), 128, 20, 14, bf16=True, from_bf16=True),
]


def _boxes(case: Case) -> NDArray[np.float32]:
    """(N, 4) within the picture."""
    random = np.random.default_rng(0)
    height, width = case.image_hw
    largest_px = 600 if width > 1000 else 250
    half = np.exp(random.uniform(np.log(16), np.log(largest_px), (case.num_boxes, 2))) / 2
    centre = random.uniform(0, [width, height], (case.num_boxes, 2))
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    inside: NDArray[np.float64] = np.clip(boxes, 0, [width, height, width, height])
    return inside.astype(np.float32)


def _calls(case: Case) -> tuple[Callable[[], NDArray[Any]], Callable[[], torch.Tensor]]:
    """Ours, (N, side, side, C), and torchvision's, (N, C, side, side)."""
    torch.manual_seed(0)
    height, width = case.image_hw
    maps = [torch.randn(1, case.channels, height // stride, width // stride) for stride in STRIDES]
    channels_last = [level.to(memory_format=torch.channels_last) for level in maps]
    if case.bf16:
        channels_last = [level.bfloat16() for level in channels_last]
    nchw = {str(stride): level.float().contiguous() for stride, level in zip(STRIDES, channels_last, strict=True)}
    levels = [level.view(torch.uint16) if case.bf16 else level for level in channels_last]
    nhwc = [level.permute(0, 2, 3, 1).numpy() for level in levels]
    scales = infer_scales([level.shape[1:3] for level in nhwc], case.image_hw)
    boxes = _boxes(case)
    image_idx = np.zeros(len(boxes), np.int64)
    boxes_of_image = [torch.from_numpy(boxes)]
    pool = MultiScaleRoIAlign(list(nchw), case.side, 2)

    def ours() -> NDArray[Any]:
        return roi_align(nhwc, scales, boxes, image_idx, (case.side, case.side))

    def peer() -> torch.Tensor:
        inputs = nchw
        if case.from_bf16:
            inputs = {name: level.float().contiguous() for name, level in zip(nchw, channels_last, strict=True)}
        pooled: torch.Tensor = pool(inputs, boxes_of_image, [case.image_hw])
        return pooled

    return ours, peer


def _check(case: Case, found: NDArray[Any], expected: torch.Tensor) -> None:
    """Ends the program unless they agree: to the rounding of a mean of 16 cells below 6.5, and then of it to bf16."""
    values = torch.from_numpy(found)
    values = values.view(torch.bfloat16).float() if case.bf16 else values
    wanted = expected.permute(0, 2, 3, 1)
    tolerance = 24 * 2.0**-24 * 6.5 + (2.0**-8 if case.bf16 else 0.0) * wanted.abs()
    if not bool(((values - wanted).abs() <= tolerance).all()):
        sys.exit(f"{case.name}: parity failed, off by {float((values - wanted).abs().max()):.2g}: no figures")


def _measure(case: Case, num_runs: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Milliseconds of each run of ours and of torchvision's, in turns."""
    calls = _calls(case)
    _check(case, calls[0](), calls[1]())
    times_ms = np.empty((num_runs, 2))
    for run in range(num_runs):
        for which, call in enumerate(calls):
            begin_s = time.perf_counter()
            call()
            times_ms[run, which] = (time.perf_counter() - begin_s) * 1e3
    return times_ms[:, 0], times_ms[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roi_align", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=25, help="turns per case (default 25)")
    parser.add_argument("--threads", type=int, default=numba.get_num_threads(), help="(default: all cores)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    numba.set_num_threads(arguments.threads)
    device = f"{platform.machine()}, {arguments.threads} threads"
    versions = {name: version(name) for name in ("torch", "torchvision", "numba")}
    if not arguments.json:
        print(f"{device}, {versions}; milliseconds")
        print(f"{'':>42} {'p20':>7} {'p50':>7} {'p80':>7} {'torchvision':>12} {'ratio':>6}")
    for case in CASES:
        ours_ms, peer_ms = _measure(case, arguments.runs)
        low, middle, high = np.percentile(ours_ms, [20, 50, 80])
        peer, ratio = float(np.median(peer_ms)), float(np.median(peer_ms / ours_ms))
        row = {"case": case.name, "ours": round(float(middle), 3), "peer": round(peer, 3), "ratio": round(ratio, 2)}
        row |= {"unit": "ms", "p20": round(float(low), 3), "p80": round(float(high), 3)}
        row |= {"device": device, "versions": versions}
        line = f"{case.name:>42} {low:7.2f} {middle:7.2f} {high:7.2f} {peer:12.2f} {ratio:6.1f}"
        print(json.dumps(row) if arguments.json else line, flush=True)


if __name__ == "__main__":
    main()
