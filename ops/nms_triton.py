"""Non-maximum suppression (NMS) of a whole batch with an output of fixed size, on CUDA: two launches, no host sync.

The survivors are exactly those of `ops.nms`: the IoU is computed with the same float32 operations in the same order,
with round-to-nearest division and without fused multiply-adds. tests/gpu/test_gpu_kernel_nms.py compares the two.

The first kernel compares all pairs on the whole GPU and writes one bit per pair. Boxes are divided into blocks of 64;
one program handles a pair of blocks, and a 64-bit word holds the results of one box against a block of earlier boxes.
The second kernel, one program per group, visits the blocks in order. Earlier survivors are bits too, so whether they
suppress a box is one AND of each word with those bits. Within a block, all boxes start as survivors and all are
re-evaluated at once until nothing changes. Box i is correct after at most i iterations; the number of iterations is the
length of the longest chain of suppressions.

Why a bit matrix instead of comparing one survivor at a time with all later boxes: for 40 groups (8 images, 5 levels) of
1000 boxes that nearly all survive, there are 20 million pairs at about 60 instructions each and 5 MB of bits, followed
by 16 sequential steps; one survivor at a time needs 1000 sequential steps with a memory round trip each. If 100 of 4096
boxes are kept, the bits take at most 2 MB per image. Blocks without a candidate, which are most blocks with a score
threshold, are neither compared nor visited, and the second kernel stops at the last survivor that is kept.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ops.nms import iou_limit

# Bits of a word, and bits that a thread computes at a time. For compute capability 9.0, 8 bits at a time take 72
# registers.
_BLOCK = 64
_STEP = 8

# The second kernel keeps in registers one word for each box of a block and each earlier block. Eight warps limit that
# to 32 words per thread.
_MAX_BOXES = 8192
_WORDS_PER_WARP = 16


def nms(
    boxes_xyxy: Tensor,
    is_candidate: Tensor,
    iou_threshold: float,
    max_kept: int,
    classes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the first max_kept survivors of each group.

    boxes_xyxy     (G, K, 4) float32, each group sorted by descending score; K is at most 8192
    is_candidate   (G, K) bool: other boxes neither survive nor suppress, and may contain any values
    iou_threshold  in [0, 1]; a box is suppressed if its IoU with a survivor is above it
    max_kept       at least 1
    classes        (G, K) int64: boxes of different classes do not suppress each other. None: all have the same class

    Returns kept (G, max_kept) int64, the indices of the survivors within the group, ascending and padded with 0, and
    num_kept (G,) int64, both on the device. No value is read on the host, so the call can be captured in a CUDA graph.
    Uses G * K * K / 8 bytes of temporary memory. Raises ValueError for wrong shapes or types.
    """
    num_groups, num_boxes = is_candidate.shape if is_candidate.ndim == 2 else (-1, -1)
    if num_groups < 0 or is_candidate.dtype != torch.bool:
        raise ValueError(f"is_candidate must be (G, K) bool, got {_described(is_candidate)}")
    if boxes_xyxy.shape != (num_groups, num_boxes, 4) or boxes_xyxy.dtype != torch.float32:
        raise ValueError(f"boxes_xyxy must be ({num_groups}, {num_boxes}, 4) float32, got {_described(boxes_xyxy)}")
    if classes is not None and (classes.shape != is_candidate.shape or classes.dtype != torch.int64):
        raise ValueError(f"classes must be ({num_groups}, {num_boxes}) int64 or None, got {_described(classes)}")
    limit = float(iou_limit(iou_threshold))
    if max_kept < 1 or num_boxes > _MAX_BOXES:
        raise ValueError(f"expected max_kept >= 1 and K <= {_MAX_BOXES}, got {max_kept} and {num_boxes}")
    device = boxes_xyxy.device
    kept = torch.empty((num_groups, max_kept), dtype=torch.int64, device=device)
    num_kept = torch.empty(num_groups, dtype=torch.int64, device=device)
    if num_groups == 0 or num_boxes == 0:
        return kept.zero_(), num_kept.zero_()
    num_blocks = triton.cdiv(num_boxes, _BLOCK)
    words = torch.empty((num_groups, num_blocks, num_boxes), dtype=torch.int64, device=device)
    flags = is_candidate.contiguous().view(torch.uint8)
    classes = None if classes is None else classes.contiguous()
    _compare_kernel[(num_groups, num_blocks, num_blocks)](
        boxes_xyxy.contiguous(), flags, classes, words, limit, num_boxes,
        BLOCK=_BLOCK, STEP=_STEP, num_warps=_BLOCK // 32, enable_fp_fusion=False,
    )  # fmt: skip
    capacity = triton.next_power_of_2(num_blocks)
    _choose_kernel[(num_groups,)](
        words, flags, kept, num_kept, num_boxes, num_blocks, max_kept,
        BLOCK=_BLOCK, WORDS=capacity, KEPT=triton.next_power_of_2(max_kept),
        num_warps=max(1, capacity // _WORDS_PER_WARP), enable_fp_fusion=False,
    )  # fmt: skip
    return kept, num_kept


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@triton.jit
def _compare_kernel(  # type: ignore[no-untyped-def]
    boxes, flags, classes, words, limit, num_boxes, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Write words[group, block, n]: bit i is set if the earlier box i of the block suppresses box n when it survives.

    One program per group, block of n, and block that is not later. The words of blocks without candidates are not
    written. A thread has one box n and iterates over the block, STEP boxes at a time.
    """
    group = tl.program_id(0).to(tl.int64)
    row_block, column_block = tl.program_id(1), tl.program_id(2)
    if column_block <= row_block:
        rows = row_block * BLOCK + tl.arange(0, BLOCK)
        is_row = rows < num_boxes
        at_rows = group * num_boxes + rows
        row_flags = tl.load(flags + at_rows, mask=is_row, other=0)
        all_columns = column_block * BLOCK + tl.arange(0, BLOCK)
        column_flags = tl.load(flags + group * num_boxes + all_columns, mask=all_columns < num_boxes, other=0)
        if (tl.max(row_flags, axis=0) != 0) & (tl.max(column_flags, axis=0) != 0):
            ax1 = tl.load(boxes + at_rows * 4, mask=is_row, other=0.0)[None, :]
            ay1 = tl.load(boxes + at_rows * 4 + 1, mask=is_row, other=0.0)[None, :]
            ax2 = tl.load(boxes + at_rows * 4 + 2, mask=is_row, other=0.0)[None, :]
            ay2 = tl.load(boxes + at_rows * 4 + 3, mask=is_row, other=0.0)[None, :]
            area = (ax2 - ax1) * (ay2 - ay1)
            if classes is not None:
                row_class = tl.load(classes + at_rows, mask=is_row, other=0)[None, :]
            word = tl.zeros((BLOCK,), tl.int64)
            for begin in range(0, BLOCK, STEP):
                lanes = begin + tl.arange(0, STEP)
                columns = column_block * BLOCK + lanes
                is_column = columns < num_boxes
                at_columns = group * num_boxes + columns
                bx1 = tl.load(boxes + at_columns * 4, mask=is_column, other=0.0)[:, None]
                by1 = tl.load(boxes + at_columns * 4 + 1, mask=is_column, other=0.0)[:, None]
                bx2 = tl.load(boxes + at_columns * 4 + 2, mask=is_column, other=0.0)[:, None]
                by2 = tl.load(boxes + at_columns * 4 + 3, mask=is_column, other=0.0)[:, None]
                width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
                height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
                shared = width * height
                union = (bx2 - bx1) * (by2 - by1) + area - shared
                # Most pairs have no intersection; a division of 0 would take a slow path with several times the
                # instructions.
                meets = shared > 0.0
                iou = tl.div_rn(tl.where(meets, shared, 1.0), tl.where(meets, union, 1.0))
                hit = meets & (iou > limit) & (columns[:, None] < rows[None, :])
                if classes is not None:
                    hit &= row_class == tl.load(classes + at_columns, mask=is_column, other=0)[:, None]
                bits = tl.full((STEP,), 1, tl.int64) << lanes
                word |= tl.sum(tl.where(hit, bits[:, None], 0), axis=0)
            tl.store(words + (group * tl.num_programs(2) + column_block) * num_boxes + rows, word, mask=is_row)


@triton.jit
def _choose_kernel(  # type: ignore[no-untyped-def]
    words, flags, kept, num_kept, num_boxes, num_blocks, max_kept,
    BLOCK: tl.constexpr, WORDS: tl.constexpr, KEPT: tl.constexpr,
):  # fmt: skip
    """Compute kept and num_kept of one group from the words of `_compare_kernel`."""
    group = tl.program_id(0).to(tl.int64)
    first = group * num_boxes
    lanes, word_idx = tl.arange(0, BLOCK), tl.arange(0, WORDS)
    bits = tl.full((BLOCK,), 1, tl.int64) << lanes
    places = tl.arange(0, WORDS * BLOCK)
    all_flags = tl.load(flags + first + places, mask=places < num_boxes, other=0)
    end = tl.max(tl.where(all_flags != 0, places // BLOCK + 1, 0), axis=0)
    survivors = tl.zeros((WORDS,), tl.int64)
    num = 0
    block = 0
    while (block < end) & (num < max_kept):
        rows = block * BLOCK + lanes
        is_row = rows < num_boxes
        at_rows = words + first * num_blocks + rows
        is_earlier = (word_idx < block)[:, None] & is_row[None, :]
        earlier = tl.load(at_rows[None, :] + word_idx[:, None] * num_boxes, mask=is_earlier, other=0)
        within = tl.load(at_rows + block * num_boxes, mask=is_row, other=0)
        is_open = tl.load(flags + first + rows, mask=is_row, other=0) != 0
        is_open &= tl.max(((earlier & survivors[:, None]) != 0).to(tl.int32), axis=0) == 0
        word = tl.sum(tl.where(is_open, bits, 0), axis=0)
        corrected = tl.sum(tl.where(is_open & ((within & word) == 0), bits, 0), axis=0)
        while corrected != word:
            word = corrected
            corrected = tl.sum(tl.where(is_open & ((within & word) == 0), bits, 0), axis=0)
        survives = (word & bits) != 0
        place = num + tl.cumsum(survives.to(tl.int32), axis=0) - 1
        tl.store(kept + group * max_kept + place, rows.to(tl.int64), mask=survives & (place < max_kept))
        num += tl.sum(survives.to(tl.int32), axis=0)
        survivors = tl.where(word_idx == block, word, survivors)
        block += 1
    num = tl.minimum(num, max_kept)
    slots = tl.arange(0, KEPT)
    zeros = tl.zeros((KEPT,), tl.int64)
    tl.store(kept + group * max_kept + slots, zeros, mask=(slots >= num) & (slots < max_kept))
    tl.store(num_kept + group, num.to(tl.int64))
