"""The kernels of `ops` as torch custom operators: numba on the CPU, Triton on CUDA, shape inference for fake tensors.

Output shapes depend only on input shapes, and nothing synchronises with the device, so the operators can be captured in
a CUDA graph. Triton is imported by the first call on CUDA.
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


@library.custom_op("maskstream::preprocess", mutates_args=(), device_types="cuda")
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
    from ops.preprocess_triton import preprocess as preprocess_on_cuda

    height, width = padded_hw
    return preprocess_on_cuda(planes, params, (height, width), mean, std, dtype)


@preprocess.register_fake
def _(
    planes: Tensor,
    params: Tensor,
    padded_hw: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    return planes.new_empty((len(planes), *padded_hw, 3), dtype=dtype).permute(0, 3, 1, 2)


@library.custom_op("maskstream::nms", mutates_args=(), device_types="cpu")
def nms(
    boxes_xyxy: Tensor, is_candidate: Tensor, iou_threshold: float, max_kept: int, classes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Non-maximum suppression: kept (G, max_kept) int64, indices of the survivors by descending score padded with 0,
    and num_kept (G,) int64.

    boxes_xyxy (G, K, 4) float32, sorted by descending score; is_candidate (G, K) bool: other boxes neither survive nor
    suppress; classes (G, K) int64 or None: boxes suppress boxes of their own class only.
    """
    class_array = None if classes is None else classes.numpy()
    kept, num_kept = nms_on_cpu(boxes_xyxy.numpy(), is_candidate.numpy(), iou_threshold, max_kept, class_array)
    return torch.from_numpy(kept), torch.from_numpy(num_kept)


@nms.register_kernel("cuda")
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    from ops.nms_triton import nms as nms_on_cuda

    return nms_on_cuda(*arguments)


@nms.register_fake
def _(boxes_xyxy: Tensor, is_candidate: Tensor, iou_threshold: float, max_kept: int, *_: Any) -> tuple[Tensor, Tensor]:
    kept = is_candidate.new_empty((len(is_candidate), max_kept), dtype=torch.int64)
    return kept, is_candidate.new_empty(len(is_candidate), dtype=torch.int64)


@library.custom_op("maskstream::roi_align", mutates_args=(), device_types="cpu")
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


@roi_align.register_kernel("cuda")
def _(
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


@roi_align.register_fake
def _(
    levels: Sequence[Tensor],
    scales: Sequence[float],
    boxes_xyxy: Tensor,
    image_idx: Tensor,
    num_valid: Tensor,
    output_side: int,
    *_: Any,
) -> Tensor:
    shape = (len(boxes_xyxy), output_side, output_side, levels[0].shape[1])
    return levels[0].new_empty(shape).permute(0, 3, 1, 2)


def _nhwc(level: Tensor) -> NDArray[np.float32] | NDArray[np.uint16]:
    """(B, H, W, C) view of channels-last features; bfloat16 as uint16 bit patterns."""
    nhwc = level.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    found: NDArray[np.float32] | NDArray[np.uint16]
    found = (nhwc.view(torch.uint16) if nhwc.dtype == torch.bfloat16 else nhwc).numpy()
    return found
