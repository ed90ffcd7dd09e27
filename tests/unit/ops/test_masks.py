"""Masks: pasting against torchvision and pycocotools, geometry by hand.

torch resizes with float32 kernels whose rounding depends on its version and on the CPU: with or without fused
multiply-adds, and with the source position in one rounding or in two. `paste_rle` always rounds in the same way, so its
result does not depend on torch. The tests state the rounding of both exactly, in NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn.functional import interpolate
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ops import reference
from ops.mask_format import decode_rle, rle_area
from ops.masks import encode_rle, pack_bits, paste_rle

MakeArray = Callable[[np.random.Generator], NDArray[np.float32]]

FRAME_HW = (97, 143)
NUM = 24


@dataclass(frozen=True)
class Rounding:
    """Rounding of a float32 bilinear resize."""

    fma: bool
    """fused multiply-adds in the weighted sums"""
    fused_position: bool
    """one rounding of `(pixel + 0.5) * scale - 0.5` instead of two; outputs whose height plus width is at most 128 px
    have one rounding if `fma` is set"""


PASTE_RLE = Rounding(fma=True, fused_position=False)
ROUNDINGS = (PASTE_RLE, Rounding(fma=True, fused_position=True), Rounding(fma=False, fused_position=False))


def fma(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32], fused: bool) -> NDArray[np.float32]:
    """Return a * b + c with one rounding (the float64 product of two float32 is exact) or with two."""
    return (a.astype(np.float64) * b + c).astype(np.float32) if fused else a * b + c


def source_cells(pixels: NDArray[np.int64], num_pixels: int, fused: bool) -> tuple[NDArray[Any], ...]:
    """Return the lower and upper of the 30 padded cells, and their weights, for each output pixel."""
    scale, half = np.float32(30) / np.float32(num_pixels), np.float32(0.5)
    position = np.maximum(fma(pixels.astype(np.float32) + half, scale, -half, fused), np.float32(0))
    lower = np.minimum(position.astype(np.int64), 29)
    weight = np.minimum(position - lower.astype(np.float32), np.float32(1))
    return lower, np.minimum(lower + 1, 29), np.float32(1) - weight, weight


def resize_float32(
    padded: NDArray[np.float32], rows: NDArray[np.int64], columns: NDArray[np.int64], hw: tuple[int, int], how: Rounding
) -> NDArray[np.float32]:
    """Return the given rows and columns of a (30, 30) mask resized to hw in float32."""
    small = hw[0] + hw[1] <= 128
    fused_position = how.fma if small else how.fused_position
    y0, y1, wy0, wy1 = (values[:, None] for values in source_cells(rows, hw[0], fused_position))
    x0, x1, wx0, wx1 = (values[None] for values in source_cells(columns, hw[1], fused_position))
    if small:
        value = fma(padded[y0, x0], wy0 * wx0, padded[y0, x1] * (wy0 * wx1), how.fma)
        value = fma(padded[y1, x0], wy1 * wx0, value, how.fma)
        return fma(padded[y1, x1], wy1 * wx1, value, how.fma)
    upper = fma(padded[y0, x0], wx0, padded[y0, x1] * wx1, how.fma)
    lower = fma(padded[y1, x0], wx0, padded[y1, x1] * wx1, how.fma)
    return fma(upper, wy0, lower * wy1, how.fma)


def paste_float32(
    mask: NDArray[np.float32], box_xyxy: NDArray[np.float32], frame_hw: tuple[int, int], how: Rounding
) -> NDArray[np.bool_]:
    """Return the (H, W) mask of the frame, with the arithmetic of torchvision's `paste_mask_in_image` in NumPy."""
    share, half = np.float32(30 / 28), np.float32(0.5)
    x1, y1, x2, y2 = box_xyxy
    half_w, half_h, centre_x, centre_y = (
        (x2 - x1) * half * share,
        (y2 - y1) * half * share,
        (x2 + x1) * half,
        (y2 + y1) * half,
    )
    left, top = int(centre_x - half_w), int(centre_y - half_h)
    hw = max(int(centre_y + half_h) - top + 1, 1), max(int(centre_x + half_w) - left + 1, 1)
    rows = np.arange(max(top, 0), min(top + hw[0], frame_hw[0]))
    columns = np.arange(max(left, 0), min(left + hw[1], frame_hw[1]))
    frame = np.zeros(frame_hw, np.bool_)
    if len(rows) and len(columns):
        frame[rows[:, None], columns] = resize_float32(np.pad(mask, 1), rows - top, columns - left, hw, how) > 0.5
    return frame


def paste_float32_rle(
    masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float32], frame_hw: tuple[int, int], how: Rounding
) -> list[bytes]:
    pasted = [paste_float32(mask, box, frame_hw, how) for mask, box in zip(masks, boxes_xyxy, strict=True)]
    return [coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in pasted]


@functools.cache
def torch_rounding() -> Rounding:
    """Return the rounding of the installed torch on this CPU."""
    padded = np.pad(np.random.default_rng(4).random((28, 28)).astype(np.float32), 1)
    hws = [(211, 307), (90, 45), (31, 42)]
    for how in ROUNDINGS:
        resized = [resize_float32(padded, np.arange(h), np.arange(w), (h, w), how) for h, w in hws]
        expected = [interpolate(torch.from_numpy(padded)[None, None], hw, mode="bilinear")[0, 0].numpy() for hw in hws]
        if all(np.array_equal(*pair) for pair in zip(resized, expected, strict=True)):
            return how
    pytest.fail(f"torch {torch.__version__} resizes with a rounding that is none of {ROUNDINGS}")


def torchvision_rle(
    masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float32], frame_hw: tuple[int, int]
) -> list[bytes]:
    pasted = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes_xyxy), frame_hw)[:, 0] > 0.5
    return [coco.encode(np.asfortranarray(mask))["counts"] for mask in pasted.numpy().astype(np.uint8)]


def blobs(rng: np.random.Generator) -> NDArray[np.float32]:
    rows, columns = np.mgrid[:28, :28]
    distance = np.hypot(rows - 13.5, columns - rng.uniform(8, 20, (NUM, 1, 1))) - rng.uniform(2, 18, (NUM, 1, 1))
    return (1 / (1 + np.exp(2 * distance))).astype(np.float32)


def noise(rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.random((NUM, 28, 28)).astype(np.float32)


def zeros_and_ones(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the worst case for rounding: half-way between 0 and 1 the value equals the threshold."""
    return (rng.random((NUM, 28, 28)) > 0.5).astype(np.float32)


def eighths(rng: np.random.Generator) -> NDArray[np.float32]:
    return (np.round(noise(rng) * 8) / 8).astype(np.float32)


def boxes_of_size(low_px: float, high_px: float, *, whole: bool = False, clipped: bool = True) -> MakeArray:
    def boxes(rng: np.random.Generator) -> NDArray[np.float32]:
        size = np.exp(rng.uniform(np.log(low_px), np.log(high_px), (NUM, 2)))
        centre = rng.random((NUM, 2)) * FRAME_HW[::-1]
        corners = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
        corners = np.clip(corners, 0, [*FRAME_HW[::-1]] * 2) if clipped else corners
        return (np.round(corners) if whole else corners).astype(np.float32)

    return boxes


BOXES = {
    "sub_pixel": boxes_of_size(0.01, 1.0),
    "about_a_pixel": boxes_of_size(0.9, 1.1, whole=True),
    "ordinary": boxes_of_size(4.0, 90.0),
    "whole_pixels": boxes_of_size(4.0, 90.0, whole=True),
    "partly_outside": boxes_of_size(20.0, 200.0, clipped=False),
    "huge": boxes_of_size(300.0, 3000.0, clipped=False),
}


MASKS = [blobs, noise, zeros_and_ones, eighths]


def paste_cases(make_masks: MakeArray, boxes: MakeArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return masks and boxes. Boxes outside the frame are removed, because torchvision fails for them."""
    rng = np.random.default_rng(7)
    masks, boxes_xyxy = make_masks(rng), boxes(rng)
    inside = (boxes_xyxy[:, :2] < FRAME_HW[::-1]).all(1) & (boxes_xyxy[:, 2:] > 0).all(1)
    return masks[inside], boxes_xyxy[inside]


@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("make_masks", MASKS)
def test_pasting_equals_torchvisions_arithmetic_byte_for_byte(make_masks: MakeArray, boxes: MakeArray) -> None:
    masks, boxes_xyxy = paste_cases(make_masks, boxes)
    pasted, theirs = paste_rle(masks, boxes_xyxy, FRAME_HW), torchvision_rle(masks, boxes_xyxy, FRAME_HW)
    assert theirs == paste_float32_rle(masks, boxes_xyxy, FRAME_HW, torch_rounding())
    assert pasted == paste_float32_rle(masks, boxes_xyxy, FRAME_HW, PASTE_RLE)
    if torch_rounding() == PASTE_RLE or make_masks in (blobs, noise):
        assert pasted == theirs


@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("make_masks", MASKS)
@pytest.mark.parametrize("how", ROUNDINGS, ids=str)
def test_every_rounding_gives_the_same_pixels_except_at_the_threshold(
    how: Rounding, make_masks: MakeArray, boxes: MakeArray
) -> None:
    masks, boxes_xyxy = paste_cases(make_masks, boxes)
    for mask, box_xyxy, counts in zip(
        masks[:6], boxes_xyxy[:6], paste_rle(masks, boxes_xyxy, FRAME_HW)[:6], strict=True
    ):
        differs = decode_rle(counts, FRAME_HW) != paste_float32(mask, box_xyxy, FRAME_HW, how)
        if differs.any():
            exact = reference.paste_mask(mask.astype(np.float64), box_xyxy, FRAME_HW)
            assert np.abs(exact[differs] - 0.5).max() < 1e-5


def test_a_shift_by_half_a_pixel_is_detected() -> None:
    rng = np.random.default_rng(7)
    masks, boxes_xyxy = blobs(rng), BOXES["ordinary"](rng)
    moved = paste_rle(masks, boxes_xyxy + np.float32(0.5), FRAME_HW)
    assert moved != torchvision_rle(masks, boxes_xyxy, FRAME_HW)


def test_a_mask_at_its_own_size_is_pasted_where_computed_by_hand() -> None:
    # The box has its centre at 24.6 and a side of 28 * 29 / 30. Widened by 30 / 28, it has a side of 29 and reaches
    # from 10.1 to 39.1: pixels 10 to 39, one for each of the 30 padded cells.
    low, high = 24.6 - 14 * 29 / 30, 24.6 + 14 * 29 / 30
    mask = np.random.default_rng(3).random((28, 28)) > 0.5
    expected = np.zeros((50, 60), np.bool_)
    expected[11:39, 11:39] = mask
    (counts,) = paste_rle(mask[None].astype(np.float32), np.array([[low, low, high, high]], np.float32), (50, 60))
    np.testing.assert_array_equal(decode_rle(counts, (50, 60)), expected)


def test_pasting_agrees_with_the_reference() -> None:
    rng = np.random.default_rng(5)
    masks, boxes_xyxy = noise(rng)[:6], boxes_of_size(3.0, 30.0, clipped=False)(rng)[:6]
    for mask, box_xyxy, counts in zip(masks, boxes_xyxy, paste_rle(masks, boxes_xyxy, FRAME_HW), strict=True):
        pasted = reference.paste_mask(mask.astype(np.float64), box_xyxy, FRAME_HW)
        sure = np.abs(pasted - 0.5) > 1e-6  # the reference computes in float64
        np.testing.assert_array_equal(decode_rle(counts, FRAME_HW)[sure], (pasted > 0.5)[sure])


def test_cost_does_not_depend_on_the_size_of_the_frame() -> None:
    mask = np.ones((1, 28, 28), np.float32)
    box_xyxy = np.array([[1000.0, 2000.0, 1100.0, 2200.0]], np.float32)
    (near,) = paste_rle(mask, box_xyxy, (2500, 1200))
    (far,) = paste_rle(mask, box_xyxy, (1_000_000, 1_000_000))  # a bitmap would take 10^12 bytes
    assert rle_area(far) == rle_area(near) > 100 * 200


@pytest.mark.parametrize(
    "box_xyxy", [[-50, 10, -20, 40], [10, 300, 40, 340], [200, 10, 260, 40], [5, -90, 60, -60]], ids=str
)
def test_a_box_outside_the_frame_gives_an_empty_mask(box_xyxy: list[int]) -> None:
    counts = paste_rle(np.ones((1, 28, 28), np.float32), np.array([box_xyxy], np.float32), FRAME_HW)
    assert counts == [encode_rle(np.zeros(FRAME_HW, np.bool_))]


def test_no_instances_give_no_strings() -> None:
    assert paste_rle(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), FRAME_HW) == []


def test_input_may_be_non_contiguous() -> None:
    rng = np.random.default_rng(2)
    masks, boxes_xyxy = blobs(rng), BOXES["ordinary"](rng)
    strided = paste_rle(np.asfortranarray(masks), np.asfortranarray(boxes_xyxy), FRAME_HW)
    assert strided == paste_rle(masks, boxes_xyxy, FRAME_HW)


@pytest.mark.parametrize(
    ("masks", "boxes_xyxy", "message"),
    [
        (np.zeros((1, 14, 14), np.float32), np.zeros((1, 4), np.float32), "masks must be"),
        (np.zeros((1, 28, 28)), np.zeros((1, 4), np.float32), "masks must be"),
        (np.zeros((2, 28, 28), np.float32), np.zeros((1, 4), np.float32), "boxes_xyxy must be"),
        (np.zeros((1, 28, 28), np.float32), np.full((1, 4), np.nan, np.float32), "finite"),
    ],
    ids=["side", "dtype", "count", "nan"],
)
def test_wrong_input_raises(masks, boxes_xyxy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paste_rle(masks, boxes_xyxy, FRAME_HW)


def test_packed_bits_contain_the_thresholded_mask() -> None:
    masks = np.random.default_rng(1).random((5, 28, 28)).astype(np.float32)
    packed = pack_bits(masks)
    assert packed.shape == (5, 98)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1).reshape(5, 28, 28), masks > 0.5)
    assert pack_bits(masks[:0]).shape == (0, 98)
