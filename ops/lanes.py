"""SIMD comparison of one box with eight boxes at once.

LLVM vectorises long loops, but a box overlaps only a few others. The eight lanes are therefore written as LLVM vector
instructions, which use the widest registers of the CPU. The functions are called from compiled code; with
NUMBA_DISABLE_JIT=1 the Python implementations below run instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

LANES = 8
NUM_EDGES = 5
"""rows of an edge table: x1, y1, x2, y2 and the area"""

_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_INDEX = ir.IntType(64)


def meeting_lanes(
    edges: NDArray[np.float64],
    first: int,
    left: float,
    top: float,
    right: float,
    bottom: float,
    area: float,
    factor: float,
) -> int:
    """Compare the box (left, top, right, bottom) with the boxes first to first + 7 of an edge table (5, M).

    Returns a bit mask: bit k is set if intersection area * factor > area + area of box first + k. factor may be
    infinite, which sets the bit of every box with an intersection. M must be at least first + 8.
    """
    bits = 0
    for lane in range(LANES):
        x1, y1, x2, y2, other_area = edges[:, first + lane].tolist()
        width, height = min(right, x2) - max(left, x1), min(bottom, y2) - max(top, y1)
        if width > 0.0 and height > 0.0:
            bits |= int(width * height * factor > area + other_area) << lane
    return bits


def lowest_bit(bits: int) -> int:
    """Index of the lowest set bit of a positive number."""
    return (bits & -bits).bit_length() - 1


@overload(meeting_lanes, strict=False)
def _overload_meeting_lanes(
    edges: Any, first: Any, left: Any, top: Any, right: Any, bottom: Any, area: Any, factor: Any
) -> Callable[..., int]:
    return lambda edges, first, left, top, right, bottom, area, factor: _meeting_lanes(
        edges, first, left, top, right, bottom, area, factor
    )


@overload(lowest_bit, strict=False)
def _overload_lowest_bit(bits: Any) -> Callable[..., int]:
    return lambda bits: _lowest_bit(bits)


def _type_meeting_lanes(
    context: Any, edges: Any, first: Any, left: Any, top: Any, right: Any, bottom: Any, area: Any, factor: Any
) -> Any:
    """Signature and code generator of the intrinsic."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, first, left, top, right, bottom, area, factor = arguments
        array = context.make_array(signature.args[0])(context, builder, array)
        row_length = builder.extract_value(array.shape, 1)

        def edge(number: int) -> Any:
            place = builder.add(first, builder.mul(row_length, _INDEX(number)))
            return builder.load(builder.bitcast(builder.gep(array.data, [place]), _DOUBLES.as_pointer()), align=8)

        def length(low: Any, high: Any, number: int) -> Any:
            """Length of the intersection along one axis, 0 without an intersection."""
            others_low, others_high = edge(number), edge(number + 2)
            low, high = _broadcast(builder, low), _broadcast(builder, high)
            low = builder.select(builder.fcmp_ordered(">", low, others_low), low, others_low)
            high = builder.select(builder.fcmp_ordered("<", high, others_high), high, others_high)
            length = builder.fsub(high, low)
            zero = ir.Constant(_DOUBLES, [0.0] * LANES)
            return builder.select(builder.fcmp_ordered(">", length, zero), length, zero)

        shared = builder.fmul(length(left, right, 0), length(top, bottom, 1))
        both = builder.fadd(_broadcast(builder, area), edge(4))
        # 0 * infinity is NaN, for which the ordered comparison is false.
        meets = builder.fcmp_ordered(">", builder.fmul(shared, _broadcast(builder, factor)), both)
        return builder.zext(builder.bitcast(meets, ir.IntType(LANES)), _INDEX)

    number = types.float64
    return types.int64(edges, types.int64, number, number, number, number, number, number), generate


def _type_lowest_bit(context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.int64), generate


_meeting_lanes: Any = intrinsic(_type_meeting_lanes)
_lowest_bit: Any = intrinsic(_type_lowest_bit)


def _broadcast(builder: Any, value: Any) -> Any:
    """Broadcast a scalar to all lanes."""
    undefined = ir.Constant(_DOUBLES, ir.Undefined)
    one = builder.insert_element(undefined, value, _INDEX(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))
