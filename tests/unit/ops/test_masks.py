"""Masks: run lengths against pycocotools, pasting against torchvision + pycocotools, geometry typed out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from ops import reference
from ops.masks import decode_rle, encode_rle, pack_bits, paste_rle, rle_area

FRAME_HW = (97, 143)
NUM = 24


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
    """Half-way between a 0 and a 1 lies exactly the threshold: the worst case for rounding."""
    return (rng.random((NUM, 28, 28)) > 0.5).astype(np.float32)


def eighths(rng: np.random.Generator) -> NDArray[np.float32]:
    return (np.round(noise(rng) * 8) / 8).astype(np.float32)


def boxes_of_size(low_px: float, high_px: float, *, whole: bool = False, clipped: bool = True):
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


@pytest.mark.parametrize("boxes", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("make_masks", [blobs, noise, zeros_and_ones, eighths])
def test_pasting_is_torchvisions_and_pycocotools_byte_for_byte(make_masks, boxes) -> None:
    rng = np.random.default_rng(7)
    masks, boxes_xyxy = make_masks(rng), boxes(rng)
    # torchvision itself fails for a box that misses the frame
    meets = (boxes_xyxy[:, :2] < FRAME_HW[::-1]).all(1) & (boxes_xyxy[:, 2:] > 0).all(1)
    masks, boxes_xyxy = masks[meets], boxes_xyxy[meets]
    assert paste_rle(masks, boxes_xyxy, FRAME_HW) == torchvision_rle(masks, boxes_xyxy, FRAME_HW)


def test_half_a_pixel_aside_is_found_out() -> None:
    rng = np.random.default_rng(7)
    masks, boxes_xyxy = blobs(rng), BOXES["ordinary"](rng)
    moved = paste_rle(masks, boxes_xyxy + np.float32(0.5), FRAME_HW)
    assert moved != torchvision_rle(masks, boxes_xyxy, FRAME_HW)


def test_a_map_that_is_not_resized_lies_where_the_hand_puts_it() -> None:
    # Centre 24.6, width 28 * 29 / 30: widened to 29, so from 10.1 to 39.1, pixels 10 to 39: the 30 padded columns.
    low, high = 24.6 - 14 * 29 / 30, 24.6 + 14 * 29 / 30
    mask = np.random.default_rng(3).random((28, 28)) > 0.5
    expected = np.zeros((50, 60), np.bool_)
    expected[11:39, 11:39] = mask
    (counts,) = paste_rle(mask[None].astype(np.float32), np.array([[low, low, high, high]], np.float32), (50, 60))
    np.testing.assert_array_equal(decode_rle(counts, (50, 60)), expected)


def test_pasting_agrees_with_the_loops() -> None:
    rng = np.random.default_rng(5)
    masks, boxes_xyxy = noise(rng)[:6], boxes_of_size(3.0, 30.0, clipped=False)(rng)[:6]
    for mask, box_xyxy, counts in zip(masks, boxes_xyxy, paste_rle(masks, boxes_xyxy, FRAME_HW), strict=True):
        pasted = reference.paste_mask(mask.astype(np.float64), box_xyxy, FRAME_HW)
        sure = np.abs(pasted - 0.5) > 1e-6  # the loops are in float64
        np.testing.assert_array_equal(decode_rle(counts, FRAME_HW)[sure], (pasted > 0.5)[sure])


def test_the_frame_costs_nothing() -> None:
    mask = np.ones((1, 28, 28), np.float32)
    box_xyxy = np.array([[1000.0, 2000.0, 1100.0, 2200.0]], np.float32)
    (near,) = paste_rle(mask, box_xyxy, (2500, 1200))
    (far,) = paste_rle(mask, box_xyxy, (1_000_000, 1_000_000))  # a bitmap of it would be 10^12 bytes
    assert rle_area(far) == rle_area(near) > 100 * 200


@pytest.mark.parametrize(
    "box_xyxy", [[-50, 10, -20, 40], [10, 300, 40, 340], [200, 10, 260, 40], [5, -90, 60, -60]], ids=str
)
def test_a_box_outside_the_frame_leaves_it_empty(box_xyxy: list[int]) -> None:
    counts = paste_rle(np.ones((1, 28, 28), np.float32), np.array([box_xyxy], np.float32), FRAME_HW)
    assert counts == [encode_rle(np.zeros(FRAME_HW, np.bool_))]


def test_no_instances_no_strings() -> None:
    assert paste_rle(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), FRAME_HW) == []


def test_input_need_not_be_contiguous() -> None:
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
def test_wrong_input_is_refused(masks, boxes_xyxy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paste_rle(masks, boxes_xyxy, FRAME_HW)


def test_run_lengths_by_hand() -> None:
    # down the columns: 0 1 | 1 1 | 0 0, that is one zero, three ones, two zeros
    mask = np.array([[0, 1, 0], [1, 1, 0]], np.bool_)
    assert encode_rle(mask) == b"132"
    np.testing.assert_array_equal(decode_rle(b"132", (2, 3)), mask)
    assert rle_area(b"132") == 3


@pytest.mark.parametrize("hw", [(1, 1), (1, 40), (40, 1), (7, 5), (300, 200)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_are_pycocotools(hw: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(11).random(hw) < share
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert encode_rle(mask) == expected == reference.encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(expected, hw), mask)
    assert rle_area(expected) == mask.sum()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"13", "add up"),
        (b"1320", "add up"),
        (b"13 2", "character"),
        (b"13\xff", "character"),
        (b"13R", "inside a number"),
        (b"1" + b"P" * 20, "inside a number"),
        (b"1O2", "negative"),
        (b"", "add up"),
    ],
    ids=["short", "long", "blank", "high_bit", "cut", "endless", "negative", "empty"],
)
def test_malformed_run_lengths_are_refused(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rle(counts, (2, 3))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=24))
def test_any_bytes_decode_or_are_refused(counts: bytes) -> None:
    try:
        mask = decode_rle(counts, (4, 6))
    except ValueError:
        return
    assert mask.sum() == rle_area(counts)


def test_packed_bits_hold_the_thresholded_map() -> None:
    masks = np.random.default_rng(1).random((5, 28, 28)).astype(np.float32)
    packed = pack_bits(masks)
    assert packed.shape == (5, 98)
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1).reshape(5, 28, 28), masks > 0.5)
    assert pack_bits(masks[:0]).shape == (0, 98)
