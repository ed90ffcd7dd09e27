"""Conversion of 4:2:0 to the network's input: colours of the standards, and comparison with the reference, torch and
OpenCV."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ops import reference
from ops.preprocess import NUM_PARAMS, i420_to_rgb, pack_frames, preprocess_batch, rgb_to_i420
from pipeline.contract.arrays import ColourMatrix, I420Frame

LUMA_SHARES = {
    ColourMatrix.BT601: (0.299, 0.114),
    ColourMatrix.BT709: (0.2126, 0.0722),
    ColourMatrix.BT2020: (0.2627, 0.0593),
}

# RGB in [0, 1] results from at most five float32 operations on numbers below 2.
FLOAT32_TOLERANCE = 1e-6


def frame_of(
    data: NDArray[np.uint8], hw: tuple[int, int], matrix: ColourMatrix = ColourMatrix.BT709, *, full_range: bool = False
) -> I420Frame:
    return I420Frame(data, hw[1], hw[0], hw[1], hw[0], matrix, full_range)


def random_frame(
    hw: tuple[int, int], matrix: ColourMatrix = ColourMatrix.BT709, *, full_range: bool = False
) -> I420Frame:
    data = np.random.default_rng(hw[0]).integers(0, 256, hw[0] * hw[1] * 3 // 2, dtype=np.uint8)
    return frame_of(data, hw, matrix, full_range=full_range)


def plain_batch(frame: I420Frame, input_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(*input_hw, 3): RGB in [0, 1], not normalised."""
    batch = preprocess_batch([frame], [input_hw], input_hw, (0, 0, 0), (1, 1, 1))
    assert batch.dtype == np.float32
    return batch[0].view(np.float32)


@pytest.mark.parametrize(
    ("matrix", "full_range", "ycbcr", "rgb"),
    [
        ("bt709", False, (16, 128, 128), (0, 0, 0)),
        ("bt709", False, (235, 128, 128), (255, 255, 255)),
        ("bt709", True, (255, 128, 128), (255, 255, 255)),
        ("bt601", False, (81, 90, 240), (255, 0, 0)),
        ("bt709", False, (63, 102, 240), (255, 0, 0)),
        ("bt709", False, (173, 42, 26), (0, 255, 0)),
        ("bt2020", False, (74, 97, 240), (255, 0, 0)),
        ("bt601", True, (76, 85, 255), (255, 0, 0)),
    ],
)
def test_colours_of_the_standards(matrix: str, full_range: bool, ycbcr: tuple[int, ...], rgb: tuple[int, ...]) -> None:
    data = np.repeat(np.array(ycbcr, np.uint8), [16, 4, 4])
    found = i420_to_rgb(frame_of(data, (4, 4), ColourMatrix(matrix), full_range=full_range))
    # the code values in the standards are rounded to integers: up to two levels of RGB
    assert np.abs(found.astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", list(ColourMatrix))
def test_conversion_equals_the_reference(matrix: ColourMatrix, full_range: bool) -> None:
    frame = random_frame((6, 10), matrix, full_range=full_range)
    expected = reference.i420_to_rgb(*frame.planes(), *LUMA_SHARES[matrix], full_range=full_range)
    np.testing.assert_allclose(plain_batch(frame, (6, 10)), expected, atol=FLOAT32_TOLERANCE)
    assert np.abs(i420_to_rgb(frame) - expected * 255).max() <= 0.5 + 255 * FLOAT32_TOLERANCE


def test_a_wrong_chroma_position_is_detected() -> None:
    frame = random_frame((6, 10))
    y, u, v = frame.planes()
    shifted = reference.i420_to_rgb(y, np.roll(u, 1, axis=1), v, *LUMA_SHARES[ColourMatrix.BT709], full_range=False)
    assert np.abs(plain_batch(frame, (6, 10)) - shifted).max() > 1e3 * FLOAT32_TOLERANCE


def test_chroma_interpolation_by_hand() -> None:
    # V rises by 16 per sample; pixels lie at 1/4 and 3/4 between two samples; the border is replicated.
    y, u = np.full((2, 8), 128, np.uint8), np.full((1, 4), 128, np.uint8)
    v = np.array([[112, 128, 144, 160]], np.uint8)
    frame = frame_of(np.concatenate([y.ravel(), u.ravel(), v.ravel()]), (2, 8), ColourMatrix.BT601, full_range=True)
    v_at_pixels = np.array([112, 116, 124, 132, 140, 148, 156, 160])
    np.testing.assert_allclose(
        plain_batch(frame, (2, 8))[0, :, 0], (128 + 1.402 * (v_at_pixels - 128)) / 255, atol=FLOAT32_TOLERANCE
    )


def test_opencv_agrees_for_constant_chroma() -> None:
    data = np.concatenate([np.arange(16, 236, dtype=np.uint8).repeat(2), np.repeat(np.array([90, 150], np.uint8), 110)])
    frame = frame_of(data, (2, 220), ColourMatrix.BT601)
    expected = cv2.cvtColor(data.reshape(3, 220), cv2.COLOR_YUV2RGB_I420)
    # OpenCV uses fixed-point arithmetic
    assert np.abs(i420_to_rgb(frame).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("input_hw", [(12, 20), (9, 7), (3, 31), (1, 1)], ids=str)
def test_resizing_equals_the_reference_and_torch(input_hw: tuple[int, int]) -> None:
    frame = random_frame((6, 10))
    rgb = plain_batch(frame, (6, 10))
    found = plain_batch(frame, input_hw)
    np.testing.assert_allclose(
        found, reference.resize_bilinear(rgb.astype(np.float64), input_hw), atol=FLOAT32_TOLERANCE
    )
    planar = torch.from_numpy(rgb).permute(2, 0, 1)[None]
    torchs = torch.nn.functional.interpolate(planar, size=input_hw, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found, torchs[0].permute(1, 2, 0).numpy(), atol=FLOAT32_TOLERANCE)


def test_a_batch_is_normalised_and_padded_with_zeros() -> None:
    small, large = random_frame((4, 6)), random_frame((8, 10))
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    batch = preprocess_batch([small, large], [(4, 6), (6, 8)], (32, 64), mean, std)
    assert batch.shape == (2, 32, 64, 3)
    assert batch.dtype == np.float32
    for picture, frame, (height, width) in zip(batch, (small, large), ((4, 6), (6, 8)), strict=True):
        expected = (plain_batch(frame, (height, width)) - np.float32(mean)) / np.float32(std)
        # divided by a standard deviation of at least 0.2
        np.testing.assert_allclose(picture[:height, :width], expected, atol=5 * FLOAT32_TOLERANCE)
        assert not picture[height:].any()
        assert not picture[:, width:].any()


@pytest.mark.parametrize("input_hw", [(8, 10), (16, 7)], ids=["not resized", "resized"])
def test_bf16_is_float32_rounded_once(input_hw: tuple[int, int]) -> None:
    arguments = [random_frame((8, 10))], [input_hw], (32, 64), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    expected = torch.from_numpy(preprocess_batch(*arguments)).bfloat16().view(torch.uint16).numpy()
    found = preprocess_batch(*arguments, bf16=True)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


def test_rows_are_converted_independently() -> None:
    """Resized to a third, so that the two cached rows are replaced in both positions."""
    frame = random_frame((18, 24))
    np.testing.assert_array_equal(plain_batch(frame, (6, 8)), plain_batch(frame, (18, 24))[1::3, 1::3])


def test_non_contiguous_planes_are_read_correctly() -> None:
    class Strided:
        matrix, full_range = ColourMatrix.BT709, False

        def planes(self) -> tuple[NDArray[np.uint8], ...]:
            y, u, v = random_frame((8, 10)).planes()
            return y.repeat(2, axis=1)[:, ::2], u.repeat(2, axis=0)[::2], v.T.copy().T

    for input_hw in ((8, 10), (9, 13)):
        found = preprocess_batch([Strided()], [input_hw], input_hw, (0, 0, 0), (1, 1, 1))  # type: ignore[list-item]
        np.testing.assert_array_equal(found[0], plain_batch(random_frame((8, 10)), input_hw))


def test_an_input_larger_than_the_batch_raises() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        preprocess_batch([random_frame((4, 6))], [(40, 60)], (32, 64), (0, 0, 0), (1, 1, 1))


def test_packing_concatenates_the_planes_and_writes_nothing_after_them() -> None:
    pictures = [random_frame((4, 6)), random_frame((8, 10), ColourMatrix.BT601, full_range=True)]
    planes = np.full((3, 130), 77, np.uint8)
    params = np.full((3, NUM_PARAMS), np.nan, np.float32)
    pack_frames(pictures, [(4, 6), (16, 20)], planes, params)
    np.testing.assert_array_equal(planes[0, :36], pictures[0].data)
    np.testing.assert_array_equal(planes[1, :120], pictures[1].data)
    assert (planes[0, 36:] == 77).all()
    assert (planes[1, 120:] == 77).all()
    assert (planes[2] == 77).all()
    np.testing.assert_array_equal(params[:, :4], [[4, 6, 4, 6], [8, 10, 16, 20], [0, 0, 0, 0]])
    # offset and inverse range of luma, then the factor of Cr in red: 2 (1 - Kr) over the range of chroma
    np.testing.assert_allclose(params[0, 4:7], [16, 1 / 219, 2 * (1 - 0.2126) / 224], rtol=FLOAT32_TOLERANCE)
    np.testing.assert_allclose(params[1, 4:7], [0, 1 / 255, 2 * (1 - 0.299) / 255], rtol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planes": np.zeros((1, 35), np.uint8)}, r"a picture of \(4, 6\) does not fit into 35 bytes"),
        ({"input_hws": [(4, 6)] * 2}, "got 1 pictures, 2 sizes"),
        ({"pictures": [random_frame((4, 6))] * 2, "input_hws": [(4, 6)] * 2}, "got 2 pictures, 2 sizes and 1 rows"),
        ({"params": np.zeros((2, NUM_PARAMS), np.float32)}, r"params must be \(1, 10\) float32, got \(2, 10\)"),
        ({"params": np.zeros((1, NUM_PARAMS))}, "params must be .* float64"),
        ({"planes": np.zeros((1, 128), np.uint8)[:, ::2]}, "planes must be .* contiguous"),
        ({"planes": np.zeros((1, 64), np.int8)}, "planes must be .* int8"),
    ],
)
def test_packing_raises_for_invalid_input(changes: dict[str, Any], message: str) -> None:
    valid = {"pictures": [random_frame((4, 6))], "input_hws": [(4, 6)]}
    memory = {"planes": np.zeros((1, 64), np.uint8), "params": np.zeros((1, NUM_PARAMS), np.float32)}
    with pytest.raises(ValueError, match=message):
        pack_frames(**{**valid, **memory, **changes})


def test_rgb_survives_a_round_trip_through_420() -> None:
    rows, columns = np.mgrid[:48, :64]
    rgb = np.stack([rows * 5, columns * 4, 255 - rows * 5], axis=-1).astype(np.uint8)
    frame = frame_of(rgb_to_i420(rgb), (48, 64), ColourMatrix.BT601, full_range=True)
    # steps of 5 a pixel in two channels, averaged over 2x2 and rounded thrice
    assert np.abs(i420_to_rgb(frame).astype(int) - rgb).max() <= 4


@pytest.mark.parametrize("rgb", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 0), (0, 0, 255), (17, 130, 201)])
def test_a_constant_colour_survives_420(rgb: tuple[int, int, int]) -> None:
    picture = np.full((4, 6, 3), rgb, np.uint8)
    frame = frame_of(rgb_to_i420(picture), (4, 6), ColourMatrix.BT601, full_range=True)
    assert np.abs(i420_to_rgb(frame).astype(int) - picture).max() <= 2


@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 4, 3), (4, 4), (4, 4, 4)], ids=str)
def test_a_picture_that_cannot_be_420_raises(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="even"):
        rgb_to_i420(np.zeros(shape, np.uint8))
