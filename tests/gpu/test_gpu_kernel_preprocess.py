"""Preprocessing on CUDA, compared with the CPU kernel, which tests/unit/ops/test_preprocess.py checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ops.preprocess import NUM_PARAMS, pack_frames, preprocess_batch
from ops.preprocess_triton import preprocess
from pipeline.contract.arrays import ColourMatrix, I420Frame

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Interpolation weights may differ by one rounding (2^-24) on each axis, for neighbours that differ by at most 1. Two
# sums add one rounding each. The result is divided by a standard deviation of at least 0.224.
RESIZED_TOLERANCE = 4 * 2.0**-24 / 0.224

MATRICES = list(ColourMatrix)


def random_frame(hw: tuple[int, int], seed: int) -> I420Frame:
    """Noise pictures with every matrix and range in turn; neighbouring pixels differ by up to the full range."""
    data = np.random.default_rng(seed).integers(0, 256, hw[0] * hw[1] * 3 // 2, dtype=np.uint8)
    return I420Frame(data, hw[1], hw[0], hw[1], hw[0], MATRICES[seed % 3], full_range=seed % 2 == 0)


def on_device(
    device: torch.device,
    frames: Sequence[I420Frame],
    input_hws: Sequence[tuple[int, int]],
    padded_hw: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    *,
    capacity: int | None = None,
) -> NDArray[np.float32]:
    """The result of `preprocess` as (B, *padded_hw, 3), from planes filled with 255 after each picture."""
    max_num_bytes = max((len(frame.data) for frame in frames), default=0)
    planes = np.full((len(frames), max_num_bytes if capacity is None else capacity), 255, np.uint8)
    params = np.full((len(frames), NUM_PARAMS), np.nan, np.float32)
    pack_frames(frames, input_hws, planes, params)
    inputs = torch.from_numpy(planes).to(device), torch.from_numpy(params).to(device)
    batch = preprocess(*inputs, padded_hw, MEAN, STD, dtype)
    assert (batch.shape, batch.dtype) == ((len(frames), 3, *padded_hw), dtype)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    return batch.permute(0, 2, 3, 1).float().cpu().numpy()


def on_cpu(
    frames: Sequence[I420Frame], input_hws: Sequence[tuple[int, int]], padded_hw: tuple[int, int]
) -> NDArray[np.float32]:
    return preprocess_batch(frames, input_hws, padded_hw, MEAN, STD).view(np.float32)


def assert_close(found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> None:
    """Compare, and report the indices (picture, row, column, channel) of the largest difference."""
    difference = np.abs(found - expected)
    worst = np.unravel_index(np.argmax(np.nan_to_num(difference, nan=np.inf)), difference.shape)
    assert difference[worst] <= tolerance, f"{found[worst]} for {expected[worst]} at {[int(i) for i in worst]}"


@pytest.mark.parametrize("padded_hw", [(32, 32), (21, 33)], ids=str)
def test_pictures_of_the_input_size_are_bit_identical(device: torch.device, padded_hw: tuple[int, int]) -> None:
    """Every matrix and range, and sizes from one chroma sample to the whole batch."""
    hws = [(2, 2), (2, 30), (20, 2), (20, 32), (18, 6), (8, 14)]
    frames = [random_frame(hw, seed) for seed, hw in enumerate(hws)]
    found = on_device(device, frames, hws, padded_hw)
    np.testing.assert_array_equal(found, on_cpu(frames, hws, padded_hw))


@pytest.mark.parametrize(
    ("input_hws", "padded_hw"),
    [
        ([(12, 20), (9, 7), (3, 31), (1, 1), (24, 40)], (32, 64)),
        ([(30, 20), (7, 131), (3, 50)], (31, 133)),
    ],
    ids=["smaller", "larger and smaller"],
)
def test_resized_pictures_agree(
    device: torch.device, input_hws: list[tuple[int, int]], padded_hw: tuple[int, int]
) -> None:
    """The last picture of the first batch is not resized."""
    frames = [random_frame((24, 40), seed) for seed in range(len(input_hws))]
    found = on_device(device, frames, input_hws, padded_hw)
    assert_close(found, on_cpu(frames, input_hws, padded_hw), RESIZED_TOLERANCE)


def test_pictures_of_different_sizes_share_a_batch(device: torch.device) -> None:
    frames = [random_frame(hw, seed) for seed, hw in enumerate([(4, 6), (30, 50), (16, 16)])]
    input_hws = [(20, 31), (20, 34), (16, 16)]
    found = on_device(device, frames, input_hws, (32, 64), capacity=30 * 50 * 3 // 2 + 1001)
    assert_close(found, on_cpu(frames, input_hws, (32, 64)), RESIZED_TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_16_bit_formats_are_float32_rounded_once(device: torch.device, dtype: torch.dtype) -> None:
    frames, input_hws = [random_frame((24, 40), seed) for seed in range(2)], [(24, 40), (31, 50)]
    exact = torch.from_numpy(on_device(device, frames, input_hws, (32, 64)))
    expected = exact.to(dtype).float()
    if dtype == torch.bfloat16 and device.type == "cpu":  # Triton's interpreter truncates bfloat16
        expected = (exact.view(torch.int32) >> 16 << 16).view(torch.float32)
    np.testing.assert_array_equal(on_device(device, frames, input_hws, (32, 64), dtype), expected.numpy())


def test_wrong_variants_are_detected(device: torch.device) -> None:
    """A wrong range, chroma shifted by one sample, and an input size that differs by one."""
    frame, hw = random_frame((24, 40), 1), (30, 50)
    expected = on_cpu([frame], [hw], (32, 64))
    y, u, v = frame.planes()
    shifted = np.concatenate([y.ravel(), np.roll(u, 1, axis=1).ravel(), v.ravel()])
    wrong_frames = [
        I420Frame(frame.data, 40, 24, 40, 24, frame.matrix, full_range=True),
        I420Frame(shifted, 40, 24, 40, 24, frame.matrix, full_range=False),
    ]
    for wrong, wrong_hw in [*((wrong, hw) for wrong in wrong_frames), (frame, (30, 51))]:
        found = on_device(device, [wrong], [wrong_hw], (32, 64))
        assert np.abs(found - expected).max() > 1e3 * RESIZED_TOLERANCE


def test_rows_without_a_picture_are_zeros(device: torch.device) -> None:
    planes, params = np.full((3, 2000), 255, np.uint8), np.full((3, NUM_PARAMS), np.nan, np.float32)
    frame = random_frame((24, 40), 0)
    pack_frames([frame], [(24, 40)], planes, params)
    inputs = torch.from_numpy(planes).to(device), torch.from_numpy(params).to(device)
    found = preprocess(*inputs, (32, 64), MEAN, STD, torch.float32).permute(0, 2, 3, 1).cpu().numpy()
    np.testing.assert_array_equal(found[:1], on_cpu([frame], [(24, 40)], (32, 64)))
    assert not found[1:].any()


def test_an_input_larger_than_the_batch_is_cropped(device: torch.device) -> None:
    frame = random_frame((24, 40), 3)
    found = on_device(device, [frame], [(48, 80)], (17, 33))
    assert_close(found, on_cpu([frame], [(48, 80)], (48, 80))[:, :17, :33], RESIZED_TOLERANCE)


def test_no_pictures(device: torch.device) -> None:
    assert on_device(device, [], [], (32, 64)).shape == (0, 32, 64, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"planes": torch.zeros(2, 64)},
            r"planes must be \(B, capacity\) uint8 and contiguous, got \(2, 64\) float32",
        ),
        ({"planes": torch.zeros(64, 2, dtype=torch.uint8).T}, "planes must be .* contiguous"),
        ({"params": torch.zeros(1, NUM_PARAMS)}, r"params must be \(2, 10\) float32 and contiguous, got \(1, 10\)"),
        ({"params": torch.zeros(2, NUM_PARAMS, dtype=torch.float64)}, "params must be .* got .* float64"),
        ({"dtype": torch.float64}, "dtype must be float32, bfloat16 or float16, got torch.float64"),
    ],
)
def test_invalid_arguments_raise(changes: dict[str, Any], message: str) -> None:
    valid = {"planes": torch.zeros(2, 64, dtype=torch.uint8), "params": torch.zeros(2, NUM_PARAMS)}
    options = {"padded_hw": (32, 32), "mean": MEAN, "std": STD, "dtype": torch.float32}
    with pytest.raises(ValueError, match=message):
        preprocess(**{**valid, **options, **changes})


def test_a_captured_graph_can_be_replayed_with_pictures_of_other_sizes(cuda: torch.device) -> None:
    padded_hw, capacity = (800, 1344), 1080 * 1920 * 3 // 2
    planes = torch.zeros(2, capacity, dtype=torch.uint8, device=cuda)
    params = torch.zeros(2, NUM_PARAMS, device=cuda)
    preprocess(planes, params, padded_hw, MEAN, STD, torch.float32)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        batch = preprocess(planes, params, padded_hw, MEAN, STD, torch.float32)
    host_planes, host_params = np.zeros((2, capacity), np.uint8), np.zeros((2, NUM_PARAMS), np.float32)
    for hws, input_hws in (([(1080, 1920), (384, 682)], [(750, 1333), (384, 682)]), ([(798, 1342)], [(798, 1342)])):
        frames = [random_frame(hw, seed) for seed, hw in enumerate(hws)]
        pack_frames(frames, input_hws, host_planes, host_params)
        planes.copy_(torch.from_numpy(host_planes))
        params.copy_(torch.from_numpy(host_params))
        graph.replay()
        found = batch.permute(0, 2, 3, 1)[: len(hws)].cpu().numpy()
        assert_close(found, on_cpu(frames, input_hws, padded_hw), RESIZED_TOLERANCE)
