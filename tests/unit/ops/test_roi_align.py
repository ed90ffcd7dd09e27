"""RoIAlign: geometry by hand, comparison with the reference and torchvision; RoIPool of the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.paths import ROOT
from torchvision import ops as torchvision_ops
from torchvision.ops.poolers import LevelMapper, MultiScaleRoIAlign, _setup_scales

from ops import reference
from ops.roi_align import infer_scales, roi_align

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
needs_jit = pytest.mark.skipif(WITHOUT_JIT, reason="too large for interpreted loops")

FLOAT32_UNIT = 2.0**-24
POSITION_ERROR_CELLS = 1e-5
"""the reference computes positions in float64; float32 rounds positions of up to 40 cells about four times"""

IMAGE_HW = (96, 160)
SCALES = (0.25, 0.125, 0.0625)
BOXES = np.array(
    [
        [10, 20, 90.5, 70.25],
        [0, 0, 160, 96],  # the whole image
        [33, 17, 33, 17],  # empty
        [40, 10, 40, 60],  # zero width
        [70.5, 30, 71, 30.4],  # smaller than a cell
        [-30, -20, 25, 30],  # partly outside the image
        [150, 80, 260, 190],
        [400, 400, 500, 470],  # outside
        [-500, -300, 700, 500],  # contains the image
        [12.3, 45.6, 78.9, 89.1],
    ],
    np.float32,
)
IMAGE_IDX = np.array([0, 1, 1, 0, 1, 0, 1, 0, 1, 0])


def random_levels(channels: int, num_images: int = 2, seed: int = 0) -> list[NDArray[np.float32]]:
    """Normally distributed maps of IMAGE_HW at SCALES."""
    random = np.random.default_rng(seed)
    hws = [(int(IMAGE_HW[0] * scale), int(IMAGE_HW[1] * scale)) for scale in SCALES]
    return [random.standard_normal((num_images, *hw, channels), dtype=np.float32) for hw in hws]


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return torch.from_numpy(bits).view(torch.bfloat16).float().numpy()


def poisoned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return memory filled with NaN."""
    return np.full(shape, 0x7FC0 if dtype == np.uint16 else np.nan, dtype)


def pool_rois(levels: list[Any], boxes: NDArray[np.float32], image_idx: NDArray[np.int64], **options: Any) -> Any:
    """Return the result of `roi_align` for levels at SCALES, written to poisoned memory."""
    output_hw = options.pop("output_hw", (3, 2))
    out = poisoned((len(boxes), *output_hw, levels[0].shape[3]), levels[0].dtype)
    result = roi_align(levels, options.pop("scales", SCALES), boxes, image_idx, output_hw, out=out, **options)
    assert result is out
    return result


def by_reference(
    levels: list[NDArray[np.float32]], output_hw: tuple[int, int], sampling_ratio: int, *, aligned: bool
) -> NDArray[np.float64]:
    """Return the result of the reference for BOXES."""
    found = []
    for box, image in zip(BOXES.astype(np.float64), IMAGE_IDX, strict=True):
        level = reference.fpn_level(box, len(SCALES), 1 / SCALES[0])
        feature_map = levels[level][image].astype(np.float64)
        found.append(reference.roi_align(feature_map, box, output_hw, SCALES[level], sampling_ratio, aligned=aligned))
    return np.stack(found)


def sum_tolerance(levels: list[NDArray[np.float32]], sampling_ratio: int = 2) -> float:
    """Return the rounding error of the mean of 4 weighted cells per sample, summed in a different order.

    With adaptive sampling there are up to 48 samples along an axis. The errors of so many sums have random signs and
    grow with the square root of their number; the tolerance is eight times this root.
    """
    num_sums = 4 * sampling_ratio**2 if sampling_ratio else 8 * 2 * 48
    return (num_sums + 8) * FLOAT32_UNIT * max(float(np.abs(level).max()) for level in levels)


def position_tolerance(levels: list[NDArray[np.float32]]) -> float:
    """Return the error from rounded positions on two axes, with a slope of at most twice the largest value per cell."""
    return 4 * POSITION_ERROR_CELLS * max(float(np.abs(level).max()) for level in levels)


def assert_close(found: NDArray[Any], expected: NDArray[Any], tolerance: float) -> None:
    """Compare, and report the indices (box, row, column, channel) of the largest difference."""
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), difference.shape)
    assert difference[worst] <= tolerance, f"{found[worst]} for {expected[worst]} at {[int(i) for i in worst]}"


ARANGE = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
BY_HAND = np.array(
    [
        [7.625, 8.125, 8.625, 9.125],
        [11.375, 11.875, 12.375, 12.875],
        [15.125, 15.625, 16.125, 16.625],
        [18.875, 19.375, 19.875, 20.375],
    ]
)
"""Expected bins of the box x 0.5 … 2.5, y 1 … 4 on ARANGE. Cell (y, x) holds 5 y + x, so a bin holds the value at its
centre: x = 0.75, 1.25, 1.75, 2.25 and y = 1.375, 2.125, 2.875, 3.625."""


@pytest.mark.parametrize(("aligned", "shift"), [(False, 0.0), (True, 0.5)], ids=["not aligned", "aligned"])
def test_five_by_five_by_hand(aligned: bool, shift: float) -> None:
    box = np.array([[0.5, 1.0, 2.5, 4.0]], np.float32)
    found = roi_align([ARANGE], [1.0], box, np.zeros(1, np.int64), (4, 4), aligned=aligned)[0, :, :, 0]
    np.testing.assert_array_equal(found, BY_HAND - 5 * shift - shift)
    by_reference = reference.roi_align(ARANGE[0].astype(np.float64), box[0], (4, 4), 1.0, 2, aligned=aligned)
    np.testing.assert_array_equal(by_reference[:, :, 0], found)


def test_a_sample_may_lie_one_cell_outside() -> None:
    """A map of one cell with samples at -1.5, -0.5, 0.5 and 1.5."""
    one_cell, box = np.full((1, 1, 1, 1), 3.0, np.float32), np.array([[-2.0, -2.0, 2.0, 2.0]], np.float32)
    found = roi_align([one_cell], [1.0], box, np.zeros(1, np.int64), (4, 4), sampling_ratio=1)
    inside = np.array([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_array_equal(found[0, :, :, 0], 3.0 * inside[:, None] * inside)


@pytest.mark.parametrize("aligned", [False, True], ids=["not aligned", "aligned"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("channels", [1, 19])
def test_equals_the_reference(channels: int, sampling_ratio: int, aligned: bool) -> None:
    levels = random_levels(channels)
    expected = by_reference(levels, (3, 2), sampling_ratio, aligned=aligned)
    found = pool_rois(levels, BOXES, IMAGE_IDX, sampling_ratio=sampling_ratio, aligned=aligned)
    assert_close(found, expected, sum_tolerance(levels, sampling_ratio) + position_tolerance(levels))


def test_a_shift_by_half_a_cell_is_detected() -> None:
    levels = random_levels(3)
    shifted = BOXES + np.float32(0.5 / SCALES[0])
    with pytest.raises(AssertionError, match="for"):
        assert_close(
            pool_rois(levels, shifted, IMAGE_IDX),
            by_reference(levels, (3, 2), 2, aligned=False),
            sum_tolerance(levels) + position_tolerance(levels),
        )


def random_boxes(num: int, seed: int) -> NDArray[np.float32]:
    """Boxes of all sizes from 4 to 1000 pixels, some of them outside the image."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0, [640, 480], (num, 2))
    half = np.exp(random.uniform(np.log(2), np.log(500), (num, 2)))
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


@needs_jit
@pytest.mark.parametrize("output_hw", [(7, 7), (14, 14), (3, 5)], ids=str)
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 4])
def test_agrees_with_torchvision_on_a_pyramid(output_hw: tuple[int, int], sampling_ratio: int) -> None:
    torch.manual_seed(0)
    maps = {str(stride): torch.randn(3, 37, 480 // stride, 640 // stride) for stride in (4, 8, 16, 32)}
    boxes = [random_boxes(num, num) for num in (40, 0, 25)]
    pool = MultiScaleRoIAlign(list(maps), output_hw, sampling_ratio)
    expected = pool(maps, [torch.from_numpy(of_image) for of_image in boxes], [(480, 640)] * 3)

    channels_last = [level.to(memory_format=torch.channels_last) for level in maps.values()]
    levels = [level.permute(0, 2, 3, 1).numpy() for level in channels_last]
    assert all(
        level.__array_interface__["data"][0] == tensor.data_ptr()
        for level, tensor in zip(levels, channels_last, strict=True)
    )
    scales = infer_scales([level.shape[1:3] for level in levels], (480, 640))
    found = pool_rois(
        levels, np.concatenate(boxes), np.repeat([0, 1, 2], [40, 0, 25]), output_hw=output_hw, scales=scales,
        sampling_ratio=sampling_ratio,
    )  # fmt: skip
    assert_close(found, expected.permute(0, 2, 3, 1).numpy(), sum_tolerance(levels, sampling_ratio))
    assert torch.from_numpy(found).permute(0, 3, 1, 2).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("aligned", [False, True], ids=["not aligned", "aligned"])
def test_agrees_with_torchvision_on_one_level(aligned: bool) -> None:
    """Including boxes of negative area, which have no level in a pyramid."""
    level = random_levels(5)[0]
    boxes = np.concatenate([BOXES, [[90, 20, 10, 70], [90, 70, 10, 20]]]).astype(np.float32)
    image_idx = np.append(IMAGE_IDX, [0, 1])
    rois = torch.from_numpy(np.column_stack([image_idx, boxes]).astype(np.float32))
    nchw = torch.from_numpy(level).permute(0, 3, 1, 2).contiguous()
    expected = torchvision_ops.roi_align(nchw, rois, (4, 3), SCALES[0], 2, aligned=aligned)
    found = pool_rois([level], boxes, image_idx, output_hw=(4, 3), scales=SCALES[:1], aligned=aligned)
    assert_close(found, expected.permute(0, 2, 3, 1).numpy(), sum_tolerance([level]))


def test_levels_change_at_the_areas_of_torchvision() -> None:
    """Each map contains the number of its level. The areas are within a few roundings of each threshold."""
    near = 1 + np.arange(-20, 21) * 2.0**-23
    half = np.concatenate([[0, 1, 16, 900, 5000], 112 * near, 224 * near, 448 * near]).astype(np.float32) / 2
    boxes = np.stack([-half, -half, half, half], axis=1)
    levels = [np.full((1, 1, 1, 1), number, np.float32) for number in range(4)]
    scales = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
    found = pool_rois(levels, boxes, np.zeros(len(boxes), np.int64), scales=scales, output_hw=(1, 1), sampling_ratio=1)
    expected = LevelMapper(2, 5)([torch.from_numpy(boxes)]).numpy()
    np.testing.assert_array_equal(found.reshape(-1), expected)
    assert set(expected[5:]) == {0, 1, 2, 3}


@pytest.mark.parametrize("image_hw", [(480, 640), (750, 1333), (800, 1088), (32, 32)], ids=str)
def test_scales_equal_torchvisions(image_hw: tuple[int, int]) -> None:
    hws = [(-(-image_hw[0] // stride), -(-image_hw[1] // stride)) for stride in (4, 8, 16, 32)]
    expected, _ = _setup_scales([torch.empty(1, 1, *hw) for hw in hws], [image_hw], 224, 4)
    assert infer_scales(hws, image_hw) == tuple(expected)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 5])
def test_bf16_is_float32_rounded_once(sampling_ratio: int) -> None:
    bits = [to_bf16(level) for level in random_levels(19)]
    exact = pool_rois([from_bf16(level) for level in bits], BOXES, IMAGE_IDX, sampling_ratio=sampling_ratio)
    found = pool_rois(bits, BOXES, IMAGE_IDX, sampling_ratio=sampling_ratio)
    np.testing.assert_array_equal(found, to_bf16(exact))


@pytest.mark.parametrize("into", ["fresh memory", "out"])
def test_float16_is_float32_rounded_once(into: str) -> None:
    half = [level.astype(np.float16) for level in random_levels(19)]
    exact = pool_rois([level.astype(np.float32) for level in half], BOXES, IMAGE_IDX)
    found = pool_rois(half, BOXES, IMAGE_IDX) if into == "out" else roi_align(half, SCALES, BOXES, IMAGE_IDX, (3, 2))
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, exact.astype(np.float16))


@pytest.mark.parametrize("aligned", [False, True], ids=["not aligned", "aligned"])
def test_adaptive_sampling_takes_one_sample_per_cell_rounded_up(aligned: bool) -> None:
    """Cells hold 0, 1, 4, 9, …: two bins over 4 cells take 2 samples each, two bins over 4.25 cells take 3 each. Linear
    interpolation at fraction f between two cells is f (1 - f) above x^2.
    """
    squares = np.arange(12, dtype=np.float32).reshape(1, 1, 12, 1) ** 2
    shift = 0.5 if aligned else 0.0
    boxes = np.array([[2 + shift, 0, 6 + shift, 1], [2 + shift, 0, 6.25 + shift, 1]], np.float32)
    found = roi_align([squares], [1.0], boxes, np.zeros(2, np.int64), (1, 2), sampling_ratio=0, aligned=aligned)
    for box, num in zip(found[:, 0, :, 0], (2, 3), strict=True):
        bin_cells = 2.0 if num == 2 else 2.125
        x = 2 + bin_cells * (np.arange(2 * num) + 0.5).reshape(2, num) / num
        expected = (x**2 + (x % 1) * (1 - x % 1)).mean(axis=1)
        np.testing.assert_allclose(box, expected, rtol=8 * FLOAT32_UNIT)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38, 1.00390625, 1.01171875, -0.0, 1e-40])
def test_bf16_of_special_numbers(value: float) -> None:
    """All cells hold the same number, so the result is this number with torch's rounding to bfloat16."""
    bits = to_bf16(np.full((1, 2, 2, 1), value, np.float32))
    box = np.array([[0, 0, 1, 1]], np.float32)
    found = from_bf16(roi_align([bits], [1.0], box, np.zeros(1, np.int64), (1, 1)))
    np.testing.assert_array_equal(found, from_bf16(bits)[:, :1, :1])


def test_a_box_reads_only_the_cells_it_needs() -> None:
    level = np.full((1, 16, 16, 3), np.nan, np.float32)
    level[0, 4:9, 5:8] = 1.0
    box = np.array([[5.1, 4.1, 6.9, 7.9]], np.float32)
    found = pool_rois([level], box, np.zeros(1, np.int64), scales=[1.0])
    np.testing.assert_allclose(found, 1.0, rtol=24 * FLOAT32_UNIT)
    level[0, 6, 6, 1] = np.nan
    found = pool_rois([level], box, np.zeros(1, np.int64), scales=[1.0], output_hw=(1, 1))
    np.testing.assert_array_equal(np.isnan(found[0, 0, 0]), [False, True, False])


@pytest.mark.parametrize("dtype", [np.float32, np.uint16], ids=["float32", "bf16"])
@pytest.mark.parametrize(
    ("num_valid", "is_valid"),
    [
        ([10], [True] * 10),
        ([7], [True] * 7 + [False] * 3),
        ([0], [False] * 10),
        ([3, 1], [True] * 3 + [False] * 2 + [True] + [False] * 4),
    ],
    ids=str,
)
def test_padding_may_contain_any_values_and_gives_zeros(num_valid: list[int], is_valid: list[bool], dtype: Any) -> None:
    levels: list[Any] = random_levels(3)
    if dtype == np.uint16:
        levels = [to_bf16(level) for level in levels]
    expected = pool_rois(levels, BOXES, IMAGE_IDX)
    boxes, image_idx = BOXES.copy(), IMAGE_IDX.copy()
    boxes[~np.array(is_valid)], image_idx[~np.array(is_valid)] = np.nan, -(2**40)
    found = pool_rois(levels, boxes, image_idx, num_valid=np.array(num_valid))
    np.testing.assert_array_equal(found[is_valid], expected[is_valid])
    assert not found[~np.array(is_valid)].any()


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize(
    "box",
    [
        [np.nan] * 4,
        [10, np.nan, 20, 20],
        [np.inf] * 4,
        [-np.inf, -np.inf, np.inf, np.inf],
        [np.inf, 0, -np.inf, 10],
        [3e38, 3e38, 3.2e38, 3.2e38],
    ],
    ids=str,
)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_invalid_boxes_give_zeros(box: list[float], num_levels: int, sampling_ratio: int) -> None:
    levels = random_levels(3)[:num_levels]
    boxes, image_idx = np.array([box], np.float32), np.zeros(1, np.int64)
    with np.errstate(invalid="ignore", over="ignore"):  # raised if the kernel runs in the interpreter
        found = pool_rois(levels, boxes, image_idx, scales=SCALES[:num_levels], sampling_ratio=sampling_ratio)
    assert not found.any()


@needs_jit
@pytest.mark.timeout(20)
def test_adaptive_sampling_of_a_huge_box_is_fast() -> None:
    boxes = np.array([[-1e30, -1e30, 1e30, 1e30], [0, 0, 1e9, 1e9]], np.float32)
    assert not pool_rois(random_levels(3), boxes, np.zeros(2, np.int64), sampling_ratio=0).any()


def test_a_box_of_negative_area_has_no_level() -> None:
    box = np.array([[90, 20, 10, 70]], np.float32)
    assert not pool_rois(random_levels(3), box, np.zeros(1, np.int64)).any()


def test_no_boxes() -> None:
    assert pool_rois(random_levels(3), np.zeros((0, 4), np.float32), np.zeros(0, np.int64)).shape == (0, 3, 2, 3)


@needs_jit
def test_a_level_may_have_more_elements_than_32_bits_count() -> None:
    try:
        level = np.zeros((33, 256, 256, 1024), np.uint16)  # 4.4 GB of address space, of which one page is used
    except MemoryError:
        pytest.skip("no address space for 4.4 GB")
    level[32, 255, 255, :] = to_bf16(np.ones(1, np.float32))
    box = np.array([[255, 255, 256, 256]], np.float32)
    found = pool_rois([level], box, np.array([32]), output_hw=(1, 1), scales=[1.0])
    np.testing.assert_array_equal(from_bf16(found), 1.0)


def options(**changes: Any) -> dict[str, Any]:
    """Arguments of `roi_align`."""
    valid = {"levels": random_levels(3), "scales": SCALES, "boxes_xyxy": BOXES, "image_idx": IMAGE_IDX}
    return {**valid, "output_hw": (3, 2), **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_xyxy": BOXES[:, :3]}, r"boxes_xyxy must be \(N, 4\) float32, got \(10, 3\) float32"),
        ({"boxes_xyxy": BOXES.astype(np.float64)}, "boxes_xyxy must be .* float64"),
        ({"image_idx": IMAGE_IDX[:9]}, r"image_idx must be \(10,\) int64, got \(9,\)"),
        ({"image_idx": IMAGE_IDX.astype(np.int32)}, "image_idx must be .* int32"),
        ({"image_idx": IMAGE_IDX + 1}, "must be in 0 … 1"),
        ({"image_idx": IMAGE_IDX - 1}, "must be in 0 … 1"),
        ({"levels": []}, "one scale for each of at least one level, got 0 and 3"),
        ({"scales": (0.25, 0.125)}, "got 3 and 2"),
        ({"scales": (0.25, 0.0625, 0.03125)}, "each half of the one before"),
        ({"scales": (-1.0, -0.5, -0.25)}, "must be positive"),
        ({"levels": [np.zeros((2, 0, 4, 3), np.float32)], "scales": (1.0,)}, "not empty"),
        ({"levels": [np.zeros((2, 4, 4, 3))], "scales": (1.0,)}, r"got \(2, 4, 4, 3\) float64"),
        ({"levels": [np.zeros((4, 4, 3), np.float32)], "scales": (1.0,)}, r"\(B, H, W, C\)"),
        ({"levels": [*random_levels(3)[:2], random_levels(4)[2]]}, "levels must agree"),
        ({"levels": [*random_levels(3)[:2], to_bf16(random_levels(3)[2])]}, "levels must agree"),
        ({"levels": [level[:, :, ::2] for level in random_levels(3)]}, "contiguous as .* got strides"),
        ({"levels": [level.transpose(0, 3, 1, 2) for level in random_levels(3)]}, "contiguous as|levels must agree"),
        ({"output_hw": (0, 2)}, "at least 1"),
        ({"sampling_ratio": -1}, "at least 1 and sampling_ratio 0, got .* and -1"),
        ({"num_valid": np.array([11])}, r"num_valid must be in 0 … 10, got 11 … 11"),
        ({"num_valid": np.array([-1, 3])}, r"num_valid must be in 0 … 5"),
        ({"num_valid": np.array([1, 1, 1])}, "10 boxes in G equal groups"),
        ({"out": np.zeros((10, 3, 2, 3), np.uint16)}, r"out must be \(10, 3, 2, 3\) float32"),
        ({"out": np.zeros((10, 2, 3, 3), np.float32)}, r"got \(10, 2, 3, 3\)"),
        ({"out": np.zeros((10, 3, 2, 6), np.float32)[..., ::2]}, "contiguous"),
    ],
)
def test_invalid_arguments_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        roi_align(**options(**changes))


def test_boxes_may_be_non_contiguous() -> None:
    wide = np.repeat(BOXES, 2, axis=0)
    levels = random_levels(3)
    found = pool_rois(levels, wide[::2], np.repeat(IMAGE_IDX, 2)[::2])
    np.testing.assert_array_equal(found, pool_rois(levels, BOXES, IMAGE_IDX))


TWO_THREADS = """
import threading, numpy, numba
from ops.roi_align import roi_align

level = numpy.random.default_rng(0).standard_normal((1, 64, 64, 64), dtype=numpy.float32)
boxes = numpy.tile(numpy.array([[0, 0, 60, 60]], numpy.float32), (500, 1))
found = [None, None]

def work(index):
    for _ in range(20):
        found[index] = roi_align([level], [1.0], boxes, numpy.zeros(500, numpy.int64), (7, 7))

threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert numpy.array_equal(*found)
print(numba.threading_layer())
"""


@needs_jit
@pytest.mark.parametrize("pool", ["workqueue", "default"])
def test_two_threads_can_call_at_once(pool: str) -> None:
    """numba's workqueue threading layer aborts a process that launches from two threads."""
    environment = {**os.environ, "NUMBA_THREADING_LAYER": pool, "NUMBA_NUM_THREADS": "2"}
    child = subprocess.run(
        [sys.executable, "-c", TWO_THREADS], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
    )
    assert child.returncode == 0, child.stderr
    assert pool in ("default", child.stdout.strip())


def width_in_cells(of_two_bins: NDArray[Any]) -> float:
    """Return the width of a box that was pooled into (1, 2) bins on a ramp of slope 1 per cell."""
    left, right = of_two_bins.reshape(2)
    return 2.0 * float(right - left)


def test_roi_align_keeps_fractional_widths_unlike_roi_pool() -> None:
    """A 15x15 RoI of a 128x128 image is 2.93 cells wide on a 25x25 map. RoIAlign keeps this width. RoIPool with
    truncated corners gives 2. RoIPool as in Fast R-CNN's code, with rounded corners and an inclusive last cell, gives
    4.
    """
    ramp = np.broadcast_to(np.arange(25, dtype=np.float32)[:, None], (25, 25, 1)).copy()
    scale = 25 / 128
    box = np.array([[0, 0, 15, 15]], np.float32)
    found = roi_align([ramp[None]], [scale], box, np.zeros(1, np.int64), (1, 2))
    assert width_in_cells(found) == pytest.approx(15 * 25 / 128, abs=1e-6)
    assert round(width_in_cells(found), 2) == 2.93
    exact = ramp.astype(np.float64)
    assert width_in_cells(reference.roi_align(exact, box[0], (1, 2), scale, 2, aligned=False)) == 2.9296875
    assert width_in_cells(reference.roi_pool(exact, box[0], (1, 2), scale, truncated=True)) == 2
    assert width_in_cells(reference.roi_pool(exact, box[0], (1, 2), scale)) == 4


@pytest.mark.parametrize("output_hw", [(2, 3), (7, 7)], ids=str)
def test_roi_pool_of_the_reference_equals_torchvisions(output_hw: tuple[int, int]) -> None:
    level = random_levels(3)[0][:1]
    boxes = [box for box in BOXES if box[0] < 160]
    rois = torch.from_numpy(np.column_stack([np.zeros(len(boxes)), boxes]).astype(np.float32))
    nchw = torch.from_numpy(level).permute(0, 3, 1, 2).contiguous()
    expected = torchvision_ops.roi_pool(nchw, rois, output_hw, SCALES[0]).permute(0, 2, 3, 1).numpy()
    found = np.stack([reference.roi_pool(level[0], box, output_hw, SCALES[0]) for box in boxes])
    np.testing.assert_array_equal(found, expected)
