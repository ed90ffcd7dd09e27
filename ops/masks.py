"""Instance masks: 28x28 box-local probabilities to COCO RLE of the whole frame, without a bitmap of the frame.

Pixel (x, y) covers [x, x + 1) x [y, y + 1); boxes have continuous edges. COCO's RLE counts runs in column-major order,
beginning with zeros, and stores differences of counts in a base-32 code (`rleToString` of pycocotools' maskApi.c).
tests/unit/ops/test_masks.py proves the geometry by hand and compares the strings with torchvision's
`paste_masks_in_image`, a threshold and pycocotools. Not parallel: 100 instances at 1080p take 3 ms on one core.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.jit import njit
from ops.mask_format import MASK_SIDE, MAX_CODE_CHARS

_PADDED = MASK_SIDE + 2

# torchvision pads the mask by one cell on each side and widens the box in proportion, in float32.
_BOX_SCALE = np.float32(_PADDED / MASK_SIDE)
_PADDED_F32 = np.float32(_PADDED)
_ZERO = np.float32(0.0)
_HALF = np.float32(0.5)
_ONE = np.float32(1.0)

# torch resizes with another kernel, which rounds differently, if output height + width is at most this.
_SMALL_OUTPUT = 128

# An interpolated value lies between the values of its corners, except for rounding of about 1e-7: less than this
# margin.
_SURE_ONE = np.float32(0.5 + 1e-5)
_SURE_ZERO = np.float32(0.5 - 1e-5)


def paste_rle(masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float32], frame_hw: tuple[int, int]) -> list[bytes]:
    """COCO compressed RLE strings of the whole frame for N box-local masks.

    masks       (N, 28, 28) float32 probabilities in [0, 1]
    boxes_xyxy  (N, 4) float32, frame pixels; may reach beyond the frame
    frame_hw    height and width of the frame in pixels

    The arithmetic is that of pycocotools' `encode` of torchvision's `paste_masks_in_image(masks, boxes, frame_hw) >
    0.5`: the mask, padded by one cell, is resized bilinearly (align_corners=False) to the box, which is widened by
    30/28 and truncated to whole pixels, in float32 with fused multiply-adds.

    The result does not depend on torch, whose rounding depends on its version and on the CPU: the AVX2 and AVX-512
    kernels of torch 2.11 to 2.14 compute the source position of a resize to more than 128 px (height + width) with one
    rounding, this function with two. A pixel can therefore differ from torchvision's only where the exact value lies
    within 1e-5 of the threshold; elsewhere the strings are byte-identical.

    Raises ValueError for wrong shapes or types and for boxes that are not finite.
    """
    num = len(masks)
    if masks.shape != (num, MASK_SIDE, MASK_SIDE) or masks.dtype != np.float32:
        raise ValueError(f"masks must be (N, {MASK_SIDE}, {MASK_SIDE}) float32, got {masks.shape} {masks.dtype}")
    if boxes_xyxy.shape != (num, 4) or boxes_xyxy.dtype != np.float32:
        raise ValueError(f"boxes_xyxy must be ({num}, 4) float32, got {boxes_xyxy.shape} {boxes_xyxy.dtype}")
    if not np.isfinite(boxes_xyxy).all():
        raise ValueError("boxes_xyxy must be finite")
    height, width = frame_hw
    text, ends = _paste_rle_all(np.ascontiguousarray(masks), np.ascontiguousarray(boxes_xyxy), height, width)
    strings = text.tobytes()
    return (
        [strings[begin:end] for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)] if num else []
    )


def encode_rle(mask: NDArray[np.bool_]) -> bytes:
    """COCO compressed RLE string of an (H, W) bool mask. Raises ValueError for another shape or type."""
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask must be (H, W) bool, got {mask.shape} {mask.dtype}")
    counts = _runs_of(np.ascontiguousarray(mask.T).reshape(-1))
    text = np.empty(len(counts) * MAX_CODE_CHARS, np.uint8)
    return text[: _compress(counts, len(counts), text, 0)].tobytes()


def pack_bits(masks: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Threshold (N, 28, 28) probabilities at `> 0.5` and pack them with np.packbits, row-major, into (N, 98) uint8."""
    if masks.shape[1:] != (MASK_SIDE, MASK_SIDE):
        raise ValueError(f"masks must be (N, {MASK_SIDE}, {MASK_SIDE}), got {masks.shape}")
    bits: NDArray[np.uint8] = np.packbits((masks > 0.5).reshape(len(masks), MASK_SIDE * MASK_SIDE), axis=1)
    return bits


@njit(cache=True, nogil=True)
def _fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    # The float64 product of two float32 is exact, so this rounds like a fused multiply-add, except in one case in 2^29.
    return np.float32(np.float64(a) * np.float64(b) + np.float64(c))


@njit(cache=True, nogil=True)
def _paste_rle_all(
    masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The concatenated strings of all instances, and the end of each."""
    text = np.empty(4096, np.uint8)
    ends = np.empty(len(masks), np.int64)
    size = 0
    padded = np.zeros((_PADDED, _PADDED), np.float32)
    for instance in range(len(masks)):
        padded[1:-1, 1:-1] = masks[instance]
        counts, num = _paste_runs(padded, boxes_xyxy[instance], height, width)
        if size + num * MAX_CODE_CHARS > len(text):
            grown = np.empty(2 * (size + num * MAX_CODE_CHARS), np.uint8)
            grown[:size] = text[:size]
            text = grown
        size = _compress(counts, num, text, size)
        ends[instance] = size
    return text[:size], ends


@njit(cache=True, nogil=True)
def _paste_runs(
    padded: NDArray[np.float32], box_xyxy: NDArray[np.float32], height: int, width: int
) -> tuple[NDArray[np.int64], int]:
    """Run lengths (int64 array, how many are used) of one mask in the frame."""
    left, right = _expanded(box_xyxy[0], box_xyxy[2])
    top, bottom = _expanded(box_xyxy[1], box_xyxy[3])
    out_w, out_h = max(right - left + 1, 1), max(bottom - top + 1, 1)
    x_begin, x_end = max(left, 0), min(right + 1, width)
    y_begin, y_end = max(top, 0), min(bottom + 1, height)
    num_rows = max(y_end - y_begin, 0)
    small = out_h + out_w <= _SMALL_OUTPUT

    row_idx = np.empty(num_rows, np.int64)
    row_weight = np.empty(num_rows, np.float32)
    band_begin = np.empty(_PADDED + 1, np.int64)  # output rows between the same two rows of the mask
    num_bands = 0
    for row in range(num_rows):
        row_idx[row], row_weight[row] = _source_index(row + y_begin - top, out_h, small)
        if row == 0 or row_idx[row] != row_idx[row - 1]:
            band_begin[num_bands] = row
            num_bands += 1
    band_begin[num_bands] = num_rows

    counts = np.empty(256, np.int64)
    num, done = 0, 0  # done: pixels that the counts cover; after an even number of counts, a run of ones ends there
    profile = np.empty(_PADDED, np.float32)
    for x in range(x_begin, x_end if num_rows > 0 else x_begin):
        x0, wx1 = _source_index(x - left, out_w, small)
        x1 = min(x0 + 1, _PADDED - 1)
        wx0 = _ONE - wx1
        for k in range(row_idx[0], min(row_idx[num_rows - 1] + 2, _PADDED)):
            profile[k] = _fma(padded[k, x0], wx0, padded[k, x1] * wx1)
        if num + num_rows + 2 > len(counts):
            grown = np.empty(2 * (num + num_rows + 2), np.int64)
            grown[:num] = counts[:num]
            counts = grown
        column = x * height + y_begin
        inside = False
        begin = 0
        for band in range(num_bands):
            first, last = band_begin[band], band_begin[band + 1]
            y0 = row_idx[first]
            y1 = min(y0 + 1, _PADDED - 1)
            upper, lower = profile[y0], profile[y1]
            if upper > _SURE_ONE and lower > _SURE_ONE:
                if not inside:
                    inside, begin = True, first
                continue
            if upper < _SURE_ZERO and lower < _SURE_ZERO:
                if inside:
                    num, done = _append_ones(counts, num, done, column + begin, column + first)
                    inside = False
                continue
            for row in range(first, last):
                wy1 = row_weight[row]
                wy0 = _ONE - wy1
                if small:
                    value = _fma(padded[y0, x0], wy0 * wx0, padded[y0, x1] * (wy0 * wx1))
                    value = _fma(padded[y1, x1], wy1 * wx1, _fma(padded[y1, x0], wy1 * wx0, value))
                else:
                    value = _fma(upper, wy0, lower * wy1)
                if (value > _HALF) != inside:
                    if inside:
                        num, done = _append_ones(counts, num, done, column + begin, column + row)
                    inside, begin = not inside, row
        if inside:
            num, done = _append_ones(counts, num, done, column + begin, column + num_rows)
    total = height * width
    if done < total or num == 0:
        counts[num] = total - done
        num += 1
    return counts, num


@njit(cache=True, nogil=True)
def _expanded(low: np.float32, high: np.float32) -> tuple[int, int]:
    """First and last pixel of the box along one axis: widened about its centre, edges truncated towards zero."""
    half = (high - low) * _HALF * _BOX_SCALE
    centre = (high + low) * _HALF
    return int(centre - half), int(centre + half)


@njit(cache=True, nogil=True)
def _source_index(index: int, out_size: int, small: bool) -> tuple[int, np.float32]:
    """The mask row (or column) before output row `index`, and the weight of the row after that."""
    scale = _PADDED_F32 / np.float32(out_size)
    middle = np.float32(index) + _HALF
    position = _fma(middle, scale, -_HALF) if small else scale * middle - _HALF
    if position < _ZERO:
        position = _ZERO
    lower = min(int(position), _PADDED - 1)
    return lower, min(position - np.float32(lower), _ONE)


@njit(cache=True, nogil=True)
def _append_ones(counts: NDArray[np.int64], num: int, done: int, begin: int, end: int) -> tuple[int, int]:
    """Append a run of ones at the pixels [begin, end), in column-major order, to the counts."""
    if num > 0 and begin == done:
        counts[num - 1] += end - begin
    else:
        counts[num] = begin - done
        counts[num + 1] = end - begin
        num += 2
    return num, end


@njit(cache=True, nogil=True)
def _runs_of(flat: NDArray[np.bool_]) -> NDArray[np.int64]:
    counts = np.empty(len(flat) + 1, np.int64)
    num, begin, value = 0, 0, False
    for index in range(len(flat)):
        if flat[index] != value:
            counts[num] = index - begin
            num += 1
            begin, value = index, flat[index]
    counts[num] = len(flat) - begin
    return counts[: num + 1]


@njit(cache=True, nogil=True)
def _compress(counts: NDArray[np.int64], num: int, text: NDArray[np.uint8], size: int) -> int:
    """Write the code of the counts to text[size:] and return its end.

    From the fourth count on, the difference to the count before the previous one is stored. A character holds five
    bits, lowest bits first, plus bit 5 if more characters of the number follow, plus 48.
    """
    for index in range(num):
        value = counts[index] - (counts[index - 2] if index > 2 else 0)
        more = True
        while more:
            code = value & 0x1F
            value >>= 5
            more = value != -1 if code & 0x10 else value != 0
            text[size] = (code | 0x20 if more else code) + 48
            size += 1
    return size
