"""What the engine cuts from its pyramid, against torchvision's own module."""

from __future__ import annotations

import numba
import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from pipeline.engine.pooling import RoiFeatures

IMAGE_HW = (96, 160)
BOXES = [
    torch.tensor([[10, 20, 90.5, 70.25], [0, 0, 160, 96], [33, 17, 33, 17]]),
    torch.zeros(0, 4),
    torch.tensor([[150.0, 80, 159, 96]]),
]


def random_features(dtype: torch.dtype, memory_format: torch.memory_format) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    maps = {str(stride): torch.randn(3, 19, 96 // stride, 160 // stride) for stride in (4, 8, 16)}
    return {name: level.to(dtype=dtype, memory_format=memory_format) for name, level in maps.items()}


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format], ids=["NHWC", "NCHW"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("boxes", [BOXES, [torch.zeros(0, 4)] * 3], ids=["some", "none"])
def test_cuts_what_torchvision_cuts(
    boxes: list[torch.Tensor], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    features = random_features(dtype, memory_format)
    pool = MultiScaleRoIAlign(list(features), (7, 5), 2)
    expected = pool({name: level.float() for name, level in features.items()}, boxes, [IMAGE_HW])
    found = RoiFeatures(features, IMAGE_HW).align(pool, boxes)
    assert found.dtype == dtype
    assert found.numel() == 0 or found.is_contiguous(memory_format=torch.channels_last)
    # sums in another order, and one rounding to bf16
    tolerance = {torch.float32: 0.0, torch.bfloat16: 2.0**-8}[dtype]
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=1e-5)


def test_uses_as_many_threads_as_torch() -> None:
    features = random_features(torch.float32, torch.channels_last)
    pool = MultiScaleRoIAlign(list(features), 7, 2)
    before = torch.get_num_threads()
    try:
        for num_threads in (1, numba.config.NUMBA_NUM_THREADS):
            torch.set_num_threads(num_threads)
            RoiFeatures(features, IMAGE_HW).align(pool, BOXES)
            assert numba.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
