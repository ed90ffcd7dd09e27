"""RoIAlign (He et al. 2017) over a feature pyramid: one call for all levels and all images of a batch, on the CPU.

Geometry: boxes are x1, y1, x2, y2 in pixels of the padded input with continuous edges; the kernel applies the scale.
Cell i of a map has its centre at i, so aligned=True shifts the scaled box by -0.5 cells. aligned=False, with which
torchvision's models are trained, does not shift the box and enlarges it to at least one cell. A sample up to one cell
outside the map takes the value at the border; a sample further outside is 0. tests/unit/ops/test_roi_align.py proves
the geometry by hand and compares with `ops.reference.roi_align` and torchvision.

Bilinear weights are separable, so the samples of a bin reduce to one weight per row and one per column of the map. For
each row of bins, the kernel first blends the rows of the map along contiguous memory, then the columns, once for all
bins that share them: 8 contiguous loads per value instead of 16 scattered ones.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from ops.bf16 import read_float, write_float
from ops.jit import njit
from ops.roi_levels import assign_levels, least_areas_px2

Features = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint16]
"""float32, float16, or the bit patterns of bfloat16, for which NumPy has no dtype"""

_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)
_UNIT_WEIGHT = np.ones(1, np.float32)

# Bins larger than this along an axis, in cells, get no adaptive samples: almost all of their samples would lie outside
# the map, and the loop over them would take minutes.
LARGEST_ADAPTIVE_BIN = np.float32(2.0**20)

_NUM_MAPS = 5
"""fewer levels are padded to this number, because numba compiles the kernel again for each length of a tuple"""

# numba's workqueue threading layer, which is used without OpenMP, aborts the process if two threads launch at once.
_LAUNCH = threading.Lock()


class _BinCells(NamedTuple):
    """The map cells that each bin of a box reads along one axis, and their weights."""

    cells: NDArray[np.int64]
    """(bins, capacity)"""
    weights: NDArray[np.float32]
    """(bins, capacity)"""
    nums: NDArray[np.int64]
    """(bins,) number of cells of each bin; the rest of the capacity is unused"""


def infer_scales(level_hws: Sequence[tuple[int, int]], image_hw: tuple[int, int]) -> tuple[float, ...]:
    """Scale of each level: the power of two nearest to map height / image height, as torchvision infers it.

    level_hws are (height, width) of the maps, image_hw is (height, width) of the padded input.
    """
    return tuple(2.0 ** round(math.log2(height / image_hw[0])) for height, _ in level_hws)


def roi_align(
    levels: Sequence[Features],
    scales: Sequence[float],
    boxes_xyxy: NDArray[np.float32],
    image_idx: NDArray[np.int64],
    output_hw: tuple[int, int],
    *,
    sampling_ratio: int = 2,
    aligned: bool = False,
    num_valid: NDArray[np.int64] | None = None,
    out: Features | None = None,
) -> Features:
    """Pool the features of each box: (N, *output_hw, C), contiguous, in the dtype of the levels; sums are float32.

    levels          (B, H, W, C) each, finest first, contiguous, all float32, all float16 or all uint16 (bit patterns of
                    bfloat16); float16 is converted to float32 first, because CPUs lack float16 arithmetic
    scales          cells per input pixel of each level; each scale is half of the one before
    boxes_xyxy      (N, 4) float32 in input pixels; boxes may be empty, lie outside or contain NaN
    image_idx       (N,) int64: the image of each box
    sampling_ratio  samples per bin along each axis; 0 means the size of the bin in cells, rounded up
    num_valid       (G,) int64: the boxes form G groups of equal size (for example one per image), and only the first
                    num_valid[g] boxes of group g are valid. The others may contain any values and give zeros. None: all
                    boxes are valid
    out             array for the result, or None

    The level of a box is floor(4 + log2(sqrt(area) / 224)), clamped to the existing levels. A box with a negative or
    NaN area has no level and gives zeros, except that a single level takes boxes of negative area. torch uses the
    result as channels-last NCHW without a copy: `from_numpy(result).permute(0, 3, 1, 2)`. Raises ValueError for wrong
    shapes, types or strides, and for an image index out of range.
    """
    _check_levels(levels, scales)
    num = len(boxes_xyxy)
    if boxes_xyxy.shape != (num, 4) or boxes_xyxy.dtype != np.float32:
        raise ValueError(f"boxes_xyxy must be (N, 4) float32, got {boxes_xyxy.shape} {boxes_xyxy.dtype}")
    if image_idx.shape != (num,) or image_idx.dtype != np.int64:
        raise ValueError(f"image_idx must be ({num},) int64, got {image_idx.shape} {image_idx.dtype}")
    if min(output_hw) < 1 or sampling_ratio < 0:
        raise ValueError(f"output_hw must be at least 1 and sampling_ratio 0, got {output_hw} and {sampling_ratio}")
    num_images, _, _, num_channels = levels[0].shape
    shape, dtype = (num, *output_hw, num_channels), levels[0].dtype
    if out is None:
        out = np.empty(shape, dtype)
    elif out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise ValueError(f"out must be {shape} {dtype} and contiguous, got {_described(out)}")
    is_valid = _validity(num_valid, num)
    if ((image_idx < 0) | (image_idx >= num_images))[is_valid].any():
        raise ValueError(f"image_idx of a valid box must be in 0 … {num_images - 1}")
    boxes_xyxy, image_idx = np.ascontiguousarray(boxes_xyxy), np.ascontiguousarray(image_idx)
    hws = np.array([level.shape[1:3] for level in levels], np.int64)
    scale_of_level = np.array(scales, np.float32)
    least_areas = np.array(least_areas_px2(tuple(scales)), np.float32)
    level_of_box, sort_key = assign_levels(hws, scale_of_level, least_areas, boxes_xyxy, image_idx, is_valid)
    is_half = dtype == np.float16
    flat = [level.reshape(-1).astype(np.float32 if is_half else dtype, copy=False) for level in levels]
    maps = (*flat, *flat[-1:] * (_NUM_MAPS - len(flat)))
    pooled = np.empty(shape, np.float32) if is_half else out
    order = np.argsort(sort_key)
    with _LAUNCH:
        _align_all(
            maps, hws, scale_of_level, boxes_xyxy, image_idx, level_of_box, order, sampling_ratio, aligned, pooled
        )
    if is_half:
        out[...] = pooled
    return out


def _check_levels(levels: Sequence[Features], scales: Sequence[float]) -> None:
    if not levels or len(levels) != len(scales):
        raise ValueError(f"expected one scale for each of at least one level, got {len(levels)} and {len(scales)}")
    first = levels[0]
    for level in levels:
        if level.ndim != 4 or level.dtype not in (np.float32, np.float16, np.uint16) or 0 in level.shape:
            expected = "(B, H, W, C) float32, float16 or uint16 and not empty"
            raise ValueError(f"a level must be {expected}, got {_described(level)}")
        if level.dtype != first.dtype or level.shape[0] != first.shape[0] or level.shape[3] != first.shape[3]:
            raise ValueError(f"levels must agree in B, C and type, got {_described(first)} and {_described(level)}")
        if not level.flags.c_contiguous:
            raise ValueError(f"a level must be contiguous as (B, H, W, C), got strides {level.strides}")
    if any(scale * 2**index != scales[0] or scale <= 0 for index, scale in enumerate(scales)):
        raise ValueError(f"scales must be positive, each half of the one before, got {list(scales)}")


def _described(level: Features) -> str:
    return f"{level.shape} {level.dtype}"


def _validity(num_valid: NDArray[np.int64] | None, num: int) -> NDArray[np.bool_]:
    """(N,) bool: which boxes are valid."""
    if num_valid is None:
        return np.ones(num, np.bool_)
    num_groups = len(num_valid)
    if num_valid.ndim != 1 or num_groups == 0 or num % num_groups:
        raise ValueError(f"num_valid must be (G,) with {num} boxes in G equal groups, got {num_valid.shape}")
    size = num // num_groups
    if num_valid.min() < 0 or num_valid.max() > size:
        raise ValueError(f"num_valid must be in 0 … {size}, got {num_valid.min()} … {num_valid.max()}")
    is_valid: NDArray[np.bool_] = (np.arange(size) < num_valid[:, None]).reshape(-1)
    return is_valid


@njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def _align_all(
    maps: tuple[NDArray[Any], ...],
    hws: NDArray[np.int64],
    scales: NDArray[np.float32],
    boxes_xyxy: NDArray[np.float32],
    image_idx: NDArray[np.int64],
    level_of_box: NDArray[np.int64],
    order: NDArray[np.int64],
    sampling_ratio: int,
    aligned: bool,
    out: NDArray[Any],
) -> None:
    """Pool all boxes in parallel. maps begin with the flattened levels, order is a permutation of the boxes, and out is
    (N, PH, PW, C).
    """
    _, num_rows, num_columns, num_channels = out.shape
    size = num_rows * num_columns * num_channels
    flat_out = out.reshape(-1)
    for i in prange(len(order)):
        n = order[i]
        level = level_of_box[n]
        if level < 0:
            _fill_zero(flat_out, n * size, size)
            continue
        height, width = hws[level]
        scale = scales[level]
        rows = _bin_cells(boxes_xyxy[n, 1], boxes_xyxy[n, 3], scale, aligned, num_rows, sampling_ratio, height)
        columns = _bin_cells(boxes_xyxy[n, 0], boxes_xyxy[n, 2], scale, aligned, num_columns, sampling_ratio, width)
        image = image_idx[n] * height * width * num_channels
        _align_one(maps[level], image, width, num_channels, rows, columns, flat_out, n * size)


@njit(cache=True, nogil=True)
def _fill_zero(out: NDArray[Any], begin: int, length: int) -> None:
    for i in range(np.uint64(begin), np.uint64(begin + length)):
        write_float(out, i, _ZERO)


@njit(cache=True, nogil=True, error_model="numpy")
def _bin_cells(
    low_px: np.float32,
    high_px: np.float32,
    scale: np.float32,
    aligned: bool,
    num_bins: int,
    num_samples: int,
    size: int,
) -> _BinCells:
    """The cells that each bin reads along an axis of `size` cells, each with the summed weights of the bin's samples.

    Positions are computed in float32 with torchvision's operations in the same order, so that a sample on the edge of
    the map falls on the same side. The positions ascend, so equal cells are adjacent and their weights can be merged.
    """
    shift = _HALF if aligned else _ZERO
    begin = low_px * scale - shift
    length = high_px * scale - shift - begin
    if not aligned:
        length = max(length, _ONE)
    bin_size = length / np.float32(num_bins)
    capacity = 2 * num_samples
    if num_samples == 0:
        num_samples = int(np.ceil(bin_size)) if bin_size > _ZERO and bin_size <= LARGEST_ADAPTIVE_BIN else 0
        capacity = min(2 * num_samples, size)
    share = _ONE / np.float32(max(num_samples, 1))
    cells = np.empty((num_bins, capacity), np.int64)
    weights = np.empty((num_bins, capacity), np.float32)
    nums = np.zeros(num_bins, np.int64)
    for bin_idx in range(num_bins):
        num = 0
        for sample in range(num_samples):
            position = begin + np.float32(bin_idx) * bin_size
            position += (np.float32(sample) + _HALF) * bin_size / np.float32(num_samples)
            if not (position >= -_ONE and position <= np.float32(size)):
                continue
            position = max(position, _ZERO)
            lower = min(int(position), size - 1)
            upper = min(lower + 1, size - 1)
            fraction = position - np.float32(lower) if lower < upper else _ZERO
            for cell, weight in ((lower, (_ONE - fraction) * share), (upper, fraction * share)):
                if num > 0 and cells[bin_idx, num - 1] == cell:
                    weights[bin_idx, num - 1] += weight
                elif num > 1 and cells[bin_idx, num - 2] == cell:
                    weights[bin_idx, num - 2] += weight
                else:
                    cells[bin_idx, num] = cell
                    weights[bin_idx, num] = weight
                    num += 1
        nums[bin_idx] = num
    return _BinCells(cells, weights, nums)


@njit(cache=True, nogil=True)
def _align_one(
    level: NDArray[Any], image: int, width: int, num_channels: int, rows: _BinCells, columns: _BinCells, out:
    NDArray[Any], out_begin: int,
) -> None:  # fmt: skip
    """Pool one box. `image` and `out_begin` are the offsets of its image in the level and of its result in `out`."""
    slots, column_of_slot, num_slots = _assign_slots(columns, width)
    num_bins = len(columns.nums)
    spare = len(column_of_slot)
    blended = np.empty((spare + 1) * num_channels, np.float32)
    begins = np.empty(max(rows.cells.shape[1], columns.cells.shape[1]), np.int64)
    at = out_begin
    for i in range(len(rows.nums)):
        num_rows = rows.nums[i]
        done = 0
        for j in range(num_bins):
            num_columns = columns.nums[j]
            if num_rows == 0 or num_columns == 0:
                _fill_zero(out, at, num_channels)
                at += num_channels
                continue
            while done < num_slots[j]:
                end = done + 1
                while end < num_slots[j] and column_of_slot[end] == column_of_slot[end - 1] + 1:
                    end += 1
                for k in range(num_rows):
                    begins[k] = image + (rows.cells[i, k] * width + column_of_slot[done]) * num_channels
                length = (end - done) * num_channels
                _weighted_sum(level, begins, rows.weights[i], num_rows, length, blended, done * num_channels)
                done = end
            for k in range(num_columns):
                begins[k] = slots[j, k] * num_channels
            if num_columns <= 4:
                _weighted_sum(blended, begins, columns.weights[j], num_columns, num_channels, out, at)
            else:  # _weighted_sum keeps partial sums of more than four terms in its output, which must be float32
                begin = spare * num_channels
                _weighted_sum(blended, begins, columns.weights[j], num_columns, num_channels, blended, begin)
                begins[0] = begin
                _weighted_sum(blended, begins, _UNIT_WEIGHT, 1, num_channels, out, at)
            at += num_channels


@njit(cache=True, nogil=True)
def _assign_slots(columns: _BinCells, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Assign a slot to each distinct column in order of first use.

    Returns the slot of every cell of every bin (bins, capacity), the column of each slot, and for each bin the number
    of slots that it and the bins before it use.
    """
    num_bins, capacity = columns.cells.shape
    slots = np.empty((num_bins, capacity), np.int64)
    slot_of_column = np.full(width, -1, np.int64)
    column_of_slot = np.empty(num_bins * capacity, np.int64)
    num_slots = np.empty(num_bins, np.int64)
    num = 0
    for j in range(num_bins):
        for k in range(columns.nums[j]):
            column = columns.cells[j, k]
            if slot_of_column[column] < 0:
                slot_of_column[column] = num
                column_of_slot[num] = column
                num += 1
            slots[j, k] = slot_of_column[column]
        num_slots[j] = num
    return slots, column_of_slot[:num], num_slots


@njit(cache=True, nogil=True)
def _weighted_sum(
    source: NDArray[Any], begins: NDArray[np.int64], weights: NDArray[np.float32], num: int, length: int,
    out: NDArray[Any], out_begin: int,
) -> None:  # fmt: skip
    """out[out_begin + i] = sum over k < num of weights[k] * source[begins[k] + i], for i < length.

    Up to four terms, the maximum for two samples per bin, are summed in one pass. For more terms, `out` must be
    float32. Indices are unsigned, because numba's support for negative indices prevents vectorisation.
    """
    to = np.uint64(out_begin)
    a, wa = np.uint64(begins[0]), weights[0]
    if num == 1:
        for i in range(np.uint64(length)):
            write_float(out, to + i, wa * read_float(source[a + i]))
        return
    b, wb = np.uint64(begins[1]), weights[1]
    if num == 2:
        for i in range(np.uint64(length)):
            write_float(out, to + i, wa * read_float(source[a + i]) + wb * read_float(source[b + i]))
        return
    c, wc = np.uint64(begins[2]), weights[2]
    if num == 3:
        for i in range(np.uint64(length)):
            value = wa * read_float(source[a + i]) + wb * read_float(source[b + i]) + wc * read_float(source[c + i])
            write_float(out, to + i, value)
        return
    d, wd = np.uint64(begins[3]), weights[3]
    for i in range(np.uint64(length)):
        value = wa * read_float(source[a + i]) + wb * read_float(source[b + i])
        write_float(out, to + i, value + (wc * read_float(source[c + i]) + wd * read_float(source[d + i])))
    for k in range(4, num):
        a, wa = np.uint64(begins[k]), weights[k]
        for i in range(np.uint64(length)):
            write_float(out, to + i, read_float(out[to + i]) + wa * read_float(source[a + i]))
