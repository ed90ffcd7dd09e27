"""The kernels of `ops` as torch operators: numba on the CPU, Triton on CUDA, shape inference for fake tensors.

Output shapes depend only on input shapes, and nothing synchronises with the device, so the operators can be captured in
a CUDA graph. Triton is imported by the first call on CUDA.

The operators are declared by schema and not by torch's decorator `custom_op`, whose operators import torch's compiler
at their first call (docs/decisions.md, "The engine starts without torch's compiler").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, library

from ops.nms import nms as nms_on_cpu
from ops.roi_align import roi_align as roi_align_on_cpu

library.define(
    "maskstream::preprocess",
    "(Tensor planes, Tensor params, int[] padded_hw, float[] mean, float[] std, ScalarType dtype) -> Tensor",
)
library.define(
    "maskstream::nms",
    "(Tensor boxes_xyxy, Tensor is_candidate, float iou_threshold, int max_kept, Tensor? classes) -> (Tensor, Tensor)",
)
library.define(
    "maskstream::roi_align",
    "(Tensor[] levels, float[] scales, Tensor boxes_xyxy, Tensor image_idx, Tensor num_valid, int output_side, "
    "int sampling_ratio) -> Tensor",
)


def preprocess(
    planes: Tensor,
    params: Tensor,
    padded_hw: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """Make the network's input from the arrays of `ops.preprocess.pack_frames`: (B, 3, *padded_hw) in `dtype`, channels
    last. CUDA only; on the CPU, `ops.preprocess.preprocess_batch` reads the frames directly.
    """
    found: Tensor = torch.ops.maskstream.preprocess(planes, params, padded_hw, mean, std, dtype)
    return found


def nms(
    boxes_xyxy: Tensor, is_candidate: Tensor, iou_threshold: float, max_kept: int, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression: kept (G, max_kept) int64, indices of the survivors by descending score padded with 0,
    and num_kept (G,) int64.

    boxes_xyxy (G, K, 4) float32, sorted by descending score; is_candidate (G, K) bool: other boxes neither survive nor
    suppress; classes (G, K) int64 or None: boxes suppress boxes of their own class only.
    """
    kept, num_kept = torch.ops.maskstream.nms(boxes_xyxy, is_candidate, iou_threshold, max_kept, classes)
    return kept, num_kept


def roi_align(
    levels: Sequence[Tensor],
    scales: Sequence[float],
    boxes_xyxy: Tensor,
    image_idx: Tensor,
    num_valid: Tensor,
    output_side: int,
    sampling_ratio: int,
) -> Tensor:
    """RoIAlign with aligned=False: (N, C, side, side) in the dtype of the levels, channels last.

    levels (B, C, H, W) channels last; boxes_xyxy (N, 4) float32; image_idx (N,) int64; num_valid (G,) int64. See
    `ops.roi_align.roi_align`.
    """
    pooled: Tensor = torch.ops.maskstream.roi_align(
        levels, scales, boxes_xyxy, image_idx, num_valid, output_side, sampling_ratio
    )
    return pooled


# -- CPU --------------------------------------------------------------------------------------------------------------


@library.impl("maskstream::nms", "cpu")
def _nms_on_cpu(
    boxes_xyxy: Tensor, is_candidate: Tensor, iou_threshold: float, max_kept: int, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    class_array = None if classes is None else classes.numpy()
    kept, num_kept = nms_on_cpu(boxes_xyxy.numpy(), is_candidate.numpy(), iou_threshold, max_kept, class_array)
    return torch.from_numpy(kept), torch.from_numpy(num_kept)


@library.impl("maskstream::roi_align", "cpu")
def _roi_align_on_cpu(
    levels: Sequence[Tensor],
    scales: Sequence[float],
    boxes_xyxy: Tensor,
    image_idx: Tensor,
    num_valid: Tensor,
    output_side: int,
    sampling_ratio: int,
) -> Tensor:
    # numba's number of threads is a setting of the calling thread.
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    output = roi_align_on_cpu(
        [_nhwc(level) for level in levels],
        scales,
        boxes_xyxy.numpy(),
        image_idx.numpy(),
        (output_side, output_side),
        sampling_ratio=sampling_ratio,
        num_valid=num_valid.numpy(),
    )
    pooled = torch.from_numpy(output)
    if pooled.dtype == torch.uint16:
        pooled = pooled.view(torch.bfloat16)
    return pooled.permute(0, 3, 1, 2)


def _nhwc(level: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """(B, H, W, C) view of channels-last features; bfloat16 as uint16 bit patterns."""
    nhwc = level.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    found: NDArray[np.float32] | NDArray[np.uint16]
    found = (nhwc.view(torch.uint16) if nhwc.dtype == torch.bfloat16 else nhwc).numpy()
    return found


# -- CUDA -------------------------------------------------------------------------------------------------------------


@library.impl("maskstream::preprocess", "cuda")
def _preprocess_on_cuda(planes: Tensor, params: Tensor, padded_hw: Sequence[int], *options: Any) -> Tensor:
    from ops.preprocess_triton import preprocess as preprocess_on_cuda

    height, width = padded_hw
    return preprocess_on_cuda(planes, params, (height, width), *options)


@library.impl("maskstream::nms", "cuda")
def _nms_on_cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    from ops.nms_triton import nms as nms_on_cuda

    return nms_on_cuda(*arguments)


@library.impl("maskstream::roi_align", "cuda")
def _roi_align_on_cuda(
    levels: Sequence[Tensor],
    scales: Sequence[float],
    boxes_xyxy: Tensor,
    image_idx: Tensor,
    num_valid: Tensor,
    output_side: int,
    sampling_ratio: int,
) -> Tensor:
    from ops.roi_align_triton import roi_align as roi_align_on_cuda

    return roi_align_on_cuda(
        levels,
        scales,
        boxes_xyxy,
        image_idx,
        (output_side, output_side),
        sampling_ratio=sampling_ratio,
        num_valid=num_valid,
    )


# -- fake tensors -----------------------------------------------------------------------------------------------------


@library.register_fake("maskstream::preprocess")  # type: ignore[untyped-decorator]
def _preprocess_shape(
    planes: Tensor, params: Tensor, padded_hw: Sequence[int], mean: Any, std: Any, dtype: torch.dtype
) -> Tensor:
    return planes.new_empty((len(planes), *padded_hw, 3), dtype=dtype).permute(0, 3, 1, 2)


@library.register_fake("maskstream::nms")  # type: ignore[untyped-decorator]
def _nms_shapes(
    boxes_xyxy: Tensor, is_candidate: Tensor, iou_threshold: float, max_kept: int, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    kept = is_candidate.new_empty((len(is_candidate), max_kept), dtype=torch.int64)
    return kept, is_candidate.new_empty(len(is_candidate), dtype=torch.int64)


@library.register_fake("maskstream::roi_align")  # type: ignore[untyped-decorator]
def _roi_align_shape(
    levels: Sequence[Tensor], scales: Any, boxes_xyxy: Tensor, image_idx: Any, num_valid: Any, output_side: int, *_: Any
) -> Tensor:
    shape = (len(boxes_xyxy), output_side, output_side, levels[0].shape[1])
    return levels[0].new_empty(shape).permute(0, 3, 1, 2)
