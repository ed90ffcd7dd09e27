"""Conversion of a batch of 4:2:0 images to the network's input on CUDA, in one launch.

The arithmetic is that of `ops.preprocess`, whose `pack_frames` writes the arrays that are read here. Sizes and colour
coefficients of each image are in device memory, so a captured CUDA graph can be replayed with images of other sizes
that fit into the planes and into the padded input.

Each pixel of the input is interpolated from four pixels of the image, each of which needs its luma and four samples of
U and of V; an image that is not resized needs one pixel. Colours are computed with the operations of `ops.preprocess`
in the same order, without fused multiply-adds. The bilinear weights differ by one rounding: there a position is a
float64, here a ratio of integers, rounded once. tests/gpu/test_gpu_kernel_preprocess.py compares the two.

Estimate for 8 images of 800x1344 that are not resized: 13 MB are read and 52 MB written in bf16, 14 us at 4.8 TB/s;
about 80 instructions per pixel, 9 of them loads, take 24 us on 132 SMs at 1.7 GHz.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.preprocess import NUM_PARAMS, inverse_std

# Tile of one program: 2 pixels per thread, with the threads of a warp along a row. For sm_90 that takes 96 registers; 8
# pixels per thread took 255 and spilled.
_TILE_ROWS = 2
_TILE_COLUMNS = 128
_NUM_WARPS = 4


def preprocess(
    planes: Tensor,
    params: Tensor,
    padded_hw: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Make the network's input: (B, 3, *padded_hw), channels last.

    planes  (B, capacity) uint8, contiguous, on the device, as `ops.preprocess.pack_frames` writes it
    params  (B, NUM_PARAMS) float32, contiguous, on the device, as `ops.preprocess.pack_frames` writes it
    dtype   float32, bfloat16 or float16: format of the result, which is computed in float32 and rounded once

    Each image is converted to RGB in [0, 1], resized to its input size, normalised and placed in the upper left corner;
    the padding is 0, and an input larger than padded_hw is cropped. No value is read on the host. Raises ValueError for
    wrong shapes, types or strides.
    """
    if planes.ndim != 2 or planes.dtype != torch.uint8 or not planes.is_contiguous():
        raise ValueError(f"planes must be (B, capacity) uint8 and contiguous, got {_described(planes)}")
    num = len(planes)
    if params.shape != (num, NUM_PARAMS) or params.dtype != torch.float32 or not params.is_contiguous():
        expected = f"({num}, {NUM_PARAMS}) float32 and contiguous"
        raise ValueError(f"params must be {expected}, got {_described(params)}")
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    height, width = padded_hw
    out = torch.empty((num, 3, height, width), dtype=dtype, device=planes.device, memory_format=torch.channels_last)
    if out.numel():
        _preprocess_kernel[(num, triton.cdiv(height, _TILE_ROWS), triton.cdiv(width, _TILE_COLUMNS))](
            planes, params, out, planes.shape[1], height, width,
            *np.asarray(mean, np.float32).tolist(), *inverse_std(std).tolist(),
            NUM_PARAMS=NUM_PARAMS, ROWS=_TILE_ROWS, COLUMNS=_TILE_COLUMNS,
            num_warps=_NUM_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}, strides {tensor.stride()}"


@triton.jit
def _preprocess_kernel(  # type: ignore[no-untyped-def]
    planes, all_params, out, capacity, padded_height, padded_width,
    mean_red, mean_green, mean_blue, by_std_red, by_std_green, by_std_blue,
    NUM_PARAMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program per image and tile of ROWS x COLUMNS pixels.

    No parameter may be named `params` or `options`, because Triton's launcher has variables with these names.
    """
    picture = tl.program_id(0).to(tl.int64)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    y = planes + picture * capacity
    at_params = all_params + picture * NUM_PARAMS
    height, width = tl.load(at_params).to(tl.int32), tl.load(at_params + 1).to(tl.int32)
    input_height, input_width = tl.load(at_params + 2).to(tl.int32), tl.load(at_params + 3).to(tl.int32)
    colours = at_params + 4
    is_input = (rows < input_height) & (columns < input_width)
    above, below, down = _neighbours(rows, height, input_height)
    left, right, across = _neighbours(columns, width, input_width)
    red = tl.zeros((ROWS, COLUMNS), tl.float32)
    green = tl.zeros((ROWS, COLUMNS), tl.float32)
    blue = tl.zeros((ROWS, COLUMNS), tl.float32)
    is_resampled = (height != input_height) | (width != input_width)
    for corner in tl.static_range(4):
        if is_resampled | (corner == 0):
            at_rows, by_row = (below, down) if corner // 2 else (above, 1.0 - down)
            at_columns, by_column = (right, across) if corner % 2 else (left, 1.0 - across)
            weight = by_row * by_column
            its_red, its_green, its_blue = _rgb(y, height, width, at_rows, at_columns, is_input, colours)
            red, green, blue = red + its_red * weight, green + its_green * weight, blue + its_blue * weight
    at = out + ((picture * padded_height + rows) * padded_width + columns) * 3
    is_pixel = (rows < padded_height) & (columns < padded_width)
    tl.store(at, tl.where(is_input, (red - mean_red) * by_std_red, 0.0), mask=is_pixel)
    tl.store(at + 1, tl.where(is_input, (green - mean_green) * by_std_green, 0.0), mask=is_pixel)
    tl.store(at + 2, tl.where(is_input, (blue - mean_blue) * by_std_blue, 0.0), mask=is_pixel)


@triton.jit
def _neighbours(idx, in_size, out_size):  # type: ignore[no-untyped-def]
    """The input samples before and after (idx + 0.5) * in_size / out_size - 0.5, and the weight of the second."""
    # An empty output has no position; avoid a division by 0.
    unit = 2 * tl.maximum(out_size, 1)
    position = tl.maximum((2 * tl.minimum(idx, out_size - 1) + 1) * in_size - out_size, 0)
    first = position // unit
    weight = tl.div_rn((position - first * unit).to(tl.float32), unit.to(tl.float32))
    return first, tl.minimum(first + 1, in_size - 1), weight


@triton.jit
def _rgb(y, height, width, rows, columns, mask, colours):  # type: ignore[no-untyped-def]
    """RGB in [0, 1] of the pixels of an image at rows (R, 1) and columns (1, C)."""
    half_width = width // 2
    near_row, far_row = _chroma_samples(rows, height)
    near_column, far_column = _chroma_samples(columns, width)
    near_near, near_far = near_row * half_width + near_column, near_row * half_width + far_column
    far_near, far_far = far_row * half_width + near_column, far_row * half_width + far_column
    u = y + height * width
    v = u + height // 2 * half_width
    cb = _chroma(u, near_near, near_far, far_near, far_far, mask)
    cr = _chroma(v, near_near, near_far, far_near, far_far, mask)
    offset, scale = tl.load(colours), tl.load(colours + 1)
    luma = (tl.load(y + rows * width + columns, mask=mask, other=0).to(tl.float32) - offset) * scale
    red = luma + tl.load(colours + 2) * cr
    green = luma + tl.load(colours + 3) * cb + tl.load(colours + 4) * cr
    blue = luma + tl.load(colours + 5) * cb
    return _clipped(red), _clipped(green), _clipped(blue)


@triton.jit
def _chroma_samples(idx, size):  # type: ignore[no-untyped-def]
    """Indices of the nearest and the second nearest chroma sample of a pixel along one axis."""
    near = idx // 2
    far = tl.where(idx % 2 == 1, tl.minimum(near + 1, size // 2 - 1), tl.maximum(near - 1, 0))
    return near, far


@triton.jit
def _chroma(plane, near_near, near_far, far_near, far_far, mask):  # type: ignore[no-untyped-def]
    """Interpolated chroma minus 128: weights 9, 3, 3 and 1 of 16, without rounding."""
    total = 9 * tl.load(plane + near_near, mask=mask, other=0).to(tl.int32)
    total += 3 * tl.load(plane + near_far, mask=mask, other=0).to(tl.int32)
    total += 3 * tl.load(plane + far_near, mask=mask, other=0).to(tl.int32)
    total += tl.load(plane + far_far, mask=mask, other=0).to(tl.int32)
    return (total - 2048).to(tl.float32) * 0.0625


@triton.jit
def _clipped(value):  # type: ignore[no-untyped-def]
    return tl.minimum(tl.maximum(value, 0.0), 1.0)
