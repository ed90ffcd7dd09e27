"""Keypoint decoding: cases by hand, comparison with the reference and torchvision, and heatmaps that are hard to
search."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from ops import reference
from ops.keypoints import decode_keypoints

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
needs_jit = pytest.mark.skipif(WITHOUT_JIT, reason="too large for interpreted loops")

# Weights and sums in float32: about 20 roundings of 2^-24; the absolute weights sum to at most 1.375^2.
RELATIVE_ERROR = 40 * 2.0**-24

# A position is a pixel index times a size plus a corner: three roundings of values up to a few thousand.
POSITION_ERROR_PX = 1e-3

BOXES = np.array(
    [
        [10, 20, 66, 76],  # the size of the heatmap
        [3.25, 7.5, 120.75, 300.125],
        [100, 50, 111.5, 61.25],  # smaller than the heatmap
        [0, 0, 400, 30],
        [5.5, 5.5, 5.5, 5.5],  # empty, which counts as one pixel
        [640, 480, 640.5, 500],  # thinner than a pixel
        [-20, -30, 50.5, 40.25],
        [1000.1, 2000.2, 1057.3, 2091.9],
    ],
    np.float32,
)


def smooth_maps(num: int, num_keypoints: int, side: int, seed: int = 0) -> NDArray[np.float32]:
    """Peaks on a slope with noise, upsampled by two as in the network's last layer."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side:2, :side:2]
    at_x, at_y = random.uniform(0, side, (2, num, num_keypoints, 1, 1))
    bumps = 12 * np.exp(-((x - at_x) ** 2 + (y - at_y) ** 2) / side) - 6 + 0.02 * x
    rough = torch.from_numpy((bumps + 0.3 * random.standard_normal(bumps.shape)).astype(np.float32))
    return functional.interpolate(rough, (side, side), mode="bilinear", align_corners=False).numpy()


def noise_maps(num: int, num_keypoints: int, side: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num, num_keypoints, side, side), dtype=np.float32)


def assert_as_torchvision(heatmaps: NDArray[np.float32], boxes_xyxy: NDArray[np.float32]) -> None:
    """Check equal scores, and equal pixels unless both pixels have the same value within rounding."""
    found = decode_keypoints(heatmaps, boxes_xyxy)
    maps, boxes = torch.from_numpy(heatmaps), torch.from_numpy(boxes_xyxy)
    xy, scores = heatmaps_to_keypoints(maps, boxes)
    error = RELATIVE_ERROR * np.abs(heatmaps).max(axis=(2, 3))
    assert (np.abs(found[..., 2] - scores.numpy()) <= error).all()
    differs = (np.abs(found[..., :2] - xy[..., :2].numpy()) > POSITION_ERROR_PX).any(axis=2)
    sizes_px = np.maximum(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], 1)
    for n, k in zip(*np.nonzero(differs), strict=True):
        pixels_wh = np.ceil(sizes_px[n])
        resized = functional.interpolate(maps[n : n + 1, k : k + 1], tuple(pixels_wh[::-1].astype(int)), mode="bicubic")
        column, row = np.rint((found[n, k, :2] - boxes_xyxy[n, :2]) * pixels_wh / sizes_px[n] - 0.5).astype(int)
        assert scores[n, k] - resized[0, 0, row, column] <= 2 * error[n, k], f"box {n}, keypoint {k}: not the highest"


def test_a_heatmap_of_the_size_of_its_box_is_not_interpolated() -> None:
    heatmap = np.zeros((1, 1, 4, 4), np.float32)
    heatmap[0, 0, 1, 2] = 5.0
    found = decode_keypoints(heatmap, np.array([[10, 20, 14, 24]], np.float32))
    # row 1, column 2; the centre of a pixel is half a pixel from its corner
    np.testing.assert_array_equal(found, [[[12.5, 21.5, 5.0]]])


def test_a_box_twice_as_large_by_hand() -> None:
    heatmap = np.zeros((1, 1, 4, 4), np.float32)
    heatmap[0, 0, 1, 2] = 1.0
    found = decode_keypoints(heatmap, np.array([[0, 0, 8, 8]], np.float32))
    # four pixels are a quarter of a cell from the peak along both axes, weight 1.25/64 - 2.25/16 + 1 each: the first
    # of them is at row 2 and column 4
    np.testing.assert_array_equal(found, [[[4.5, 2.5, 0.87890625**2]]])


def test_fractional_box_sizes_are_rounded_up_and_scaled_back() -> None:
    heatmap = np.zeros((1, 1, 4, 4), np.float32)
    heatmap[0, 0, 3, 0] = 1.0
    found = decode_keypoints(heatmap, np.array([[10, 20, 13.5, 23.75]], np.float32))
    np.testing.assert_array_equal(found, [[[10 + 0.5 * 3.5 / 4, 20 + 3.5 * 3.75 / 4, 1.0]]])


def test_of_equal_maxima_the_first_is_returned() -> None:
    heatmaps = np.zeros((1, 3, 6, 6), np.float32)
    heatmaps[0, 1, [1, 4, 4], [5, 0, 5]] = 2.0
    heatmaps[0, 2, [4, 4], [5, 1]] = 2.0
    found = decode_keypoints(heatmaps, np.array([[0, 0, 6, 6]], np.float32))
    np.testing.assert_array_equal(found, [[[0.5, 0.5, 0.0], [5.5, 1.5, 2.0], [1.5, 4.5, 2.0]]])


@pytest.mark.parametrize(("maps", "side"), [(noise_maps, 2), (noise_maps, 5), (noise_maps, 8), (smooth_maps, 10)])
def test_equals_the_reference(maps, side: int) -> None:
    boxes = np.array([[3, 4, 11, 12], [0.5, 2.25, 25.75, 9], [7, 7, 7, 7], [1, 2, 4.5, 19.125]], np.float32)
    heatmaps = maps(len(boxes), 3, side)
    found = decode_keypoints(heatmaps, boxes)
    assert (found.shape, found.dtype) == ((4, 3, 3), np.float32)
    expected = [
        [reference.keypoint(heatmap.astype(float), box) for heatmap in of_box]
        for of_box, box in zip(heatmaps, boxes, strict=True)
    ]
    # random heatmaps have no two equal pixels
    assert np.abs(found - expected).max() <= 1e-5


@needs_jit
@pytest.mark.parametrize("maps", [smooth_maps, noise_maps])
def test_equals_torchvision(maps) -> None:
    assert_as_torchvision(maps(len(BOXES), 17, 56), BOXES)


@needs_jit
@pytest.mark.parametrize("seed", range(20))
def test_equals_torchvision_for_boxes_of_any_size(seed: int) -> None:
    random = np.random.default_rng(seed)
    corner = random.uniform(-50, 600, (6, 2))
    boxes = np.hstack([corner, corner + np.exp(random.uniform(-1, 6, (6, 2)))]).astype(np.float32)
    assert_as_torchvision(smooth_maps(6, 3, 56, seed), boxes)
    assert_as_torchvision(noise_maps(6, 3, 14, seed), boxes)


@needs_jit
@pytest.mark.parametrize("offset", [0.0, 1000.0, -1000.0], ids=["signed", "high", "low"])
def test_a_peak_between_cells_beats_the_highest_cell(offset: float) -> None:
    """Cubic interpolation between four equal cells overshoots by nearly the upper bound, and exceeds a single cell that
    is higher than each of the four.
    """
    heatmaps = np.full((1, 1, 56, 56), offset - 10, np.float32)
    heatmaps[0, 0, 20:22, 30:32] = offset + 1
    heatmaps[0, 0, 40, 10] = offset + 3
    box = np.array([[0, 0, 280, 280]], np.float32)
    x, y, score = decode_keypoints(heatmaps, box)[0, 0]
    # the peak is at one of the four pixels around the corner (155, 105), where the four cells of 5 x 5 pixels meet
    assert (abs(x - 155), abs(y - 105)) == (0.5, 0.5)
    assert score > offset + 5
    assert_as_torchvision(heatmaps, box)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (7, 7), (3, 4)], ids=str)
def test_a_heatmap_that_is_not_finite_gives_nan(bad: float, place: tuple[int, int]) -> None:
    heatmaps = smooth_maps(2, 2, 8)
    boxes = np.array([[0, 0, 20, 30], [5, 5, 12, 13]], np.float32)
    whole = decode_keypoints(heatmaps, boxes)
    heatmaps[1, 0, *place] = bad
    with np.errstate(invalid="ignore"):  # the kernel runs in the interpreter
        found = decode_keypoints(heatmaps, boxes)
    assert np.isnan(found[1, 0]).all()
    found[1, 0] = whole[1, 0]
    np.testing.assert_array_equal(found, whole)


def test_a_heatmap_of_one_cell_is_constant() -> None:
    ((found,),) = decode_keypoints(np.full((1, 1, 1, 1), 3.25, np.float32), np.array([[10, 20, 30, 50]], np.float32))
    assert found[2] == pytest.approx(3.25, rel=RELATIVE_ERROR)
    # rounding decides which pixel is the highest
    assert (found[:2] >= [10.5, 20.5]).all()
    assert (found[:2] <= [29.5, 49.5]).all()


def test_empty_input_gives_empty_output() -> None:
    found = decode_keypoints(np.zeros((0, 17, 56, 56), np.float32), np.zeros((0, 4), np.float32))
    assert (found.shape, found.dtype) == ((0, 17, 3), np.float32)


def test_non_contiguous_input() -> None:
    heatmaps = smooth_maps(3, 2, 8)
    boxes = np.array([[0, 0, 20, 30], [5, 5, 12, 13], [1, 2, 3, 4]], np.float32)
    turned = np.ascontiguousarray(heatmaps.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    wide = np.repeat(boxes, 2, axis=1)[:, ::2]
    assert not turned.flags.c_contiguous
    assert not wide.flags.c_contiguous
    np.testing.assert_array_equal(decode_keypoints(turned, wide), decode_keypoints(heatmaps, boxes))


@pytest.mark.parametrize(
    ("maps_shape", "maps_dtype", "boxes", "message"),
    [
        ((1, 17, 56, 56), np.float32, np.zeros((1, 5), np.float32), r"\(N, 4\) float32, got \(1, 5\) float32"),
        ((1, 17, 56, 56), np.float32, np.zeros((1, 4)), r"\(N, 4\) float32, got \(1, 4\) float64"),
        ((2, 17, 56, 56), np.float32, np.zeros((1, 4), np.float32), r"\(1, K, S, S\) float32, got \(2, 17, 56, 56\)"),
        ((1, 17, 56, 56), np.float16, np.zeros((1, 4), np.float32), r"\(1, K, S, S\) float32, got .* float16"),
        ((1, 17, 56, 28), np.float32, np.zeros((1, 4), np.float32), r"square and not empty, got \(1, 17, 56, 28\)"),
        ((1, 17, 0, 0), np.float32, np.zeros((1, 4), np.float32), r"square and not empty"),
        ((1, 1, 4, 4), np.float32, np.array([[0, 0, np.nan, 4]], np.float32), "finite and at most 10000 pixels"),
        ((1, 1, 4, 4), np.float32, np.array([[0, 0, 1e5, 4]], np.float32), "finite and at most 10000 pixels"),
    ],
    ids=["boxes-shape", "boxes-type", "another-number", "maps-type", "not-square", "empty", "nan", "huge"],
)
def test_invalid_input_raises(maps_shape, maps_dtype, boxes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_keypoints(np.zeros(maps_shape, maps_dtype), boxes)
