"""The kernels as torch operators: comparison with torchvision, and their declared shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library
from torchvision.ops import MultiScaleRoIAlign, batched_nms

from ops.roi_align import infer_scales
from pipeline.engine.kernels import nms, roi_align

IMAGE_HW = (96, 160)
STRIDES = (4, 8, 16)
BOXES = torch.tensor(
    [
        [[10, 20, 90.5, 70.25], [0, 0, 160, 96], [33, 17, 33, 17]],
        [[0.0, 0, 0, 0]] * 3,
        [[150.0, 80, 159, 96], [2.5, 3.5, 60, 20], [float("nan")] * 4],
    ]
)
NUM_VALID = torch.tensor([3, 0, 2])
IMAGE_IDX = torch.arange(3).repeat_interleave(3)


def levels(dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    torch.manual_seed(0)
    maps = [torch.randn(3, 19, IMAGE_HW[0] // stride, IMAGE_HW[1] // stride) for stride in STRIDES]
    return [level.to(dtype=dtype, memory_format=memory_format) for level in maps]


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_roi_align_equals_torchvision(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    features = levels(dtype, memory_format)
    scales = infer_scales([level.shape[2:] for level in features], IMAGE_HW)
    found = roi_align(features, list(scales), BOXES.flatten(0, 1), IMAGE_IDX, NUM_VALID, 7, 2)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    pool = MultiScaleRoIAlign([str(stride) for stride in STRIDES], 7, 2)
    named = {str(stride): level.float() for stride, level in zip(STRIDES, features, strict=True)}
    valid = [boxes[:num] for boxes, num in zip(BOXES, NUM_VALID.tolist(), strict=True)]
    expected = torch.zeros(9, 19, 7, 7)
    expected[[0, 1, 2, 6, 7]] = pool(named, valid, [IMAGE_HW])
    # sums in another order, and one rounding to bf16
    tolerance = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}[dtype]
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=1e-5)


def crowd() -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (2, 60, 4), candidate flags and classes."""
    torch.manual_seed(0)
    corner, size = torch.rand(2, 60, 2) * 50, torch.rand(2, 60, 2) * 40 + 1
    return torch.cat([corner, corner + size], dim=-1), torch.rand(2, 60) < 0.9, torch.randint(0, 3, (2, 60))


def test_nms_equals_torchvision() -> None:
    boxes, is_candidate, classes = crowd()
    kept, num_kept = nms(boxes, is_candidate, 0.5, 50, classes)
    scores = torch.linspace(1, 0, 60)
    for group in range(2):
        candidates = is_candidate[group].nonzero().flatten()
        of_group = batched_nms(boxes[group, candidates], scores[candidates], classes[group, candidates], 0.5)
        expected = candidates[of_group]
        assert num_kept[group] == len(expected)
        assert kept[group, : len(expected)].tolist() == expected.tolist()
        assert kept[group, len(expected) :].eq(0).all()


def test_the_operators_match_their_declarations() -> None:
    boxes, is_candidate, classes = crowd()
    features = levels(torch.bfloat16, torch.channels_last)
    scales = list(infer_scales([level.shape[2:] for level in features], IMAGE_HW))
    checks = ("test_schema", "test_faketensor")
    library.opcheck(torch.ops.maskstream.nms.default, (boxes, is_candidate, 0.5, 50, classes), test_utils=checks)
    library.opcheck(torch.ops.maskstream.nms.default, (boxes, is_candidate, 0.5, 50, None), test_utils=checks)
    cut = (features, scales, BOXES[0].contiguous(), IMAGE_IDX[:3], torch.tensor([3]), 7, 2)
    library.opcheck(torch.ops.maskstream.roi_align.default, cut, test_utils=checks)
