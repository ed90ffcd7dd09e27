"""RoIAlign over a feature pyramid on CUDA: one launch for all levels and all images of a batch, without a host sync.

The geometry is that of `ops.roi_align`. Levels and sample positions are computed with the same float32 operations in
the same order, with round-to-nearest division and square root and without fused multiply-adds.
tests/gpu/test_gpu_kernel_roi_align.py compares the two.

A program computes a few bins of one box: 8 bins for 256 channels in bf16. A thread handles 16 bytes of adjacent
channels, so a warp reads one cell of 256 bf16 channels with one load, and the positions, weights and offsets of a bin
are computed once for 8 channels. The programs of one box are consecutive, so the rows that they share are in the cache.

Performance estimate for 1000 boxes of 16 to 600 pixels with 7x7 bins, 256 bf16 channels of an 800x1344 image and 2
samples along each axis, on 132 SMs at 1.7 GHz: 25 MB are written, and at most 46 MB of maps are read from memory. 16
cells for each bin are 400 MB of loads, half of which hit the L1 cache because the bins of a program share cells; 200 MB
come from the L2 cache, 35 us at 5.5 TB/s. About 780 instructions per bin take 50 us. To overlap the two, loads must be
in flight while other warps compute. By default the assembler (CUDA 13) uses 47 registers and places each load directly
before its use; with a limit of 64 registers it issues 6 to 8 loads first. 32 warps with 6 loads of 512 bytes each are
98 kB in flight per SM, where 5.5 TB/s and a latency of 700 ns need 29 kB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.roi_align import LARGEST_ADAPTIVE_BIN
from ops.roi_levels import least_areas_px2

_NUM_WARPS = 8
_MAX_REGISTERS = 64
_TILE_BYTES = _NUM_WARPS * 32 * 16
_MAX_TILE_CHANNELS = 256
_MAX_TILE_BINS = 16

_LARGEST_ADAPTIVE_BIN = tl.constexpr(float(LARGEST_ADAPTIVE_BIN))


def roi_align(
    levels: Sequence[Tensor],
    scales: Sequence[float],
    boxes_xyxy: Tensor,
    image_idx: Tensor,
    output_hw: tuple[int, int],
    *,
    sampling_ratio: int = 2,
    aligned: bool = False,
    num_valid: Tensor | None = None,
) -> Tensor:
    """Pool the features of each box: (N, C, *output_hw), channels last, in the dtype of the levels; sums are float32.

    levels          (B, C, H, W) each, finest first, channels last, all float32, all float16 or all bfloat16
    scales          cells per input pixel of each level; each scale is half of the one before
    boxes_xyxy      (N, 4) float32 in input pixels; boxes may be empty, lie outside or contain NaN
    image_idx       (N,) int64: the image of each box; a box with an index out of range gives zeros
    sampling_ratio  samples per bin along each axis; 0 means the size of the bin in cells, rounded up
    num_valid       (G,) int64: the boxes form G groups of equal size, and only the first num_valid[g] boxes of group g
                    are valid. The others may contain any values and give zeros. None: all boxes are valid

    The level of a box is that of `ops.roi_align.roi_align`; a box without a level gives zeros. All tensors are on one
    device, and no value is read on the host. The call can be captured in a CUDA graph once the kernel is compiled, that
    is after a call with the same numbers of levels and channels, output_hw and options, and with any N and map sizes.
    Raises ValueError for wrong shapes, types, strides or devices.
    """
    _check_levels(levels, scales)
    first, num = levels[0], len(boxes_xyxy)
    _check("boxes_xyxy", boxes_xyxy, (num, 4), torch.float32, first)
    _check("image_idx", image_idx, (num,), torch.int64, first)
    if min(output_hw) < 1 or sampling_ratio < 0:
        raise ValueError(f"output_hw must be at least 1 and sampling_ratio 0, got {output_hw} and {sampling_ratio}")
    num_groups = 1
    if num_valid is not None:
        num_groups = num_valid.numel()
        _check("num_valid", num_valid, (num_groups,), torch.int64, first)
        if num_groups == 0 or num % num_groups:
            raise ValueError(f"num_valid must be (G,) with {num} boxes in G equal groups, got {_described(num_valid)}")
        num_valid = num_valid.contiguous()
    num_images, num_channels = first.shape[:2]
    out = torch.empty(
        (num, num_channels, *output_hw),
        dtype=first.dtype, device=first.device, memory_format=torch.channels_last,
    )  # fmt: skip
    if num == 0:
        return out
    tile_channels = min(triton.next_power_of_2(num_channels), _MAX_TILE_CHANNELS)
    tile_bins = min(_TILE_BYTES // first.element_size() // tile_channels, _MAX_TILE_BINS)
    num_tiles = triton.cdiv(num_channels, tile_channels) * triton.cdiv(output_hw[0] * output_hw[1], tile_bins)
    with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
        _align_kernel[(num * num_tiles,)](
            out, tuple(levels), tuple(float(level.shape[2]) for level in levels),
            tuple(float(level.shape[3]) for level in levels),
            tuple(float(scale) for scale in scales), least_areas_px2(tuple(scales)),
            boxes_xyxy.contiguous(), image_idx.contiguous(), num_valid, num_images, num // num_groups,
            NUM_LEVELS=len(levels), NUM_CHANNELS=num_channels, NUM_ROWS=output_hw[0], NUM_COLUMNS=output_hw[1],
            SAMPLES=sampling_ratio, ALIGNED=aligned, TILE_BINS=tile_bins, TILE_CHANNELS=tile_channels,
            num_warps=_NUM_WARPS, maxnreg=_MAX_REGISTERS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _check_levels(levels: Sequence[Tensor], scales: Sequence[float]) -> None:
    if not levels or len(levels) != len(scales):
        raise ValueError(f"expected one scale for each of at least one level, got {len(levels)} and {len(scales)}")
    first = levels[0]
    for level in levels:
        if level.ndim != 4 or level.dtype not in (torch.float32, torch.float16, torch.bfloat16) or 0 in level.shape:
            expected = "(B, C, H, W) float32, float16 or bfloat16 and not empty"
            raise ValueError(f"a level must be {expected}, got {_described(level)}")
        if (level.dtype, level.device, level.shape[:2]) != (first.dtype, first.device, first.shape[:2]):
            raise ValueError(
                f"levels must agree in B, C, type and device, got {_described(first)} and {_described(level)}"
            )
        if not level.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"a level must be contiguous as channels last, got strides {level.stride()}")
    if any(scale * 2**index != scales[0] or scale <= 0 for index, scale in enumerate(scales)):
        raise ValueError(f"scales must be positive, each half of the one before, got {list(scales)}")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, level: Tensor) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != level.device:
        expected = f"{shape} {_name(dtype)} on {level.device}"
        raise ValueError(f"{name} must be {expected}, got {_described(tensor)}")


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {_name(tensor.dtype)} on {tensor.device}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Triton specialises kernels for integers that are 1 or multiples of 16, which is useless here. The specialisation
# cannot be disabled for integers in tuples, so heights and widths are passed as floats.
@triton.jit(do_not_specialize=["num_images", "group_size"])
def _align_kernel(  # type: ignore[no-untyped-def]
    out, levels, heights, widths, scales, least_areas, boxes, image_idx, num_valid, num_images, group_size,
    NUM_LEVELS: tl.constexpr, NUM_CHANNELS: tl.constexpr, NUM_ROWS: tl.constexpr, NUM_COLUMNS: tl.constexpr,
    SAMPLES: tl.constexpr, ALIGNED: tl.constexpr, TILE_BINS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Pool TILE_BINS bins of one box for TILE_CHANNELS channels. levels to least_areas are tuples with one item per
    level.
    """
    NUM_BINS: tl.constexpr = NUM_ROWS * NUM_COLUMNS
    NUM_CHANNEL_TILES: tl.constexpr = (NUM_CHANNELS + TILE_CHANNELS - 1) // TILE_CHANNELS
    NUM_TILES: tl.constexpr = (NUM_BINS + TILE_BINS - 1) // TILE_BINS * NUM_CHANNEL_TILES
    box_idx = tl.program_id(0) // NUM_TILES
    box = box_idx.to(tl.int64)
    tile = tl.program_id(0) % NUM_TILES
    bins = tile // NUM_CHANNEL_TILES * TILE_BINS + tl.arange(0, TILE_BINS)
    channels = tile % NUM_CHANNEL_TILES * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)
    is_bin = bins < NUM_BINS
    is_channel = channels < NUM_CHANNELS
    image = tl.load(image_idx + box)
    is_valid = (image >= 0) & (image < num_images)
    if num_valid is not None:
        is_valid &= box_idx % group_size < tl.load(num_valid + box_idx // group_size)
    x1, y1 = tl.load(boxes + box * 4), tl.load(boxes + box * 4 + 1)
    x2, y2 = tl.load(boxes + box * 4 + 2), tl.load(boxes + box * 4 + 3)
    area = (x2 - x1) * (y2 - y1)
    is_valid &= area == area if NUM_LEVELS == 1 else area >= 0.0

    total = tl.zeros((TILE_BINS, TILE_CHANNELS), tl.float32)
    if is_valid:
        level, height, width, scale = levels[0], heights[0], widths[0], scales[0]
        for index in tl.static_range(1, NUM_LEVELS):
            is_here = area >= least_areas[index]
            level = tl.where(is_here, levels[index], level)
            height = tl.where(is_here, heights[index], height)
            width = tl.where(is_here, widths[index], width)
            scale = tl.where(is_here, scales[index], scale)
        height, width = tl.cast(height, tl.int32), tl.cast(width, tl.int32)
        level += image * height * width * NUM_CHANNELS
        top, bin_h = _first_bin(y1, y2, scale, NUM_ROWS, ALIGNED)
        left, bin_w = _first_bin(x1, x2, scale, NUM_COLUMNS, ALIGNED)
        y_begin = top + (bins // NUM_COLUMNS).to(tl.float32) * bin_h
        x_begin = left + (bins % NUM_COLUMNS).to(tl.float32) * bin_w
        if SAMPLES > 0:
            for i in range(SAMPLES):
                y = y_begin + _offset(i, bin_h, SAMPLES)
                for j in tl.static_range(SAMPLES):
                    x = x_begin + _offset(j, bin_w, SAMPLES)
                    total = _add_sample(
                        total, level, y, x, height, width, is_bin, 1.0 / (SAMPLES * SAMPLES), channels, NUM_CHANNELS
                    )
        else:
            num_y, first_y, steps_y = _adaptive_samples(y_begin, bin_h, height, is_bin)
            num_x, first_x, steps_x = _adaptive_samples(x_begin, bin_w, width, is_bin)
            share = tl.div_rn(1.0, tl.maximum(num_y * num_x, 1.0))
            i = 0
            while i < steps_y:
                y = y_begin + tl.div_rn((first_y + i + 0.5) * bin_h, num_y)
                j = 0
                while j < steps_x:
                    x = x_begin + tl.div_rn((first_x + j + 0.5) * bin_w, num_x)
                    is_sample = is_bin & (first_y + i < num_y) & (first_x + j < num_x)
                    total = _add_sample(total, level, y, x, height, width, is_sample, share, channels, NUM_CHANNELS)
                    j += 1
                i += 1
    at = (box * NUM_BINS + bins)[:, None] * NUM_CHANNELS + channels[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=is_bin[:, None] & is_channel[None, :])


@triton.jit
def _first_bin(low_px, high_px, scale, NUM_BINS: tl.constexpr, ALIGNED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Start of the first bin along an axis and the size of each bin, in cells."""
    begin = low_px * scale
    end = high_px * scale
    if ALIGNED:
        begin -= 0.5
        end -= 0.5
    length = end - begin
    if not ALIGNED:
        length = tl.maximum(length, 1.0)
    return begin, tl.div_rn(length, 1.0 * NUM_BINS)


@triton.jit
def _adaptive_samples(begin, bin_size, size, is_bin):  # type: ignore[no-untyped-def]
    """Range of adaptive samples along an axis of `size` cells.

    Returns the number of samples of each bin as a float, the first sample of each bin that can lie on the map, and the
    maximum number of samples from there to the last one on the map. Samples are half a cell to one cell apart; four
    more samples at either end allow for the rounding of positions.
    """
    num = tl.where((bin_size > 0.0) & (bin_size <= _LARGEST_ADAPTIVE_BIN), tl.ceil(bin_size), 0.0)
    step = tl.where(num > 0.0, tl.div_rn(bin_size, tl.maximum(num, 1.0)), 1.0)
    first = tl.minimum(tl.maximum(tl.floor(tl.div_rn(-1.0 - begin, step)) - 4.0, 0.0), num)
    end = tl.minimum(tl.maximum(tl.ceil(tl.div_rn(size - begin, step)) + 4.0, 0.0), num)
    return num, first.to(tl.int32), tl.max(tl.where(is_bin, end - first, 0.0), axis=0).to(tl.int32)


@triton.jit
def _offset(index, bin_size, SAMPLES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offset of sample `index` from the start of its bin."""
    offset = (index + 0.5) * bin_size
    # For 1 and 2 samples the product is exact, and a division takes a dozen instructions.
    return offset * (1.0 / SAMPLES) if SAMPLES == 1 or SAMPLES == 2 else tl.div_rn(offset, 1.0 * SAMPLES)


@triton.jit
def _add_sample(  # type: ignore[no-untyped-def]
    total, level, y, x, height, width, is_sample, share, channels, NUM_CHANNELS: tl.constexpr
):  # fmt: skip
    """Add one bilinear sample for each bin, at y and x (bins,) in cells, times `share`, to total (bins, channels)
    float32.
    """
    is_row, upper, lower, below = _cells_around(y, height)
    is_column, before, after, right = _cells_around(x, width)
    mask = (is_sample & is_row & is_column)[:, None] & (channels < NUM_CHANNELS)[None, :]
    upper_row = level + upper.to(tl.int64) * width * NUM_CHANNELS
    lower_row = level + lower.to(tl.int64) * width * NUM_CHANNELS
    upper_left = _load_cells(upper_row, before, channels, mask, NUM_CHANNELS)
    upper_right = _load_cells(upper_row, after, channels, mask, NUM_CHANNELS)
    lower_left = _load_cells(lower_row, before, channels, mask, NUM_CHANNELS)
    lower_right = _load_cells(lower_row, after, channels, mask, NUM_CHANNELS)
    above, below, left = (1.0 - below) * share, below * share, 1.0 - right
    total = tl.fma(upper_left.to(tl.float32), (above * left)[:, None], total)
    total = tl.fma(upper_right.to(tl.float32), (above * right)[:, None], total)
    total = tl.fma(lower_left.to(tl.float32), (below * left)[:, None], total)
    return tl.fma(lower_right.to(tl.float32), (below * right)[:, None], total)


@triton.jit
def _cells_around(position, size):  # type: ignore[no-untyped-def]
    """For a position on an axis of `size` cells: whether it is on the map, the cells before and after it, and the
    weight of the second.
    """
    is_on_map = (position >= -1.0) & (position <= size)
    position = tl.where(is_on_map, tl.maximum(position, 0.0), 0.0)
    before = tl.minimum(position.to(tl.int32), size - 1)
    after = tl.minimum(before + 1, size - 1)
    return is_on_map, before, after, tl.where(before < after, position - before, 0.0)


@triton.jit
def _load_cells(rows, columns, channels, mask, NUM_CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load (bins, channels): for each bin, the cell at a column of the row that a pointer gives."""
    within_row = (columns * NUM_CHANNELS)[:, None] + channels[None, :]
    return tl.load(rows[:, None] + within_row, mask=mask, other=0.0)
