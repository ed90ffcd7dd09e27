"""Regions cut from the feature pyramid: our RoIAlign on the CPU, torchvision's on CUDA."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from ops.roi_align import Features, infer_scales, roi_align


class RoiFeatures:
    """The levels of a batch that regions are cut from, finest first."""

    def __init__(self, features: dict[str, Tensor], image_hw: tuple[int, int]) -> None:
        """features are (B, C, H, W) by torchvision's names, best channels last; image_hw is that of the batch."""
        self._image_hw = image_hw
        self._on_cpu = all(level.device.type == "cpu" for level in features.values())
        if self._on_cpu:
            self._levels = [_as_numpy(level) for level in features.values()]
            self._scales = infer_scales([level.shape[1:3] for level in self._levels], image_hw)
        else:
            self._nchw = {name: level.float().contiguous() for name, level in features.items()}

    def align(self, pool: MultiScaleRoIAlign, boxes_xyxy: list[Tensor]) -> Tensor:
        """(N, C, PH, PW) as `pool` cuts them, for the (M, 4) float32 boxes of each picture, all in a row.

        On the CPU in the format of the features and channels last, on CUDA float32.
        """
        if not self._on_cpu:
            pooled: Tensor = pool(self._nchw, boxes_xyxy, [self._image_hw])
            return pooled
        # the setting belongs to the thread that calls
        numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        image_idx = np.repeat(np.arange(len(boxes_xyxy)), [len(of_image) for of_image in boxes_xyxy])
        boxes = torch.cat(boxes_xyxy).numpy()
        found = torch.from_numpy(
            roi_align(
                self._levels, self._scales, boxes, image_idx, pool.output_size, sampling_ratio=pool.sampling_ratio
            )
        )
        return (found if found.dtype == torch.float32 else found.view(torch.bfloat16)).permute(0, 3, 1, 2)


def _as_numpy(level: Tensor) -> Features:
    """(B, H, W, C) without a copy of channels-last features; bf16 as its bits."""
    nhwc = level.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)
    found: Features = (nhwc.view(torch.uint16) if nhwc.dtype == torch.bfloat16 else nhwc).numpy()
    return found
