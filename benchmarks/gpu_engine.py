"""The engine on CUDA: parity, frames per second by batch size, share of the roofline, and stages.

The engine is timed from I420 planes on the host to boxes and RLE strings on the host, for several consecutive batches
as in a worker: the next batch is submitted before the result of the previous one is taken. There are two peers, with
the same pictures as float RGB on the device before the clock starts:

- torchvision unmodified: fp32 with torch's defaults; masks are pasted at the size of the source on the device,
  and neither copied to the host nor encoded
- torchvision's network in bf16 by autocast, channels last, to boxes and 28x28 masks without pasting

The ResNets have random weights (`benchmarks.networks`), with which they detect 100 instances on every picture.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection import MaskRCNN

from benchmarks import peers, report
from benchmarks.cuda import Budget, wait_for
from benchmarks.engine import MIN_SHARE, STAGES, run_ours
from benchmarks.judge import agreement, rgb_of
from benchmarks.networks import SCORE_THRESHOLD, network_for, street_frames
from benchmarks.roofline import Peaks, layers, least_s
from pipeline.contract.arrays import I420Frame
from pipeline.engine import Engine
from pipeline.engine.staged_network import StagedNetwork
from pipeline.models.registry import get_model

SIZES_WH = {"maskrcnn_resnet50_fpn": (1332, 800), "street": (568, 320), "maskrcnn_resnet50_fpn_v2": (1332, 800)}
"""(width, height) of source and input; padded to 1344x800 and 576x320"""

BATCHES = (8, 1, 32, 2, 4, 16)
"""batch sizes in the order in which they are measured, while time is left"""

NUM_DETECTIONS = 100
_BATCHES_IN_A_ROW = 6
_NUM_PICTURES = 8
"""number of different pictures; larger batches repeat them"""

_STAGES_BATCH = 8
_PROFILED_RUNS = 5
_MIN_RUNS, _MAX_RUNS = 3, 15


def frames_of(model: str, num: int) -> list[I420Frame]:
    size_wh = SIZES_WH[model]
    different = street_frames(size_wh, size_wh, min(num, _NUM_PICTURES))
    return [different[index % len(different)] for index in range(num)]


def fault(device: torch.device) -> str | None:
    """How the detections of `street` in fp32 differ from torchvision's on the device, or None."""
    spec = get_model("street")
    frames = frames_of("street", 4)
    network = network_for(spec, frames[0], NUM_DETECTIONS, device)
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        ours = run_ours(Engine(copy.deepcopy(network), spec, device, "fp32"), frames)
        source_hw = SIZES_WH["street"][::-1]
        found = peers.forward(network, [rgb_of(frame).to(device) for frame in frames], source_hw)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    same = agreement(ours, peers.detections(found, peers.to_rle(found), spec, source_hw))
    if same.share < MIN_SHARE or same.least_iou < 0.99:
        return f"{same.share:.1%} of torchvision's detections have a match, masks at IoU >= {same.least_iou:.3f}"
    return None


def measure(
    model: str,
    table: report.Report,
    budget: Budget,
    device: torch.device | None = None,
    batches: Sequence[int] = BATCHES,
) -> Mapping[str, Any]:
    """Frames per second by batch size, and the share of the roofline of each."""
    device = device or torch.device("cuda")
    spec, size_wh = get_model(model), SIZES_WH[model]
    network = network_for(spec, frames_of(model, 1)[0], NUM_DETECTIONS, device)
    engine = Engine(copy.deepcopy(network), spec, device, "auto")
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    peaks = measured_peaks(device)
    counted = layers(spec, _padded_hw(size_wh), NUM_DETECTIONS, own_class_only=True)
    cost: dict[str, Any] = {
        "gflop_per_image": round(sum(layer.flops for layer in counted) / 1e9, 1),
        "activation_mb_per_image": round(sum(layer.activation_bytes for layer in counted) / 1e6, 1),
        "weight_mb": round(sum(layer.weight_bytes for layer in counted) / 1e6, 1),
        "tflop_per_s_of_a_matrix_product": round(peaks.flops_per_s / 1e12, 1),
        "gb_per_s_of_a_copy": round(peaks.bytes_per_s / 1e9, 1),
    }
    skipped, roofline, num_found = [], [], 0.0
    for batch in batches:
        name = f"{model} {size_wh[0]}x{size_wh[1]}, batch {batch}, {engine.precision}"
        if budget.left_s <= 0:
            skipped.append(f"{name}: no time")
            continue
        frames = frames_of(model, batch)
        calls: list[Callable[[], object]] = [
            partial(in_a_row, engine, frames),
            partial(peers.forward, network, _pictures(frames, device), size_wh[::-1]),
            partial(_half_forward, channels_last, _pictures(frames, device), size_wh[::-1]),
        ]
        try:
            num_found = float(np.mean([len(found) for found in run_ours(engine, frames)]))
            wait = wait_for(device)
            times_ms = report.take_turns(calls, _num_runs(calls, wait, budget.left_s / 3), wait)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            skipped.append(f"{name}: out of memory")
            continue
        ours_fps = 1e3 * batch * _BATCHES_IN_A_ROW / times_ms[0]
        eager_fps, half_fps = 1e3 * batch / times_ms[1], 1e3 * batch / times_ms[2]
        table.add(f"{name}; torchvision fp32", ours_fps, eager_fps, "fps")
        table.add(f"{name}; torchvision bf16, not pasted", ours_fps, half_fps, "fps")
        least_ms, took_ms = 1e3 * least_s(counted, batch, peaks), 1e3 * batch / float(np.median(ours_fps))
        roofline.append({"case": name, "least_ms": least_ms, "took_ms": took_ms, "share": round(least_ms / took_ms, 3)})
    return {"detections_per_image": num_found, "cost": cost, "roofline": roofline, "skipped": skipped}


def in_a_row(engine: Engine, frames: Sequence[I420Frame]) -> None:
    """Run several batches; each is submitted before the result of the previous one is taken."""
    submit = partial(engine.submit, frames, min_scores=[SCORE_THRESHOLD] * len(frames), class_ids=[None] * len(frames))
    pending = submit()
    for _ in range(_BATCHES_IN_A_ROW - 1):
        following = submit()
        pending.result()
        pending = following
    pending.result()


def measure_stages(
    table: report.Report, budget: Budget, device: torch.device | None = None, models: Sequence[str] = tuple(SIZES_WH)
) -> Mapping[str, Any]:
    """Milliseconds of each stage for a batch of 8, run one after the other."""
    device = device or torch.device("cuda")
    stages: dict[str, Any] = {}
    skipped = []
    for model in models:
        if budget.left_s <= 0:
            skipped.append(f"{model}: no time")
            continue
        stages[model] = _stages_ms(model, device)
    return {"batch": _STAGES_BATCH, "milliseconds": stages, "skipped": skipped}


@torch.inference_mode()
def _stages_ms(model: str, device: torch.device) -> dict[str, float]:
    spec = get_model(model)
    frames = frames_of(model, _STAGES_BATCH)
    source = network_for(spec, frames[0], NUM_DETECTIONS, device)
    images, _ = source.transform(_pictures(frames, device))
    batch = images.tensors.bfloat16().to(memory_format=torch.channels_last)
    input_hws = torch.tensor(images.image_sizes, dtype=torch.float32, device=device)
    network = StagedNetwork(source, device, torch.bfloat16)
    min_scores = torch.full((len(frames), network.num_outputs), SCORE_THRESHOLD, device=device)

    def forward() -> Tensor:
        pyramid, boxes = network.boxes(batch, input_hws, min_scores)
        return network.details(pyramid, boxes, len(frames) * NUM_DETECTIONS)

    forward()
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA][: device.type == "cuda"]]) as profiler:
        for _ in range(_PROFILED_RUNS):
            forward()
        wait_for(device)()
    # The profiler attributes to a range the kernels that were launched in it.
    totals_us = {
        event.key: event.device_time_total if device.type == "cuda" else event.cpu_time_total
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU
    }
    return {name: round(totals_us[name] / 1e3 / _PROFILED_RUNS, 3) for name in STAGES if name in totals_us}


def measured_peaks(device: torch.device, side: int = 8192) -> Peaks:
    """Rates of a product of two square bf16 matrices and of a copy of 8 times as many numbers."""
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    source = torch.zeros(8 * side * side, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    calls: list[Callable[[], object]] = [lambda: left @ right, lambda: target.copy_(source)]
    product_ms, copy_ms = np.median(report.take_turns(calls, 10, wait_for(device), repeats=5), axis=1)
    return Peaks(2e3 * side**3 / float(product_ms), 2e3 * source.nbytes / float(copy_ms))


@torch.inference_mode()
def _half_forward(network: MaskRCNN, pictures: Sequence[Tensor], source_hw: tuple[int, int]) -> object:
    with torch.autocast(pictures[0].device.type, torch.bfloat16):
        return peers.forward(network, pictures, source_hw, paste=False)


def _pictures(frames: Sequence[I420Frame], device: torch.device) -> list[Tensor]:
    """Float RGB on the device; repeated pictures share one tensor."""
    unique = {id(frame): frame for frame in frames}
    on_device = {key: rgb_of(frame).to(device) for key, frame in unique.items()}
    return [on_device[id(frame)] for frame in frames]


def _num_runs(calls: Sequence[Callable[[], object]], wait: Callable[[], None], time_s: float) -> int:
    """Number of turns that fit into the time, within bounds."""
    turn_s = float(report.take_turns(calls, 1, wait).sum()) / 1e3
    return int(np.clip(time_s / turn_s, _MIN_RUNS, _MAX_RUNS))


def _padded_hw(size_wh: tuple[int, int]) -> tuple[int, int]:
    width, height = size_wh
    return -(-height // 32) * 32, -(-width // 32) * 32
