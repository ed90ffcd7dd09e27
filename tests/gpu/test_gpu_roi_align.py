"""RoIAlign tests that need a GPU: graphs, rounding, more than 4 GB, comparison with torchvision's CUDA kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops.poolers import MultiScaleRoIAlign

from ops.roi_align import roi_align as cpu_roi_align
from ops.roi_align_triton import roi_align

IMAGE_HW = (320, 480)
STRIDES = (4, 8, 16, 32)
SCALES = tuple(1 / stride for stride in STRIDES)
FLOAT32_UNIT = 2.0**-24
LARGEST = 6.0
"""upper bound of the random levels"""


def random_levels(device: torch.device, dtype: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    """Return levels of two images with 256 channels, channels last."""
    random = torch.Generator(device).manual_seed(seed)
    levels = []
    for stride in STRIDES:
        shape = (2, IMAGE_HW[0] // stride, IMAGE_HW[1] // stride, 256)
        level = torch.randn(shape, generator=random, device=device).clamp(-LARGEST, LARGEST)
        levels.append(level.to(dtype).permute(0, 3, 1, 2))
    return levels


def random_boxes(num: int, seed: int) -> torch.Tensor:
    """Return (num, 4) boxes of 4 to 400 pixels on the CPU, some of them outside the image."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0, IMAGE_HW[::-1], (num, 2))
    half = np.exp(random.uniform(np.log(2), np.log(200), (num, 2)))
    return torch.from_numpy(np.concatenate([centre - half, centre + half], axis=1).astype(np.float32))


def on_cpu(levels: list[torch.Tensor], boxes: torch.Tensor, num_valid: torch.Tensor) -> torch.Tensor:
    """Return the CPU kernel's result (N, 7, 7, C) float32. The first half of the boxes is on image 0, the rest on 1."""
    maps = [level.float().permute(0, 2, 3, 1).cpu().contiguous().numpy() for level in levels]
    image_idx = np.repeat([0, 1], len(boxes) // 2)
    found = cpu_roi_align(maps, SCALES, boxes.cpu().numpy(), image_idx, (7, 7), num_valid=num_valid.cpu().numpy())
    return torch.from_numpy(found)


def assert_close(found: torch.Tensor, expected: torch.Tensor, half_ulp: float) -> None:
    """Compare with a tolerance for a mean of 16 cells in another order, and for rounding to neighbouring values."""
    error = (found.float() - expected).abs() - 2 * half_ulp * expected.abs()
    assert float(error.nan_to_num(nan=torch.inf).max()) <= 24 * FLOAT32_UNIT * LARGEST


def test_a_replayed_graph_reads_new_boxes_counts_and_maps(cuda: torch.device) -> None:
    levels = random_levels(cuda, torch.bfloat16)
    boxes, image_idx = random_boxes(40, seed=1).to(cuda), torch.arange(2, device=cuda).repeat_interleave(20)
    num_valid = torch.tensor([20, 20], device=cuda)

    def call() -> torch.Tensor:
        return roi_align(levels, SCALES, boxes, image_idx, (7, 7), num_valid=num_valid)

    call()  # compiles the kernel
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    for round_idx, counts in enumerate([(20, 20), (0, 13), (20, 0), (7, 20)]):
        fresh = random_boxes(40, seed=round_idx)
        is_valid = (torch.arange(20) < torch.tensor(counts)[:, None]).flatten()
        fresh[~is_valid] = torch.nan
        boxes.copy_(fresh)
        num_valid.copy_(torch.tensor(counts))
        for level, other in zip(levels, random_levels(cuda, torch.bfloat16, seed=round_idx), strict=True):
            level.copy_(other)
        found.fill_(torch.nan)
        graph.replay()
        nhwc = found.permute(0, 2, 3, 1).cpu()
        assert_close(nhwc, on_cpu(levels, fresh, num_valid), 2.0**-8)
        assert not nhwc[~is_valid].any()


@pytest.mark.parametrize(("dtype", "half_ulp"), [(torch.float32, 0.0), (torch.bfloat16, 2.0**-8)], ids=["fp32", "bf16"])
def test_agrees_with_torchvision(cuda: torch.device, dtype: torch.dtype, half_ulp: float) -> None:
    """torchvision's kernel uses fused multiply-adds, so positions of up to 128 cells differ by a few roundings on each
    axis. Values differ by this error times a slope of at most twice LARGEST. No box touches the edge of the image,
    where a rounding decides whether a sample is inside.
    """
    levels = random_levels(cuda, dtype)
    boxes = random_boxes(200, seed=3).to(cuda)
    boxes = boxes.clamp(min=1.0).minimum(torch.tensor([*IMAGE_HW[::-1]] * 2, device=cuda) - 1)
    pool = MultiScaleRoIAlign([str(stride) for stride in STRIDES], 7, 2)
    named = {str(stride): level.float() for stride, level in zip(STRIDES, levels, strict=True)}
    expected = pool(named, [boxes[:100], boxes[100:]], [IMAGE_HW] * 2)
    found = roi_align(levels, SCALES, boxes, torch.arange(2, device=cuda).repeat_interleave(100), (7, 7))
    error = (found.float() - expected).abs() - 2 * half_ulp * expected.abs()
    positions = 2 * 4 * 128 * FLOAT32_UNIT * 2 * LARGEST
    assert float(error.nan_to_num(nan=torch.inf).max()) <= 24 * FLOAT32_UNIT * LARGEST + positions


def test_bfloat16_is_float32_rounded_once(cuda: torch.device) -> None:
    levels = random_levels(cuda, torch.bfloat16)
    boxes, image_idx = random_boxes(100, seed=2).to(cuda), torch.zeros(100, dtype=torch.int64, device=cuda)
    exact = roi_align([level.float() for level in levels], SCALES, boxes, image_idx, (7, 7))
    assert torch.equal(roi_align(levels, SCALES, boxes, image_idx, (7, 7)), exact.bfloat16())


def test_a_level_may_have_more_elements_than_32_bits_count(cuda: torch.device) -> None:
    level = torch.zeros((33, 256, 256, 1024), dtype=torch.bfloat16, device=cuda)  # 4.4 GB
    level[32, 255, 255] = 1.0
    box, image_idx = torch.tensor([[255.0, 255, 256, 256]], device=cuda), torch.tensor([32], device=cuda)
    found = roi_align([level.permute(0, 3, 1, 2)], (1.0,), box, image_idx, (1, 1))
    assert torch.equal(found, torch.ones_like(found))
