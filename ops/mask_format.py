"""How masks are stored: as the bits of the 28x28 cells of a box, and as COCO's run-length encoding (RLE) of a frame.

Decodes RLE with NumPy alone, so that a process which only reads masks, such as a subscriber or a sink, needs neither
numba nor compiled kernels. `ops.masks` encodes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MASK_SIDE = 28
"""side of the grid of cells in which a network predicts the mask of a box"""
MASK_BYTES = MASK_SIDE * MASK_SIDE // 8

MAX_CODE_CHARS = 12
"""maximum number of characters of a count: 60 bits"""
_MAX_COUNT = 1 << 40
"""no frame has more pixels"""


def decode_rle(counts: bytes, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool mask, Fortran order, of a COCO compressed RLE string. Raises ValueError for malformed counts."""
    height, width = hw
    ends = np.cumsum(_run_lengths(counts))
    num_pixels = int(ends[-1]) if len(ends) else 0
    if num_pixels != height * width:
        raise ValueError(f"RLE counts must add up to {height} * {width} = {height * width} pixels, got {num_pixels}")
    flat = np.zeros(num_pixels, np.bool_)
    for begin, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
        flat[begin:end] = True
    return flat.reshape(width, height).T


def rle_area(counts: bytes) -> int:
    """Number of pixels set in a COCO compressed RLE string. Raises ValueError for malformed counts."""
    return int(_run_lengths(counts)[1::2].sum())


def rle_num_pixels(counts: bytes) -> int:
    """Number of pixels of the frame, set or not, of a COCO compressed RLE string. Raises ValueError for malformed
    counts.
    """
    return int(_run_lengths(counts).sum())


def _run_lengths(counts: bytes) -> NDArray[np.int64]:
    """The runs of zeros and of ones in turn, beginning with zeros (inverse of pycocotools' `rleToString`, maskApi.c).

    A character minus 48 holds five bits of a number, lowest bits first, and in bit 5 whether more characters of the
    number follow. Bit 4 of the last character is the sign. From the fourth number on, a number is the difference of a
    run to the run before the previous one.
    """
    codes = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if len(codes) == 0:
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("RLE counts hold a character outside '0' to 'o'")
    last = np.flatnonzero(codes < 32)
    first = np.concatenate(([0], last[:-1] + 1))
    num_chars = last - first + 1
    if len(last) == 0 or last[-1] != len(codes) - 1 or num_chars.max() > MAX_CODE_CHARS:
        raise ValueError("RLE counts end inside a number, or hold one that is too long")
    place = 5 * (np.arange(len(codes)) - np.repeat(first, num_chars))
    numbers = np.add.reduceat((codes & 31) << place, first)
    numbers -= np.where(codes[last] & 16, 1 << 5 * num_chars, 0)
    if np.abs(numbers).max() <= _MAX_COUNT:  # else the sums could overflow
        numbers[1::2] = np.cumsum(numbers[1::2])
        numbers[2::2] = np.cumsum(numbers[2::2])
    if numbers.min() < 0 or numbers.max() > _MAX_COUNT:
        raise ValueError("RLE counts hold a run of negative or absurd length")
    return numbers
