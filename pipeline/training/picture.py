"""One picture with its objects while it is changed for training, and the tensors it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MASK_TARGET_SIDE = 112
"""Side of the stored mask of an object, stretched to its box: four times the 28 cells that the network is asked for."""

# Smaller ones, in pixels of the crop, are neither asked for nor punished.
_MIN_AREA_PX = 12
# An object of which less than this is left is not asked for either: a sleeve is no person.
_MIN_SHARE = 0.06

Matrix = NDArray[np.float64]
Rgb = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Instance:
    """One object, its mask cropped to its box.

    output    of the class head, from 1
    left, top of the mask in the picture, pixels; mask (h, w) uint8, 0 or 255
    ignored   its pixels are neither truth nor background (COCO's iscrowd, or too little to be seen)
    """

    output: int
    left: int
    top: int
    mask: NDArray[np.uint8]
    ignored: bool

    @property
    def area_px(self) -> int:
        return cv2.countNonZero(self.mask) if self.mask.size else 0


@dataclass(frozen=True, slots=True)
class Picture:
    """rgb (H, W, 3) uint8; `labelled` are the outputs of the class head that were looked for on it."""

    rgb: Rgb
    instances: tuple[Instance, ...]
    labelled: frozenset[int]

    @property
    def hw(self) -> tuple[int, int]:
        return self.rgb.shape[0], self.rgb.shape[1]


class Sample(NamedTuple):
    """A picture as the loss takes it.

    rgb      (3, H, W) uint8
    boxes    (N, 4) float32 xyxy, pixels, edges continuous: the extent of the visible pixels
    outputs  (N,) int64, of the class head, from 1
    masks    (N, 112, 112) uint8, 0 to 255: each object's mask, stretched to its box
    ignored  (H, W) bool: where what is found is neither right nor wrong
    labelled (num_outputs,) bool: classes that were looked for; output 0, the background, is True
    """

    rgb: Tensor
    boxes: Tensor
    outputs: Tensor
    masks: Tensor
    ignored: Tensor
    labelled: Tensor


class Batch(NamedTuple):
    """As `Sample`, with lists where the number of objects differs and a first dimension elsewhere."""

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
    """Samples of one size."""
    return Batch(
        torch.stack([sample.rgb for sample in samples]),
        [sample.boxes for sample in samples],
        [sample.outputs for sample in samples],
        [sample.masks for sample in samples],
        torch.stack([sample.ignored for sample in samples]),
        torch.stack([sample.labelled for sample in samples]),
    )


def warp(picture: Picture, matrix: Matrix, hw: tuple[int, int], fill: tuple[int, int, int]) -> Picture:
    """The picture seen through a homography, cut to (height, width); instances out of it are left out.

    matrix (3, 3) takes continuous pixel coordinates (the centre of the first pixel is 0.5, 0.5) of the picture to
    those of the result. Where nothing of the picture falls, the result has the colour `fill`.
    """
    rgb, source_matrix = _shrunk(picture.rgb, matrix)
    warped = cv2.warpPerspective(
        rgb,
        _between_centres(source_matrix),
        (hw[1], hw[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
    instances = (warp_instance(instance, matrix, hw) for instance in picture.instances)
    return Picture(
        np.asarray(warped, np.uint8),
        tuple(instance for instance in instances if instance is not None),
        picture.labelled,
    )


def warp_instance(instance: Instance, matrix: Matrix, hw: tuple[int, int]) -> Instance | None:
    """As `warp` does it; None for what is not in sight. Too little of it is `ignored`."""
    height, width = instance.mask.shape
    corners = np.array([[[x, y]] for x in (0, width) for y in (0, height)], np.float64)
    placed = matrix @ shift(instance.left, instance.top)
    points = cv2.perspectiveTransform(corners, placed)[:, 0]
    x1, y1 = np.floor(points.min(axis=0)).clip(0, (hw[1], hw[0])).astype(int).tolist()
    x2, y2 = np.ceil(points.max(axis=0)).clip(0, (hw[1], hw[0])).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return None
    local = _between_centres(shift(-x1, -y1) @ placed)
    soft = cv2.warpPerspective(instance.mask, local, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR)
    mask = cv2.threshold(soft, 127, 255, cv2.THRESH_BINARY)[1]
    found = tightened(replace(instance, left=x1, top=y1, mask=np.asarray(mask, np.uint8)))
    if found is None:
        return None
    whole_px = instance.area_px * abs(float(np.linalg.det(_tangent(placed, width / 2, height / 2))))
    area_px = found.area_px
    too_little = area_px < _MIN_AREA_PX or area_px < _MIN_SHARE * whole_px
    return replace(found, ignored=found.ignored or too_little)


def covered(instance: Instance, above: Instance) -> Instance | None:
    """What is seen of an instance with another one before it; None for nothing."""
    x1, y1 = max(instance.left, above.left), max(instance.top, above.top)
    x2 = min(instance.left + instance.mask.shape[1], above.left + above.mask.shape[1])
    y2 = min(instance.top + instance.mask.shape[0], above.top + above.mask.shape[0])
    if x2 <= x1 or y2 <= y1:
        return instance
    mask = instance.mask.copy()
    part = above.mask[y1 - above.top : y2 - above.top, x1 - above.left : x2 - above.left]
    mask[y1 - instance.top : y2 - instance.top, x1 - instance.left : x2 - instance.left][part > 0] = 0
    found = tightened(replace(instance, mask=mask))
    if found is None:
        return None
    area_px = found.area_px
    too_little = area_px < _MIN_AREA_PX or area_px < _MIN_SHARE * instance.area_px
    return replace(found, ignored=found.ignored or too_little)


def tightened(instance: Instance) -> Instance | None:
    """With the mask cut to its own extent; None for an empty one."""
    x, y, width, height = cv2.boundingRect(instance.mask)
    if width == 0 or height == 0:
        return None
    return replace(
        instance, left=instance.left + x, top=instance.top + y, mask=instance.mask[y : y + height, x : x + width]
    )


def to_sample(picture: Picture, num_outputs: int) -> Sample:
    """The tensors of a picture whose masks are cut to their extent, as `warp` leaves them."""
    wanted = [instance for instance in picture.instances if not instance.ignored]
    ignored = np.zeros(picture.hw, np.uint8)
    for instance in picture.instances:
        if instance.ignored:
            height, width = instance.mask.shape
            ignored[instance.top : instance.top + height, instance.left : instance.left + width] |= instance.mask
    boxes = np.zeros((len(wanted), 4), np.float32)
    masks = np.zeros((len(wanted), MASK_TARGET_SIDE, MASK_TARGET_SIDE), np.uint8)
    for index, instance in enumerate(wanted):
        height, width = instance.mask.shape
        boxes[index] = (instance.left, instance.top, instance.left + width, instance.top + height)
        masks[index] = cv2.resize(instance.mask, masks.shape[1:], interpolation=cv2.INTER_LINEAR)
    labelled = np.isin(np.arange(num_outputs), [0, *picture.labelled])
    return Sample(
        torch.from_numpy(np.ascontiguousarray(picture.rgb.transpose(2, 0, 1))),
        torch.from_numpy(boxes),
        torch.tensor([instance.output for instance in wanted], dtype=torch.int64),
        torch.from_numpy(masks),
        torch.from_numpy(ignored > 0),
        torch.from_numpy(labelled),
    )


def shift(x: float, y: float) -> Matrix:
    """The homography that moves by (x, y) pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def scaling(x: float, y: float) -> Matrix:
    """The homography that scales about the origin."""
    return np.diag([x, y, 1.0])


def _between_centres(matrix: Matrix) -> Matrix:
    """OpenCV counts from the centre of the first pixel, we count from its corner."""
    moved: Matrix = shift(-0.5, -0.5) @ matrix @ shift(0.5, 0.5)
    return moved


def _shrunk(rgb: Rgb, matrix: Matrix) -> tuple[Rgb, Matrix]:
    """Averages pixels first where the homography makes the picture smaller: interpolation alone would skip some."""
    height, width = rgb.shape[:2]
    scale = abs(float(np.linalg.det(_tangent(matrix, width / 2, height / 2)))) ** 0.5
    if scale > 0.8:
        return rgb, matrix
    small_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = np.asarray(cv2.resize(rgb, small_wh, interpolation=cv2.INTER_AREA), np.uint8)
    return small, matrix @ scaling(width / small_wh[0], height / small_wh[1])


def _tangent(matrix: Matrix, x: float, y: float) -> Matrix:
    """(2, 2): the derivative of the homography at a point."""
    u, v, w = matrix @ (x, y, 1.0)
    rows: Matrix = (matrix[:2, :2] - np.outer((u / w, v / w), matrix[2, :2])) / w
    return rows
