"""RoIAlign over a feature pyramid on the CPU and, if available, on CUDA, beside torchvision's MultiScaleRoIAlign.

    python -m benchmarks.roi_align [--runs N] [--threads N] [--case TEXT] [--json]

CPU: our kernel reads channels-last maps in float32 or bf16. torchvision reads NCHW maps in float32 only. In cases "from
bf16", torchvision's time includes the conversion of bf16 channels-last maps.

CUDA: both get channels-last bf16 maps; torchvision runs under autocast, which converts them. Our kernel is timed twice:
called from Python, and captured in a CUDA graph as in the engine. torchvision's kernel synchronises with the host and
cannot be captured.

Box centres are uniformly distributed over the picture, and box sides log-uniformly from 16 to 600 pixels (250 for
`street`) before clipping to the picture. Both use the same number of threads, allocate their result and take turns.
Before a figure is printed, the results are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import MultiScaleRoIAlign

from benchmarks import cuda, report
from ops.roi_align import infer_scales, roi_align

STRIDES = (4, 8, 16, 32)

_MAX_ACTIVATION = 6.5
"""magnitude that no map value exceeds; the tolerances assume it (the values are normally distributed)"""


class Case(NamedTuple):
    name: str
    image_hw: tuple[int, int]
    channels: int
    num_boxes: int
    """number of boxes of each image"""
    side: int
    """output side in cells"""
    bf16: bool
    from_bf16: bool = False
    """whether torchvision starts from bf16 maps too"""
    num_images: int = 1


CASES = [
    Case("1000 7x7, 256 channels, fp32", (800, 1344), 256, 1000, 7, bf16=False),
    Case("1000 7x7, 256 channels, bf16", (800, 1344), 256, 1000, 7, bf16=True),
    Case("100 14x14, 256 channels, fp32", (800, 1344), 256, 100, 14, bf16=False),
    Case("100 14x14, 256 channels, bf16", (800, 1344), 256, 100, 14, bf16=True),
    Case("street: 300 7x7, 128 channels, fp32", (384, 704), 128, 300, 7, bf16=False),
    Case("street: 300 7x7, 128 channels, from bf16", (384, 704), 128, 300, 7, bf16=True, from_bf16=True),
    Case("street: 20 14x14, 128 channels, fp32", (384, 704), 128, 20, 14, bf16=False),
    Case("street: 20 14x14, 128 channels, from bf16", (384, 704), 128, 20, 14, bf16=True, from_bf16=True),
]
CUDA_CASES = [
    Case("CUDA: 1000 7x7, 256 channels, bf16", (800, 1344), 256, 1000, 7, bf16=True),
    Case("CUDA: 100 14x14, 256 channels, bf16", (800, 1344), 256, 100, 14, bf16=True),
    Case("CUDA: 8 images, 1000 7x7 each, 256 channels, bf16", (800, 1344), 256, 1000, 7, bf16=True, num_images=8),
    Case("CUDA: 8 images, 100 14x14 each, 256 channels, bf16", (800, 1344), 256, 100, 14, bf16=True, num_images=8),
]


class Inputs(NamedTuple):
    levels: list[torch.Tensor]
    """(B, C, H, W), channels last, in the dtype of the case"""
    scales: tuple[float, ...]
    boxes_xyxy: NDArray[np.float32]
    """(N, 4) boxes of all images, concatenated"""
    image_idx: NDArray[np.int64]


def inputs_of(case: Case) -> Inputs:
    torch.manual_seed(0)
    height, width = case.image_hw
    level_hws = [(height // stride, width // stride) for stride in STRIDES]
    maps = [torch.randn(case.num_images, case.channels, *hw) for hw in level_hws]
    levels = [level.to(memory_format=torch.channels_last) for level in maps]
    if case.bf16:
        levels = [level.bfloat16() for level in levels]
    image_idx = np.repeat(np.arange(case.num_images), case.num_boxes)
    return Inputs(levels, infer_scales(level_hws, case.image_hw), _boxes(case), image_idx)


def _boxes(case: Case) -> NDArray[np.float32]:
    """(N, 4) boxes inside the picture."""
    random = np.random.default_rng(0)
    height, width = case.image_hw
    largest_px = 600 if width > 1000 else 250
    num = case.num_images * case.num_boxes
    half = np.exp(random.uniform(np.log(16), np.log(largest_px), (num, 2))) / 2
    centre = random.uniform(0, [width, height], (num, 2))
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    inside: NDArray[np.float64] = np.clip(boxes, 0, [width, height, width, height])
    return inside.astype(np.float32)


def _cpu_calls(case: Case) -> tuple[Callable[[], NDArray[Any]], Callable[[], torch.Tensor]]:
    """The calls of our kernel, which returns (N, side, side, C), and of torchvision: (N, C, side, side)."""
    inputs = inputs_of(case)
    nchw = {str(stride): level.float().contiguous() for stride, level in zip(STRIDES, inputs.levels, strict=True)}
    bits = [level.view(torch.uint16) if case.bf16 else level for level in inputs.levels]
    nhwc = [level.permute(0, 2, 3, 1).numpy() for level in bits]
    boxes_of_image = [torch.from_numpy(inputs.boxes_xyxy)]
    pool = MultiScaleRoIAlign(list(nchw), case.side, 2)

    def ours() -> NDArray[Any]:
        return roi_align(nhwc, inputs.scales, inputs.boxes_xyxy, inputs.image_idx, (case.side, case.side))

    def peer() -> torch.Tensor:
        read = nchw
        if case.from_bf16:
            read = {name: level.float().contiguous() for name, level in zip(nchw, inputs.levels, strict=True)}
        pooled: torch.Tensor = pool(read, boxes_of_image, [case.image_hw])
        return pooled

    return ours, peer


def _cuda_calls(case: Case) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """The calls of our kernel and of torchvision under autocast; both return (N, C, side, side) on CUDA."""
    from ops.roi_align_triton import roi_align as roi_align_on_cuda

    inputs = inputs_of(case)
    levels = [level.cuda() for level in inputs.levels]
    boxes, image_idx = torch.from_numpy(inputs.boxes_xyxy).cuda(), torch.from_numpy(inputs.image_idx).cuda()
    boxes_of_image = list(boxes.split(case.num_boxes))
    named = {str(stride): level for stride, level in zip(STRIDES, levels, strict=True)}
    pool = MultiScaleRoIAlign(list(named), case.side, 2)

    def ours() -> torch.Tensor:
        return roi_align_on_cuda(levels, inputs.scales, boxes, image_idx, (case.side, case.side))

    def peer() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            pooled: torch.Tensor = pool(named, boxes_of_image, [case.image_hw] * case.num_images)
        return pooled

    return ours, peer


def _cpu_fault(case: Case, found: NDArray[Any], expected: torch.Tensor) -> str | None:
    """What differs, or None. The tolerance is the rounding of a mean of 16 cells, and of the result to bf16."""
    values = torch.from_numpy(found)
    values = values.view(torch.bfloat16).float() if case.bf16 else values
    wanted = expected.permute(0, 2, 3, 1)
    return _off(values, wanted, 24 * 2.0**-24 * _MAX_ACTIVATION + (2.0**-8 if case.bf16 else 0.0) * wanted.abs())


def cuda_fault(case: Case, found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Return how the results differ, or None.

    The tolerance has two parts. The compilers fuse different multiplications and additions, so the position of a sample
    differs by up to 4 roundings on the widest map, and neighbouring cells differ by at most 2 * _MAX_ACTIVATION. Then
    both results are rounded to bf16.
    """
    moved_cells = 4 * 2.0**-24 * case.image_hw[1] / STRIDES[0]
    wanted = expected.float()
    return _off(found.float(), wanted, moved_cells * 2 * _MAX_ACTIVATION + 2 * 2.0**-8 * wanted.abs())


def _off(found: torch.Tensor, wanted: torch.Tensor, tolerance: torch.Tensor) -> str | None:
    off = (found - wanted).abs()
    return None if bool((off <= tolerance).all()) else f"off by {float(off.max()):.2g}"


@torch.inference_mode()
def measure_cuda(
    table: report.Report, budget: cuda.Budget, cases: Sequence[Case] = CUDA_CASES, num_runs: int = 25
) -> Mapping[str, Any]:
    """Add two rows for each case: our kernel called from Python, and replayed in a CUDA graph.

    Returns the names of the cases that were skipped because `budget` ran out.
    """
    skipped = []
    for case in cases:
        if budget.left_s <= 0:
            skipped.append(case.name)
            continue
        ours, peer = _cuda_calls(case)
        report.gate(case.name, cuda_fault(case, ours(), peer()))
        calls = [ours, cuda.captured(ours), peer]
        called_ms, captured_ms, peer_ms = report.take_turns(calls, num_runs, torch.cuda.synchronize, repeats=10)
        table.add(case.name, called_ms, peer_ms)
        table.add(f"{case.name}, in a CUDA graph", captured_ms, peer_ms)
    return {"skipped": skipped}


@torch.inference_mode()
def main() -> None:
    parser = report.arguments("benchmarks.roi_align", __doc__, num_runs=25)
    report.add_threads(parser)
    arguments = parser.parse_args()
    cuda_cases = CUDA_CASES if torch.cuda.is_available() else []
    names = report.selected([case.name for case in [*CASES, *cuda_cases]], arguments.case)
    device = report.use_threads(arguments.threads)
    packages = ("torch", "torchvision", "numba")
    if any(case.name in names for case in CASES):
        table = report.Report(device, packages, "torchvision", as_json=arguments.json)
        for case in (case for case in CASES if case.name in names):
            ours, peer = _cpu_calls(case)
            report.gate(case.name, _cpu_fault(case, ours(), peer()))
            table.add(case.name, *report.take_turns([ours, peer], arguments.runs))
    chosen = [case for case in cuda_cases if case.name in names]
    if chosen:
        packages = ("torch", "torchvision", "triton")
        table = report.Report(torch.cuda.get_device_name(), packages, "torchvision", as_json=arguments.json)
        measure_cuda(table, cuda.Budget(math.inf), chosen, arguments.runs)


if __name__ == "__main__":
    main()
