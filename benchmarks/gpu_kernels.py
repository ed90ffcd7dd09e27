"""The kernels on CUDA: parity with the CPU kernels, then times beside operators of torch and torchvision.

Each kernel is timed called from Python and captured in a CUDA graph, as in the engine; the peers are called.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import batched_nms

from benchmarks import cuda, report, roi_align
from ops.preprocess import NUM_PARAMS, pack_frames, preprocess_batch
from pipeline.contract.arrays import ColourMatrix, I420Frame
from pipeline.engine import kernels

_RUNS = 25
_REPEATS = 10


class NmsCase(NamedTuple):
    name: str
    num_images: int
    num_groups: int
    """groups of each image"""
    num_boxes: int
    """boxes of each group"""
    iou_threshold: float
    max_kept: int
    num_classes: int


NMS_CASES = (
    NmsCase("NMS of proposals: 8 images, 5 levels of 1000 boxes", 8, 5, 1000, 0.7, 1000, 1),
    NmsCase("NMS of detections: 8 images, 500 boxes of 80 classes", 8, 1, 500, 0.5, 100, 80),
)


class PreprocessCase(NamedTuple):
    name: str
    num_images: int
    picture_hw: tuple[int, int]
    input_hw: tuple[int, int]
    padded_hw: tuple[int, int]


PREPROCESS_CASES = (
    PreprocessCase("I420 to input: 8 images, 1080p to 748x1332", 8, (1080, 1920), (748, 1332), (768, 1344)),
    PreprocessCase("I420 to input: 8 images, 682x384 without a resize", 8, (384, 682), (384, 682), (384, 704)),
)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class NmsInputs(NamedTuple):
    """The groups of all images, concatenated."""

    boxes_xyxy: Tensor
    """(G, K, 4) float32"""
    is_candidate: Tensor
    """(G, K) bool"""
    scores: Tensor
    """(G, K) float32, descending"""
    classes: Tensor | None
    """(G, K) int64"""


def nms_inputs(case: NmsCase, device: torch.device) -> NmsInputs:
    """Boxes in clusters of five around the same object."""
    random = torch.Generator().manual_seed(0)
    shape = (case.num_images * case.num_groups, case.num_boxes)
    num_objects = -(-case.num_boxes // 5)
    objects = torch.rand((shape[0], num_objects, 4), generator=random) * torch.tensor([1300, 780, 200, 200])
    of_box = torch.randint(num_objects, shape, generator=random)
    objects = objects.gather(1, of_box[..., None].expand(-1, -1, 4))
    objects[..., 2:] += 16
    objects += torch.randn(objects.shape, generator=random) * 0.1 * objects[..., 2:].repeat(1, 1, 2)
    centre, half = objects[..., :2], objects[..., 2:].clamp(min=1) / 2
    scores = torch.rand(shape, generator=random).sort(dim=1, descending=True).values
    classes = torch.randint(case.num_classes, shape, generator=random) if case.num_classes > 1 else None
    return NmsInputs(
        torch.cat([centre - half, centre + half], dim=2).to(device),
        (scores > 0.05).to(device),
        scores.to(device),
        None if classes is None else classes.to(device),
    )


def our_nms(case: NmsCase, inputs: NmsInputs) -> tuple[Tensor, Tensor]:
    return kernels.nms(inputs.boxes_xyxy, inputs.is_candidate, case.iou_threshold, case.max_kept, inputs.classes)


def torchvisions_nms(case: NmsCase, inputs: NmsInputs) -> list[Tensor]:
    """NMS as torchvision's RPN and box head call it: image by image, with the level as class."""
    levels = torch.arange(case.num_groups, device=inputs.scores.device)[:, None].expand(-1, case.num_boxes)
    kept = []
    for image in range(case.num_images):
        groups = slice(image * case.num_groups, (image + 1) * case.num_groups)
        keep = inputs.is_candidate[groups].flatten().nonzero()[:, 0]
        boxes, scores = inputs.boxes_xyxy[groups].flatten(0, 1)[keep], inputs.scores[groups].flatten()[keep]
        idxs = (levels if inputs.classes is None else inputs.classes[groups]).flatten()[keep]
        kept.append(keep[batched_nms(boxes, scores, idxs, case.iou_threshold)[: case.max_kept]])
    return kept


def noise_frames(case: PreprocessCase) -> list[I420Frame]:
    random = np.random.default_rng(0)
    height, width = case.picture_hw
    data = random.integers(0, 256, (case.num_images, height * width * 3 // 2), np.uint8)
    return [I420Frame(planes, width, height, width, height, ColourMatrix.BT709, full_range=False) for planes in data]


def packed(case: PreprocessCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """The frames in the layout of `ops.preprocess.pack_frames`."""
    planes = np.zeros((case.num_images, math.prod(case.picture_hw) * 3 // 2), np.uint8)
    params = np.zeros((case.num_images, NUM_PARAMS), np.float32)
    pack_frames(noise_frames(case), [case.input_hw] * case.num_images, planes, params)
    return torch.from_numpy(planes).to(device), torch.from_numpy(params).to(device)


def our_preprocess(case: PreprocessCase, planes: Tensor, params: Tensor, dtype: torch.dtype) -> Tensor:
    return kernels.preprocess(planes, params, list(case.padded_hw), _MEAN, _STD, dtype)


def torchs_preprocess(case: PreprocessCase, planes: Tensor, params: Tensor, dtype: torch.dtype) -> Tensor:
    """Preprocessing by torch operators on the whole batch, with the colour coefficients of the first frame for all."""
    height, width = case.picture_hw
    offset, scale, red_v, green_u, green_v, blue_u = params[0, 4:]
    luma = (planes[:, : height * width].view(-1, 1, height, width).float() - offset) * scale
    chroma = planes[:, height * width :].view(-1, 2, height // 2, width // 2).float() - 128
    cb, cr = functional.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False).split(1, dim=1)
    rgb = torch.cat([luma + red_v * cr, luma + green_u * cb + green_v * cr, luma + blue_u * cb], dim=1).clamp_(0, 1)
    if case.input_hw != case.picture_hw:
        rgb = functional.interpolate(rgb, size=case.input_hw, mode="bilinear", align_corners=False)
    mean, std = (_of_channels(values, planes.device) for values in (_MEAN, _STD))
    out = torch.zeros((len(planes), 3, *case.padded_hw), dtype=dtype, device=planes.device)
    out = out.to(memory_format=torch.channels_last)
    out[:, :, : case.input_hw[0], : case.input_hw[1]] = (rgb - mean) / std
    return out


@functools.cache
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]


def faults(device: torch.device) -> dict[str, str | None]:
    """For each kernel, how its result differs from that of the CPU kernel, or None."""
    cpu = torch.device("cpu")
    found: dict[str, str | None] = {}
    for nms_case in NMS_CASES:
        expected, got = (our_nms(nms_case, nms_inputs(nms_case, where)) for where in (cpu, device))
        same = all(torch.equal(one.cpu(), other) for one, other in zip(got, expected, strict=True))
        found[nms_case.name] = None if same else "other survivors"
    for roi_case in (case for case in roi_align.CUDA_CASES if case.num_images == 1):
        found[roi_case.name] = _roi_align_fault(roi_case, device)
    for picture_case in PREPROCESS_CASES:
        inputs = our_preprocess(picture_case, *packed(picture_case, device), torch.float32)
        found[picture_case.name] = preprocess_fault(picture_case, inputs)
    return found


def preprocess_fault(case: PreprocessCase, got: Tensor) -> str | None:
    """How the result differs from that of the CPU kernel, or None. The tolerance allows for some roundings of a
    position along the longer side, between neighbouring noise pixels that differ by the full range.
    """
    expected = preprocess_batch(noise_frames(case), [case.input_hw] * case.num_images, case.padded_hw, _MEAN, _STD)
    off = float((got.cpu().permute(0, 2, 3, 1) - torch.from_numpy(expected)).abs().max())
    tolerance = 4 * 2.0**-24 * max(case.picture_hw) / min(_STD)
    return None if off <= tolerance else f"off by {off:.2g}"


def _roi_align_fault(case: roi_align.Case, device: torch.device) -> str | None:
    inputs = roi_align.inputs_of(case)
    boxes, image_idx = torch.from_numpy(inputs.boxes_xyxy), torch.from_numpy(inputs.image_idx)
    num_valid = torch.tensor([case.num_boxes])
    expected, got = (
        kernels.roi_align(
            [level.to(where) for level in inputs.levels], inputs.scales, boxes.to(where), image_idx.to(where),
            num_valid.to(where), case.side, 2,
        )
        for where in (torch.device("cpu"), device)
    )  # fmt: skip
    return roi_align.cuda_fault(case, got.cpu(), expected)


@torch.inference_mode()
def measure_nms(table: report.Report, budget: cuda.Budget) -> Mapping[str, Any]:
    """Add two rows for each case. Returns the cases that were skipped for lack of time."""
    device, skipped = torch.device("cuda"), []
    for case in NMS_CASES:
        if budget.left_s <= 0:
            skipped.append(case.name)
            continue
        inputs = nms_inputs(case, device)
        _add(table, case.name, partial(our_nms, case, inputs), partial(torchvisions_nms, case, inputs))
    return {"skipped": skipped}


@torch.inference_mode()
def measure_preprocess(table: report.Report, budget: cuda.Budget) -> Mapping[str, Any]:
    """Add two rows for each case. Returns the cases that were skipped for lack of time."""
    device, skipped = torch.device("cuda"), []
    for case in PREPROCESS_CASES:
        if budget.left_s <= 0:
            skipped.append(case.name)
            continue
        inputs = *packed(case, device), torch.bfloat16
        _add(table, case.name, partial(our_preprocess, case, *inputs), partial(torchs_preprocess, case, *inputs))
    return {"skipped": skipped}


def _add(table: report.Report, name: str, ours: Callable[[], object], peer: Callable[[], object]) -> None:
    calls = [ours, cuda.captured(ours), peer]
    called_ms, captured_ms, peer_ms = report.take_turns(calls, _RUNS, torch.cuda.synchronize, _REPEATS)
    table.add(name, called_ms, peer_ms)
    table.add(f"{name}, in a CUDA graph", captured_ms, peer_ms)
