"""The tensors that the loss takes: of one picture, and of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.training.picture import TrainingPicture

MASK_TARGET_SIDE = 112
"""side of a stored mask, which is resized from the object's box: four times the side of the mask head's output, 28"""


class Sample(NamedTuple):
    """One picture of N objects. Ignored objects are not among them.

    rgb        (3, H, W) uint8
    boxes      (N, 4) float32 [x1, y1, x2, y2], pixels, edges continuous: the extent of the visible pixels
    outputs    (N,) int64: index of each object's class in the output of the class head, from 1
    masks      (N, 112, 112) uint8, 0 to 255: mask of each object, resized from its box
    ignored    (H, W) bool: pixels of ignored objects
    labelled   (num_outputs,) bool: classes that the annotators looked for; True for output 0, the background
    """

    rgb: Tensor
    boxes: Tensor
    outputs: Tensor
    masks: Tensor
    ignored: Tensor
    labelled: Tensor


class Batch(NamedTuple):
    """B samples: stacked tensors with B as first dimension; lists where the number of objects differs."""

    rgb: Tensor
    boxes: list[Tensor]
    outputs: list[Tensor]
    masks: list[Tensor]
    ignored: Tensor
    labelled: Tensor

    def to(self, device: torch.device) -> Batch:
        def moved(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]

        rgb, ignored, labelled = moved([self.rgb, self.ignored, self.labelled])
        return Batch(rgb, moved(self.boxes), moved(self.outputs), moved(self.masks), ignored, labelled)


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of samples of the same height and width."""
    return Batch(
        torch.stack([sample.rgb for sample in samples]),
        [sample.boxes for sample in samples],
        [sample.outputs for sample in samples],
        [sample.masks for sample in samples],
        torch.stack([sample.ignored for sample in samples]),
        torch.stack([sample.labelled for sample in samples]),
    )


def to_sample(picture: TrainingPicture, num_outputs: int) -> Sample:
    """The tensors of a picture. The masks of its objects must be cropped to their extent, as `warp` returns them.

    num_outputs   size of the class head's output, background included
    """
    counted = [item for item in picture.objects if not item.ignored]
    ignored = np.zeros(picture.hw, np.uint8)
    for item in picture.objects:
        if item.ignored:
            height, width = item.mask.shape
            ignored[item.top : item.top + height, item.left : item.left + width] |= item.mask
    boxes = np.zeros((len(counted), 4), np.float32)
    masks = np.zeros((len(counted), MASK_TARGET_SIDE, MASK_TARGET_SIDE), np.uint8)
    for index, item in enumerate(counted):
        height, width = item.mask.shape
        boxes[index] = (item.left, item.top, item.left + width, item.top + height)
        masks[index] = cv2.resize(item.mask, masks.shape[1:], interpolation=cv2.INTER_LINEAR)
    labelled = np.isin(np.arange(num_outputs), [0, *picture.labelled])
    return Sample(
        torch.from_numpy(np.ascontiguousarray(picture.rgb.transpose(2, 0, 1))),
        torch.from_numpy(boxes),
        torch.tensor([item.output for item in counted], dtype=torch.int64),
        torch.from_numpy(masks),
        torch.from_numpy(ignored > 0),
        torch.from_numpy(labelled),
    )
