"""From 4:2:0 pictures to the network's input, and between 4:2:0 and RGB.

Y'CbCr to R'G'B' by the luma coefficients of ITU-R BT.601, BT.709 or BT.2020 (non-constant luminance), full range or
16-235 / 16-240. Chroma samples lie in the middle of their 2x2 pixels and are interpolated linearly between the four
nearest (weights 9, 3, 3, 1 of 16; the border repeats), as libjpeg's "fancy upsampling" does. RGB is clipped to [0, 1]
and not rounded to 8 bit. Resizing is bilinear between pixel centres at +0.5 (`align_corners=False`, no low-pass), on
RGB, as torchvision's detection transform does. `ops.reference.i420_to_rgb` and `ops.reference.resize_bilinear` are the
slow forms; tests/unit/test_preprocess.py holds them equal. Serial on purpose: a 568x320 frame takes 1 ms on one core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

# matrix -> (Kr, Kb), the share of red and of blue in luma
_LUMA_SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}

_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_UINT8_MAX = np.float32(255.0)


class Picture420(Protocol):
    """A picture as planar Y'CbCr 4:2:0, 8 bit."""

    @property
    def matrix(self) -> str:
        """bt601, bt709 or bt2020."""

    @property
    def full_range(self) -> bool:
        """False: luma 16-235, chroma 16-240."""

    def planes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Y (H, W), U and V (H // 2, W // 2), all uint8; H and W even."""


def i420_to_rgb(picture: Picture420) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of the picture at its own size, rounded to nearest."""
    y, u, v = picture.planes()
    out = np.empty((*y.shape, 3), np.uint8)
    _to_uint8(_rgb_float(y, u, v, _coefficients(picture.matrix, full_range=picture.full_range)), out)
    return out


def rgb_to_i420(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H * W * 3 // 2,) uint8: Y, U and V planes of a (H, W, 3) uint8 RGB picture, BT.601, full range (as JPEG).

    The chroma of 2x2 pixels is that of their mean. Raises ValueError unless H and W are even.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.shape[0] % 2 or rgb.shape[1] % 2:
        raise ValueError(f"rgb must be (H, W, 3) uint8 with H and W even, got {rgb.shape} {rgb.dtype}")
    height, width = rgb.shape[:2]
    out = np.empty(height * width * 3 // 2, np.uint8)
    kr, kb = _LUMA_SHARES["bt601"]
    _rgb_to_planes(np.ascontiguousarray(rgb), np.float32(kr), np.float32(kb), out)
    return out


def preprocess_batch(
    pictures: Sequence[Picture420],
    input_hws: Sequence[tuple[int, int]],
    padded_hw: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
) -> NDArray[np.float32]:
    """(B, *padded_hw, 3) float32, channels last: RGB in [0, 1], resized to input_hws[b], minus mean, by std.

    A picture that has its input size already is not resampled. It lies in the upper left corner; the rest is 0.
    Raises ValueError for an input size that is larger than padded_hw.
    """
    batch = np.zeros((len(pictures), *padded_hw, 3), np.float32)
    mean_rgb = np.asarray(mean, np.float32)
    inverse_std_rgb = np.float32(1.0) / np.asarray(std, np.float32)
    for out, picture, input_hw in zip(batch, pictures, input_hws, strict=True):
        if input_hw[0] > padded_hw[0] or input_hw[1] > padded_hw[1]:
            raise ValueError(f"an input of {input_hw} does not fit into {padded_hw}")
        y, u, v = picture.planes()
        rgb = _rgb_float(y, u, v, _coefficients(picture.matrix, full_range=picture.full_range))
        if y.shape == input_hw:
            _normalise(rgb, mean_rgb, inverse_std_rgb, out)
        else:
            _resize_normalise(rgb, input_hw[0], input_hw[1], mean_rgb, inverse_std_rgb, out)
    return batch


def _coefficients(matrix: str, *, full_range: bool) -> NDArray[np.float32]:
    """[luma offset, luma scale, red of Cr, green of Cb, green of Cr, blue of Cb], from 0 to 255 to RGB 0 to 1."""
    kr, kb = _LUMA_SHARES[matrix]
    kg = 1.0 - kr - kb
    offset, luma_span, chroma_span = (0.0, 255.0, 255.0) if full_range else (16.0, 219.0, 224.0)
    red, blue = 2.0 * (1.0 - kr), 2.0 * (1.0 - kb)
    chroma = np.array([red, -blue * kb / kg, -red * kr / kg, blue]) / chroma_span
    return np.array([offset, 1.0 / luma_span, *chroma], np.float32)


@njit(cache=True, nogil=True)
def _rgb_float(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], coefficients: NDArray[np.float32]
) -> NDArray[np.float32]:
    """(H, W, 3) float32 RGB in [0, 1]."""
    height, width = y.shape
    half_h, half_w = u.shape
    offset, scale, red_v, green_u, green_v, blue_u = coefficients
    sixteenth = np.float32(1.0 / 16.0)
    rgb = np.empty((height, width, 3), np.float32)
    u_row = np.empty(half_w + 2, np.float32)  # four times the chroma less 128 at this row, one sample more at each side
    v_row = np.empty(half_w + 2, np.float32)
    for row in range(height):
        near = row // 2
        far = min(near + 1, half_h - 1) if row % 2 else max(near - 1, 0)
        for column in range(half_w):
            u_row[column + 1] = np.float32(3 * np.int32(u[near, column]) + np.int32(u[far, column]) - 512)
            v_row[column + 1] = np.float32(3 * np.int32(v[near, column]) + np.int32(v[far, column]) - 512)
        u_row[0], u_row[half_w + 1] = u_row[1], u_row[half_w]
        v_row[0], v_row[half_w + 1] = v_row[1], v_row[half_w]
        for column in range(half_w):
            u_near, v_near = np.float32(3.0) * u_row[column + 1], np.float32(3.0) * v_row[column + 1]
            for side in range(2):
                cb = (u_near + u_row[column + 2 * side]) * sixteenth
                cr = (v_near + v_row[column + 2 * side]) * sixteenth
                luma = (np.float32(y[row, 2 * column + side]) - offset) * scale
                pixel = rgb[row, 2 * column + side]
                pixel[0] = min(max(luma + red_v * cr, _ZERO), _ONE)
                pixel[1] = min(max(luma + green_u * cb + green_v * cr, _ZERO), _ONE)
                pixel[2] = min(max(luma + blue_u * cb, _ZERO), _ONE)
    return rgb


@njit(cache=True, nogil=True)
def _to_uint8(rgb: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    flat_in, flat_out = rgb.reshape(-1), out.reshape(-1)
    for index in range(len(flat_in)):
        flat_out[index] = np.uint8(flat_in[index] * _UINT8_MAX + _HALF)


@njit(cache=True, nogil=True)
def _normalise(
    rgb: NDArray[np.float32], mean: NDArray[np.float32], inverse_std: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    for row in range(rgb.shape[0]):
        for column in range(rgb.shape[1]):
            for channel in range(3):
                out[row, column, channel] = (rgb[row, column, channel] - mean[channel]) * inverse_std[channel]


@njit(cache=True, nogil=True)
def _resize_normalise(
    rgb: NDArray[np.float32],
    height: int,
    width: int,
    mean: NDArray[np.float32],
    inverse_std: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Bilinear resize to (height, width), rows first, into the upper left corner of `out`."""
    row_idx, row_weight = _taps(rgb.shape[0], height)
    column_idx, column_weight = _taps(rgb.shape[1], width)
    blended = np.empty((rgb.shape[1], 3), np.float32)
    for row in range(height):
        upper = row_idx[row]
        lower = min(upper + 1, rgb.shape[0] - 1)
        weight = row_weight[row]
        for column in range(rgb.shape[1]):
            for channel in range(3):
                above = rgb[upper, column, channel]
                blended[column, channel] = above + (rgb[lower, column, channel] - above) * weight
        for column in range(width):
            left = column_idx[column]
            right = min(left + 1, rgb.shape[1] - 1)
            for channel in range(3):
                value = blended[left, channel]
                value += (blended[right, channel] - value) * column_weight[column]
                out[row, column, channel] = (value - mean[channel]) * inverse_std[channel]


@njit(cache=True, nogil=True)
def _taps(in_size: int, out_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each output sample, the input sample before it and the weight of the one after that."""
    idx = np.empty(out_size, np.int64)
    weight = np.empty(out_size, np.float32)
    for index in range(out_size):
        position = max((index + 0.5) * in_size / out_size - 0.5, 0.0)
        idx[index] = min(int(position), in_size - 1)
        weight[index] = position - idx[index]
    return idx, weight


@njit(cache=True, nogil=True)
def _rgb_to_planes(rgb: NDArray[np.uint8], kr: np.float32, kb: np.float32, out: NDArray[np.uint8]) -> None:
    height, width = rgb.shape[:2]
    kg = _ONE - kr - kb
    for row in range(height):
        for column in range(width):
            red, green, blue = rgb[row, column, 0], rgb[row, column, 1], rgb[row, column, 2]
            out[row * width + column] = np.uint8(kr * red + kg * green + kb * blue + _HALF)
    first_u = height * width
    first_v = first_u + first_u // 4
    for row in range(height // 2):
        for column in range(width // 2):
            block = rgb[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            sums = np.zeros(3, np.float32)
            for channel in range(3):
                for dy in range(2):
                    for dx in range(2):
                        sums[channel] += block[dy, dx, channel]
            red, green, blue = sums[0] / 4, sums[1] / 4, sums[2] / 4
            luma = kr * red + kg * green + kb * blue
            index = row * (width // 2) + column
            cb = (blue - luma) / (2 * (_ONE - kb)) + 128
            cr = (red - luma) / (2 * (_ONE - kr)) + 128
            out[first_u + index] = np.uint8(min(cb + _HALF, _UINT8_MAX))
            out[first_v + index] = np.uint8(min(cr + _HALF, _UINT8_MAX))
