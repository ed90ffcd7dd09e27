"""RoIAlign on CUDA, compared with the reference and the CPU kernel, which tests/unit/ops/test_roi_align.py checks.

Tests that need a GPU are in test_gpu_roi_align.py; for example, the interpreter truncates bfloat16 instead of rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ops import reference, roi_align_triton
from ops.roi_align import roi_align as cpu_roi_align
from ops.roi_align_triton import roi_align

FLOAT32_UNIT = 2.0**-24
HALF_ULP = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""unit roundoff of each dtype; two results that round to neighbouring values differ by twice the unit roundoff"""
LARGEST = 6.0
"""upper bound of the random levels"""

SCALES = (0.25, 0.125, 0.0625)
LEVEL_HWS = ((23, 41), (12, 21), (6, 11))
BOXES = np.array(
    [
        [10, 20, 90.5, 70.25],
        [0, 0, 164, 92],  # the whole image
        [33, 17, 33, 17],  # empty
        [40, 10, 40, 60],  # zero width
        [70.5, 30, 71, 30.4],  # smaller than a cell
        [-30, -20, 25, 30],  # partly outside
        [150, 80, 260, 190],
        [400, 400, 500, 470],  # outside
        [-80, -100, 240, 190],  # contains the image
        [12.3, 45.6, 78.9, 89.1],
    ],
    np.float32,
)
IMAGE_IDX = np.array([0, 1, 1, 0, 1, 0, 1, 0, 1, 0])


@pytest.fixture(autouse=True)
def quiet_floats() -> Iterator[None]:
    """Ignore warnings of NumPy, which the interpreter uses, about operations that the kernels guard."""
    with np.errstate(invalid="ignore", over="ignore"):
        yield


def random_levels(
    device: torch.device, channels: int, dtype: torch.dtype = torch.float32, hws: Sequence[tuple[int, int]] = LEVEL_HWS
) -> list[torch.Tensor]:
    """Return levels of two images, channels last."""
    random = np.random.default_rng(channels)
    maps = [random.standard_normal((2, *hw, channels), np.float32).clip(-LARGEST, LARGEST) for hw in hws]
    return [torch.from_numpy(level).to(device, dtype).permute(0, 3, 1, 2) for level in maps]


def on(device: torch.device, array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array).to(device)


def aligned(
    levels: list[torch.Tensor],
    boxes: NDArray[np.float32],
    image_idx: NDArray[np.int64],
    output_hw: tuple[int, int] = (3, 2),
    scales: tuple[float, ...] = SCALES,
    num_valid: NDArray[np.int64] | None = None,
    **options: Any,
) -> torch.Tensor:
    """Run the kernel, and return its result as (N, PH, PW, C) on the CPU."""
    device = levels[0].device
    counts = None if num_valid is None else on(device, num_valid)
    found = roi_align(levels, scales, on(device, boxes), on(device, image_idx), output_hw, num_valid=counts, **options)
    assert found.shape == (len(boxes), levels[0].shape[1], *output_hw)
    assert found.dtype == levels[0].dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    return found.permute(0, 2, 3, 1).cpu()


def expected_of(
    levels: list[torch.Tensor],
    boxes: NDArray[np.float32],
    image_idx: NDArray[np.int64],
    output_hw: tuple[int, int] = (3, 2),
    scales: tuple[float, ...] = SCALES,
    **options: Any,
) -> torch.Tensor:
    """Return the result of the CPU kernel for the same values in float32."""
    maps = [level.float().permute(0, 2, 3, 1).cpu().contiguous().numpy() for level in levels]
    return torch.from_numpy(cpu_roi_align(maps, scales, boxes, image_idx, output_hw, **options))


def assert_close(found: torch.Tensor, expected: torch.Tensor, num_samples: int) -> None:
    """Compare with a tolerance for a mean of four cells per sample in another order, and for rounding to the dtype.

    Positions need no tolerance, because both kernels compute them with the same roundings.
    """
    sums = (4 * num_samples + 8) * FLOAT32_UNIT * LARGEST
    error = (found.float() - expected).abs() - 2 * HALF_ULP[found.dtype] * expected.abs()
    worst = np.unravel_index(int(error.nan_to_num(nan=torch.inf).argmax()), error.shape)
    assert float(error[worst]) <= sums, f"{found[worst]} for {expected[worst]} at {[int(i) for i in worst]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("is_aligned", [False, True], ids=["not aligned", "aligned"])
@pytest.mark.parametrize("sampling_ratio", [1, 2, 3])
def test_agrees_with_the_cpu(device: torch.device, sampling_ratio: int, is_aligned: bool, dtype: torch.dtype) -> None:
    levels = random_levels(device, 19, dtype)
    options = {"sampling_ratio": sampling_ratio, "aligned": is_aligned}
    found = aligned(levels, BOXES, IMAGE_IDX, **options)
    assert_close(found, expected_of(levels, BOXES, IMAGE_IDX, **options), sampling_ratio**2)


@pytest.mark.parametrize("is_aligned", [False, True], ids=["not aligned", "aligned"])
def test_adaptive_samples(device: torch.device, is_aligned: bool) -> None:
    """Each bin takes one sample per cell; samples far outside the map are skipped."""
    levels = random_levels(device, 5)
    far = [[-3000, 10, 200, 60], [20, -100, 90, 4000], [1e5, 1e5, 1e5 + 90, 1e5 + 90], [0, 0, 1e30, 1e30]]
    boxes = np.concatenate([BOXES, np.array(far, np.float32)])
    image_idx = np.concatenate([IMAGE_IDX, [0, 1, 0, 1]])
    options = {"sampling_ratio": 0, "aligned": is_aligned, "output_hw": (4, 4)}
    found = aligned(levels, boxes, image_idx, **options)
    assert_close(found, expected_of(levels, boxes, image_idx, **options), 11**2)
    assert not found[-2:].any()


@pytest.mark.parametrize(("output_hw", "channels"), [((7, 7), 1), ((3, 2), 40), ((1, 1), 264), ((5, 9), 64)], ids=str)
def test_incomplete_tiles(device: torch.device, output_hw: tuple[int, int], channels: int) -> None:
    levels = random_levels(device, channels, torch.bfloat16)
    chosen = slice(0, None, 3)
    found = aligned(levels, BOXES[chosen], IMAGE_IDX[chosen], output_hw)
    assert_close(found, expected_of(levels, BOXES[chosen], IMAGE_IDX[chosen], output_hw), 4)


def test_equals_the_reference(device: torch.device) -> None:
    levels = random_levels(device, 3)
    expected = []
    for box, image in zip(BOXES.astype(np.float64), IMAGE_IDX, strict=True):
        level = reference.fpn_level(box, len(SCALES), 1 / SCALES[0])
        feature_map = levels[level][image].permute(1, 2, 0).cpu().double().numpy()
        expected.append(reference.roi_align(feature_map, box, (3, 2), SCALES[level], 2, aligned=False))
    difference = (aligned(levels, BOXES, IMAGE_IDX).double() - torch.from_numpy(np.stack(expected))).abs().float()
    # positions of up to 64 cells are rounded four times on each of two axes; the slope is at most twice LARGEST
    of_positions = 2 * 4 * 64 * FLOAT32_UNIT * 2 * LARGEST
    assert_close((difference - of_positions).clamp(min=0), torch.zeros_like(difference), 4)


def test_a_shift_by_half_a_pixel_is_detected(device: torch.device) -> None:
    levels = random_levels(device, 3)
    expected = expected_of(levels, BOXES, IMAGE_IDX)
    with pytest.raises(AssertionError, match="for"):
        assert_close(aligned(levels, BOXES + np.float32(0.5), IMAGE_IDX), expected, 4)
    with pytest.raises(AssertionError, match="for"):
        assert_close(aligned(levels, BOXES, IMAGE_IDX, aligned=True), expected, 4)


def at_level_changes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the actual and expected levels of boxes whose areas are within a few roundings of each threshold.

    Each map contains the number of its level.
    """
    near = 1 + np.arange(-10, 3) * 2.0**-23
    sides = np.concatenate([[0, 1, 16, 900, 5000], *(side * near for side in (112, 224, 448, 896))])
    half = (sides / 2).astype(np.float32)
    boxes = np.stack([-half, -half, half, half], axis=1)
    image_idx = np.zeros(len(boxes), np.int64)
    levels = [torch.full((1, 1, 1, 1), float(number), device=device) for number in range(5)]
    options: dict[str, Any] = {"scales": (1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64), "output_hw": (1, 1)}
    return (
        aligned(levels, boxes, image_idx, **options, sampling_ratio=1).flatten(),
        expected_of(levels, boxes, image_idx, **options, sampling_ratio=1).flatten(),
    )


def test_five_levels_change_at_the_areas_of_the_cpu(device: torch.device) -> None:
    found, expected = at_level_changes(device)
    assert set(expected.tolist()) == {0, 1, 2, 3, 4}
    assert torch.equal(found, expected)


def test_levels_without_the_epsilon_are_detected(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thresholds are those of the FPN paper, without torchvision's epsilon."""
    bare = (0.0, 112.0**2, 224.0**2, 448.0**2, 896.0**2)
    monkeypatch.setattr(roi_align_triton, "least_areas_px2", lambda scales: bare)
    found, expected = at_level_changes(device)
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("is_aligned", [False, True], ids=["not aligned", "aligned"])
def test_a_single_level_takes_boxes_of_negative_area(device: torch.device, is_aligned: bool) -> None:
    level = random_levels(device, 5)[:1]
    boxes = np.array([[90, 20, 10, 70], [90, 70, 10, 20], [10, 20, 90, 70]], np.float32)
    image_idx = np.array([0, 1, 1])
    options = {"scales": SCALES[:1], "aligned": is_aligned}
    assert_close(aligned(level, boxes, image_idx, **options), expected_of(level, boxes, image_idx, **options), 4)


def test_float16_is_float32_rounded_once(device: torch.device) -> None:
    levels = random_levels(device, 19, torch.float16)
    exact = aligned([level.float() for level in levels], BOXES, IMAGE_IDX)
    assert torch.equal(aligned(levels, BOXES, IMAGE_IDX), exact.half())


@pytest.mark.parametrize(
    ("num_valid", "is_valid"),
    [
        ([10], [True] * 10),
        ([7], [True] * 7 + [False] * 3),
        ([3, 0], [True] * 3 + [False] * 7),
        ([0, 1, 2, 0, 1], [False, False, True, False, True, True, False, False, True, False]),
    ],
    ids=str,
)
def test_padding_may_contain_any_values_and_gives_zeros(
    device: torch.device, num_valid: list[int], is_valid: list[bool]
) -> None:
    levels = random_levels(device, 3, torch.bfloat16)
    expected = aligned(levels, BOXES, IMAGE_IDX)
    boxes, image_idx = BOXES.copy(), IMAGE_IDX.copy()
    boxes[~np.array(is_valid)], image_idx[~np.array(is_valid)] = np.nan, -(2**40)
    found = aligned(levels, boxes, image_idx, num_valid=np.array(num_valid))
    assert torch.equal(found[is_valid], expected[is_valid])
    assert not found[~np.array(is_valid)].any()


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_invalid_boxes_give_zeros(device: torch.device, sampling_ratio: int, num_levels: int) -> None:
    boxes = np.array(
        [
            [np.nan] * 4,
            [10, np.nan, 20, 20],
            [np.inf] * 4,
            [-np.inf, -np.inf, np.inf, np.inf],
            [np.inf, 0, -np.inf, 10],
            [3e38, 3e38, 3.2e38, 3.2e38],
        ],
        np.float32,
    )
    levels = random_levels(device, 3)[:num_levels]
    found = aligned(levels, boxes, np.zeros(6, np.int64), scales=SCALES[:num_levels], sampling_ratio=sampling_ratio)
    assert not found.any()


def test_boxes_without_level_or_image_give_zeros(device: torch.device) -> None:
    """A box of negative area has no level, and images out of range are not read."""
    boxes = np.array([[90, 20, 10, 70], *[[10, 20, 90, 70]] * 4], np.float32)
    image_idx = np.array([0, -1, 2, 2**40, 1])
    found = aligned(random_levels(device, 3), boxes, image_idx)
    assert not found[:4].any()
    assert found[4].all()


def test_a_box_reads_only_the_cells_it_needs(device: torch.device) -> None:
    level = torch.full((1, 16, 16, 3), torch.nan)
    level[0, 4:9, 5:8] = 1.0
    levels = [level.to(device).permute(0, 3, 1, 2)]
    box, image_idx = np.array([[5.1, 4.1, 6.9, 7.9]], np.float32), np.zeros(1, np.int64)
    assert_close(aligned(levels, box, image_idx, scales=(1.0,)), torch.ones(1, 3, 2, 3), 4)
    level[0, 6, 6, 1] = torch.nan
    found = aligned([level.to(device).permute(0, 3, 1, 2)], box, image_idx, (1, 1), (1.0,))
    assert found.isnan().flatten().tolist() == [False, True, False]
    level[:] = torch.nan
    outside = np.array([[-90, -90, -10, -10], [30, 30, 60, 60]], np.float32)
    found = aligned([level.to(device).permute(0, 3, 1, 2)], outside, np.zeros(2, np.int64), scales=(1.0,))
    assert not found.any()


def test_no_boxes(device: torch.device) -> None:
    found = aligned(random_levels(device, 3), np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert found.shape == (0, 3, 2, 3)


def test_boxes_may_be_non_contiguous(device: torch.device) -> None:
    levels = random_levels(device, 3)
    wide_boxes, wide_idx = on(device, np.repeat(BOXES, 2, axis=0)), on(device, np.repeat(IMAGE_IDX, 2))
    found = roi_align(levels, SCALES, wide_boxes[::2], wide_idx[::2], (3, 2))
    assert torch.equal(found.permute(0, 2, 3, 1).cpu(), aligned(levels, BOXES, IMAGE_IDX))


class Launches:
    """A replacement of the kernel that counts its launches."""

    def __init__(self) -> None:
        self.num = 0

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return self.launch

    def launch(self, *arguments: Any, **options: Any) -> None:
        self.num += 1


def test_one_launch_and_no_value_read_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the device "meta" have shapes and strides but no values."""
    launches = Launches()
    monkeypatch.setattr(roi_align_triton, "_align_kernel", launches)
    levels = [level.to("meta") for level in random_levels(torch.device("cpu"), 3)]
    boxes, image_idx = torch.empty((10, 4), device="meta"), torch.empty(10, dtype=torch.int64, device="meta")
    num_valid = torch.empty(2, dtype=torch.int64, device="meta")
    roi_align(levels, SCALES, boxes, image_idx, (3, 2), num_valid=num_valid)
    assert launches.num == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_xyxy": torch.zeros(10, 3)}, r"boxes_xyxy must be \(10, 4\) float32 on .*, got \(10, 3\) float32"),
        ({"boxes_xyxy": torch.zeros(10, 4).double()}, "boxes_xyxy must be .* float64"),
        ({"boxes_xyxy": torch.zeros(10, 4, device="meta")}, "boxes_xyxy must be .* on meta"),
        ({"image_idx": torch.zeros(9, dtype=torch.int64)}, r"image_idx must be \(10,\) int64 on .*, got \(9,\)"),
        ({"image_idx": torch.zeros(10, dtype=torch.int32)}, "image_idx must be .* int32"),
        ({"levels": []}, "one scale for each of at least one level, got 0 and 3"),
        ({"scales": (0.25, 0.125)}, "got 3 and 2"),
        ({"scales": (0.25, 0.0625, 0.03125)}, "each half of the one before"),
        ({"scales": (-1.0, -0.5, -0.25)}, "must be positive"),
        ({"levels": [torch.zeros(2, 3, 0, 4)], "scales": (1.0,)}, "not empty"),
        ({"levels": [torch.zeros(2, 3, 4, 4).double()], "scales": (1.0,)}, r"got \(2, 3, 4, 4\) float64"),
        ({"levels": [torch.zeros(3, 4, 4)], "scales": (1.0,)}, r"\(B, C, H, W\)"),
        ({"levels": [torch.zeros(2, 3, 4, 5)], "scales": (1.0,)}, r"channels last, got strides \(60, 20, 5, 1\)"),
        ({"levels": [torch.zeros(2, 3, 8, 8)[:, :, ::2]], "scales": (1.0,)}, "channels last, got strides"),
        ({"levels": [torch.zeros(2, 3, 1, 1), torch.zeros(2, 4, 1, 1)], "scales": (1.0, 0.5)}, "levels must agree"),
        ({"levels": [torch.zeros(2, 3, 1, 1), torch.zeros(3, 3, 1, 1)], "scales": (1.0, 0.5)}, "levels must agree"),
        ({"levels": [torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1).half()], "scales": (1.0, 0.5)}, "must agree"),
        ({"output_hw": (0, 2)}, "output_hw must be at least 1"),
        ({"sampling_ratio": -1}, "sampling_ratio 0, got .* and -1"),
        ({"num_valid": torch.tensor([1, 1, 1])}, "10 boxes in G equal groups"),
        ({"num_valid": torch.tensor([[1, 1]])}, r"num_valid must be \(2,\) int64"),
        ({"num_valid": torch.tensor([1], dtype=torch.int32)}, "num_valid must be .* int32"),
        ({"num_valid": torch.zeros(0, dtype=torch.int64)}, "10 boxes in G equal groups"),
    ],
)
def test_invalid_arguments_raise(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "levels": random_levels(torch.device("cpu"), 3),
        "scales": SCALES,
        "boxes_xyxy": torch.from_numpy(BOXES),
        "image_idx": torch.from_numpy(IMAGE_IDX),
        "output_hw": (3, 2),
    }
    with pytest.raises(ValueError, match=message):
        roi_align(**arguments | changes)
