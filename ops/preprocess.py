"""Conversion of 4:2:0 images to the network's input, and between 4:2:0 and RGB.

Y'CbCr is converted to R'G'B' with the luma coefficients of ITU-R BT.601, BT.709 or BT.2020 (non-constant luminance), in
full range or limited range (16-235 / 16-240). A chroma sample lies in the centre of its 2x2 pixels; chroma is
interpolated linearly between the four nearest samples (weights 9, 3, 3 and 1 of 16, border replicated), like libjpeg's
"fancy upsampling". RGB is clipped to [0, 1] and not rounded to 8 bits. The resize is bilinear on RGB with pixel centres
at +0.5 (`align_corners=False`, no antialiasing), like torchvision's detection transform.
tests/unit/ops/test_preprocess.py compares with `ops.reference.i420_to_rgb` and `ops.reference.resize_bilinear`.

The input is made in one pass over the rows. At most two rows of the image exist as RGB at a time, in planar form, so
that the loops vectorise and only the result leaves the cache. Not parallel: on one core, a 568x320 frame takes 0.2 ms
and 1280x720 to 1333x750 takes 3 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ops.bf16 import write_float
from ops.jit import njit

# matrix -> (Kr, Kb), the coefficients of red and of blue in luma
_LUMA_SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}

_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_THREE = np.float32(3.0)
_SIXTEENTH = np.float32(1.0 / 16.0)
_UINT8_MAX = np.float32(255.0)

NUM_PARAMS = 10
"""parameters of each image in `pack_frames`: height and width, input height and width, six colour coefficients"""


class Image420(Protocol):
    """An image as planar Y'CbCr 4:2:0 with 8 bits."""

    @property
    def matrix(self) -> str:
        """bt601, bt709 or bt2020."""

    @property
    def full_range(self) -> bool:
        """Whether the range is 0-255; otherwise luma is 16-235 and chroma 16-240."""

    def planes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Y (H, W), U and V (H // 2, W // 2), all uint8; H and W are even."""


def i420_to_rgb(picture: Image420) -> NDArray[np.uint8]:
    """Convert an image to (H, W, 3) uint8 RGB of the same size, rounded to nearest."""
    y, u, v = picture.planes()
    out = np.empty((*y.shape, 3), np.uint8)
    _to_uint8(y, u, v, _coefficients(picture.matrix, full_range=picture.full_range), out)
    return out


def rgb_to_i420(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert (H, W, 3) uint8 RGB to I420: (H * W * 3 // 2,) uint8 with Y, U and V planes, BT.601, full range (as
    JPEG).

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
    pictures: Sequence[Image420],
    input_hws: Sequence[tuple[int, int]],
    padded_hw: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    bf16: bool = False,
) -> NDArray[np.float32] | NDArray[np.uint16]:
    """Make the network's input: (B, *padded_hw, 3) float32, channels last.

    Image b is converted to RGB in [0, 1], resized to input_hws[b] unless it has that size, normalised with mean and
    std, and placed in the upper left corner; the padding is 0. With bf16, the result is uint16: the bit patterns of the
    nearest bfloat16. Raises ValueError for an input size larger than padded_hw.
    """
    batch: NDArray[Any] = np.zeros((len(pictures), *padded_hw, 3), np.uint16 if bf16 else np.float32)
    mean_rgb, inverse_std_rgb = np.asarray(mean, np.float32), inverse_std(std)
    for out, picture, input_hw in zip(batch, pictures, input_hws, strict=True):
        if input_hw[0] > padded_hw[0] or input_hw[1] > padded_hw[1]:
            raise ValueError(f"an input of {input_hw} does not fit into {padded_hw}")
        y, u, v = picture.planes()
        coefficients = _coefficients(picture.matrix, full_range=picture.full_range)
        if y.shape == input_hw:
            _normalise(y, u, v, coefficients, mean_rgb, inverse_std_rgb, out)
        else:
            _resize_normalise(y, u, v, coefficients, input_hw[0], input_hw[1], mean_rgb, inverse_std_rgb, out)
    return batch


def pack_frames(
    pictures: Sequence[Image420],
    input_hws: Sequence[tuple[int, int]],
    planes: NDArray[np.uint8],
    params: NDArray[np.float32],
) -> None:
    """Write the arrays that `ops.preprocess_triton` reads into existing (for example pinned) memory.

    planes  (B, capacity) uint8, contiguous: row b receives the Y, U and V planes of image b; the rest is not written
    params  (B, NUM_PARAMS) float32, which represents the sizes exactly

    B may be larger than the number of images; the other rows get the input size 0. Raises ValueError if B is smaller,
    for other shapes and types, for an image larger than the capacity, and unless each image has an input size.
    """
    if planes.ndim != 2 or planes.dtype != np.uint8 or not planes.flags.c_contiguous:
        raise ValueError(f"planes must be (B, capacity) uint8 and contiguous, got {planes.shape} {planes.dtype}")
    if params.shape != (len(planes), NUM_PARAMS) or params.dtype != np.float32:
        raise ValueError(f"params must be ({len(planes)}, {NUM_PARAMS}) float32, got {params.shape} {params.dtype}")
    if not len(pictures) == len(input_hws) <= len(planes):
        raise ValueError(
            f"expected one input size for each picture and a row for each, "
            f"got {len(pictures)} pictures, {len(input_hws)} sizes and {len(planes)} rows"
        )
    params[len(pictures) :] = 0.0
    for row, row_params, picture, input_hw in zip(planes, params, pictures, input_hws, strict=False):
        begin = 0
        for plane in picture.planes():
            end = begin + plane.size
            if end > len(row):
                raise ValueError(f"a picture of {picture.planes()[0].shape} does not fit into {len(row)} bytes")
            row[begin:end].reshape(plane.shape)[...] = plane
            begin = end
        row_params[:4] = *picture.planes()[0].shape, *input_hw
        row_params[4:] = _coefficients(picture.matrix, full_range=picture.full_range)


def inverse_std(std: Sequence[float]) -> NDArray[np.float32]:
    """1 / std as (3,) float32, rounded in the same way for every device."""
    inverse: NDArray[np.float32] = _ONE / np.asarray(std, np.float32)
    return inverse


def _coefficients(matrix: str, *, full_range: bool) -> NDArray[np.float32]:
    """(6,) float32 [luma offset, luma scale, Cr to red, Cb to green, Cr to green, Cb to blue]: 8-bit Y'CbCr to RGB in
    [0, 1].
    """
    kr, kb = _LUMA_SHARES[matrix]
    kg = 1.0 - kr - kb
    offset, luma_span, chroma_span = (0.0, 255.0, 255.0) if full_range else (16.0, 219.0, 224.0)
    red, blue = 2.0 * (1.0 - kr), 2.0 * (1.0 - kb)
    chroma = np.array([red, -blue * kb / kg, -red * kr / kg, blue]) / chroma_span
    return np.array([offset, 1.0 / luma_span, *chroma], np.float32)


@njit(cache=True, nogil=True)
def _new_buffers(width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scratch space of `_rgb_row`: (2, W // 2 + 2) U and V of one row, minus 128 and times 4, with one replicated
    sample on each side; (2, W) U and V of each pixel.
    """
    return np.empty((2, width // 2 + 2), np.float32), np.empty((2, width), np.float32)


@njit(cache=True, nogil=True)
def _rgb_row(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], row: int, coefficients: NDArray[np.float32],
    buffers: tuple[NDArray[np.float32], NDArray[np.float32]], rgb: NDArray[np.float32],
) -> None:  # fmt: skip
    """Convert one row of the image to (3, W) float32 RGB in [0, 1].

    Indices are unsigned, because numba's support for negative indices prevents vectorisation.
    """
    half_h, half_w = u.shape
    near = row // 2
    far = min(near + 1, half_h - 1) if row % 2 else max(near - 1, 0)
    samples, pixels = buffers
    one, two = np.uint64(1), np.uint64(2)
    for i in range(np.uint64(half_w)):
        samples[0, i + one] = np.float32(3 * np.int32(u[near, i]) + np.int32(u[far, i]) - 512)
        samples[1, i + one] = np.float32(3 * np.int32(v[near, i]) + np.int32(v[far, i]) - 512)
    for plane in range(2):
        samples[plane, 0], samples[plane, half_w + 1] = samples[plane, 1], samples[plane, half_w]
        for i in range(np.uint64(half_w)):
            nearest = _THREE * samples[plane, i + one]
            pixels[plane, two * i] = (nearest + samples[plane, i]) * _SIXTEENTH
            pixels[plane, two * i + one] = (nearest + samples[plane, i + two]) * _SIXTEENTH
    offset, scale, red_v, green_u, green_v, blue_u = coefficients
    for i in range(np.uint64(y.shape[1])):
        luma = (np.float32(y[row, i]) - offset) * scale
        rgb[0, i] = _clipped(luma + red_v * pixels[1, i])
        rgb[1, i] = _clipped(luma + green_u * pixels[0, i] + green_v * pixels[1, i])
        rgb[2, i] = _clipped(luma + blue_u * pixels[0, i])


@njit(cache=True, nogil=True)
def _clipped(value: np.float32) -> np.float32:
    above_zero = value if value > _ZERO else _ZERO
    return above_zero if above_zero < _ONE else _ONE


@njit(cache=True, nogil=True)
def _to_uint8(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], coefficients: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:  # fmt: skip
    height, width = y.shape
    buffers = _new_buffers(width)
    rgb = np.empty((3, width), np.float32)
    for row in range(height):
        _rgb_row(y, u, v, row, coefficients, buffers, rgb)
        for column in range(np.uint64(width)):
            for channel in range(3):
                out[row, column, channel] = np.uint8(rgb[channel, column] * _UINT8_MAX + _HALF)


@njit(cache=True, nogil=True)
def _normalise(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], coefficients: NDArray[np.float32],
    mean: NDArray[np.float32], inverse_std: NDArray[np.float32], out: NDArray[Any],
) -> None:  # fmt: skip
    """Normalise the image without a resize and write it to the upper left corner of `out` (H, W, 3)."""
    height, width = y.shape
    buffers = _new_buffers(width)
    rgb = np.empty((3, width), np.float32)
    flat_out = out.reshape(-1)
    for row in range(height):
        _rgb_row(y, u, v, row, coefficients, buffers, rgb)
        for column in range(np.uint64(width)):
            at = np.uint64(row * out.shape[1] * 3) + np.uint64(3) * column
            _write_pixel(flat_out, at, rgb[0, column], rgb[1, column], rgb[2, column], mean, inverse_std)


@njit(cache=True, nogil=True)
def _resize_normalise(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], coefficients: NDArray[np.float32],
    height: int, width: int, mean: NDArray[np.float32], inverse_std: NDArray[np.float32], out: NDArray[Any],
) -> None:  # fmt: skip
    """Resize the image to (height, width), rows before columns, normalise it and write it to the upper left corner of
    `out` (H, W, 3).
    """
    in_height, in_width = y.shape
    row_idx, row_weight = _source_samples(in_height, height)
    column_idx, column_weight = _source_samples(in_width, width)
    buffers = _new_buffers(in_width)
    rgb = np.empty((2, 3, in_width), np.float32)  # the latest even and the latest odd source row
    converted = np.array([-1, -1])
    blended = np.empty((3, in_width + 1), np.float32)  # with the border replicated
    flat_out = out.reshape(-1)
    one = np.uint64(1)
    for row in range(height):
        upper = row_idx[row]
        lower = min(upper + 1, in_height - 1)
        for source in (upper, lower):
            if converted[source % 2] != source:
                _rgb_row(y, u, v, source, coefficients, buffers, rgb[source % 2])
                converted[source % 2] = source
        above, below, weight = rgb[upper % 2], rgb[lower % 2], row_weight[row]
        for channel in range(3):
            for i in range(np.uint64(in_width)):
                value = above[channel, i]
                blended[channel, i] = value + (below[channel, i] - value) * weight
            blended[channel, in_width] = blended[channel, in_width - 1]
        for column in range(np.uint64(width)):
            left, share = np.uint64(column_idx[column]), column_weight[column]
            red = blended[0, left] + (blended[0, left + one] - blended[0, left]) * share
            green = blended[1, left] + (blended[1, left + one] - blended[1, left]) * share
            blue = blended[2, left] + (blended[2, left + one] - blended[2, left]) * share
            at = np.uint64(row * out.shape[1] * 3) + np.uint64(3) * column
            _write_pixel(flat_out, at, red, green, blue, mean, inverse_std)


@njit(cache=True, nogil=True)
def _write_pixel(
    flat_out: NDArray[Any], at: Any, red: np.float32, green: np.float32, blue: np.float32,
    mean: NDArray[np.float32], inverse_std: NDArray[np.float32],
) -> None:  # fmt: skip
    write_float(flat_out, at, (red - mean[0]) * inverse_std[0])
    write_float(flat_out, at + np.uint64(1), (green - mean[1]) * inverse_std[1])
    write_float(flat_out, at + np.uint64(2), (blue - mean[2]) * inverse_std[2])


@njit(cache=True, nogil=True)
def _source_samples(in_size: int, out_size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each output sample: index of the input sample before it and weight of the one after that."""
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
