"""Load and store helpers for compiled loops over float32 or bfloat16 arrays.

NumPy has no bfloat16, so its bit patterns are stored as uint16. A bfloat16 is the upper half of a float32. numba
selects the implementation by the dtype of the array: a loop that uses these helpers accumulates in float32, at no cost
for float32 arrays. tests/unit/ops/test_roi_align.py compares the rounding with torch's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from ops.jit import njit

_QUIET_NAN = np.uint16(0x7FC0)


def read_float(value: Any) -> Any:
    """The float32 value of a float32 or of the bit pattern of a bfloat16."""
    return value if isinstance(value, np.float32) else (np.uint32(value) << np.uint32(16)).view(np.float32)


@overload(read_float, strict=False)
def _compiled_read_float(value: Any) -> Any:
    if value == types.float32:
        return lambda value: value
    return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)


def write_float(out: Any, index: Any, value: Any) -> None:
    """Store a float32 in a float32 array, or rounded to the nearest bfloat16 (ties to even) in a uint16 array."""
    out[index] = value if out.dtype == np.float32 else bf16_bits(value)


@overload(write_float, strict=False)
def _compiled_write_float(out: Any, index: Any, value: Any) -> Any:
    def plain(out: Any, index: Any, value: Any) -> None:
        out[index] = value

    def rounded(out: Any, index: Any, value: Any) -> None:
        out[index] = bf16_bits(value)

    return plain if out.dtype == types.float32 else rounded


@njit(cache=True, nogil=True)
def bf16_bits(value: np.float32) -> np.uint16:
    """Bit pattern of the bfloat16 nearest to a float32, ties to even."""
    bits = np.float32(value).view(np.uint32)
    # Rounding up can carry into the exponent and turn a NaN into infinity or zero, so NaN is handled apart.
    rounded = np.uint64(bits) + np.uint64(0x7FFF) + np.uint64((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16(rounded >> np.uint64(16)) if value == value else _QUIET_NAN
