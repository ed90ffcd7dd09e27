"""A detector of torchvision's, taken apart into the stages that the engine runs: pictures -> boxes -> masks.

Every stage takes and gives tensors of fixed shape and waits for nothing, so the whole can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function
from torchvision.models.detection import FasterRCNN
from torchvision.ops import MultiScaleRoIAlign

from ops.roi_align import infer_scales
from pipeline.contract.arrays import MASK_SIDE
from pipeline.engine.architectures import fold_batch_norm
from pipeline.engine.boxes import Boxes, detect, propose
from pipeline.engine.kernels import roi_align
from pipeline.engine.packed import pack_for_cpu

# RoIs of 14x14 cells, enlarged by a deconvolution and an interpolation of two each.
_HEATMAP_SIDE = 56

# Anchors are kept for this many input shapes; one shape of a ResNet costs 4 MB.
_MAX_ANCHOR_SHAPES = 8


class Pyramid(NamedTuple):
    """What RoIs are cut from."""

    levels: list[Tensor]
    """(B, C, H, W) each, finest first, channels last"""
    scales: list[float]
    """of the input, by level"""


class Instances(NamedTuple):
    """The boxes of all pictures in a row, picture by picture; behind the count is padding."""

    xyxy: Tensor
    """(M, 4) float32, input pixels"""
    image_idx: Tensor
    """(M,) int64"""
    outputs: Tensor
    """(M,) int64, of the class head"""
    num: Tensor
    """(1,) int64"""


class Network:
    """The stages.

    dtype        the format of the convolutions; boxes, scores and the sums of RoIAlign are float32
    num_outputs  of the class head, the background among them
    """

    def __init__(self, network: FasterRCNN, device: torch.device, dtype: torch.dtype) -> None:
        """Takes the network over: folds its batch norms, moves and converts it, and rewrites it for the CPU."""
        fold_batch_norm(network)
        network.to(device=device, dtype=dtype, memory_format=torch.channels_last)
        network.rpn.anchor_generator.set_cell_anchors(torch.float32, device)
        self.device = device
        self.dtype = dtype
        self._backbone = network.backbone
        self._rpn = network.rpn
        self._heads = network.roi_heads
        self._anchors: dict[tuple[int, int], list[Tensor]] = {}
        self.num_outputs = int(self._heads.box_predictor.cls_score.out_features)
        if self._heads.has_mask():
            last = self._heads.mask_predictor.mask_fcn_logits
            self._mask_weight, self._mask_bias = last.weight.flatten(1), last.bias.float()
        if device.type == "cpu":
            pack_for_cpu(network)

    @property
    def max_detections(self) -> int:
        """Of one picture."""
        return int(self._heads.detections_per_img)

    @property
    def detail_shape(self) -> tuple[int, ...]:
        """Of the mask of a box, of the heatmaps of its keypoints, or empty for a network that finds boxes alone."""
        if self._heads.has_mask():
            return (MASK_SIDE, MASK_SIDE)
        if self._heads.has_keypoint():
            return (self._heads.keypoint_predictor.out_channels, _HEATMAP_SIDE, _HEATMAP_SIDE)
        return ()

    def boxes(self, batch: Tensor, input_hws: Tensor, min_scores: Tensor) -> tuple[Pyramid, Boxes]:
        """Detections on a batch, (B, 3, H, W) normalised, padded and channels last, in `dtype`.

        input_hws (B, 2) float32: the part of the input that each picture fills. min_scores (B, num_outputs) float32:
        the lowest score of each class on each picture, beside the network's own threshold.
        """
        padded_hw = (batch.shape[2], batch.shape[3])
        with record_function("trunk"):
            features: dict[str, Tensor] = self._backbone(batch)
            levels = list(features.values())
            objectness, deltas = self._rpn.head(levels)
        with record_function("proposals"):
            proposals = propose(self._rpn, objectness, deltas, self._anchors_for(levels, padded_hw), input_hws)
        pyramid = self._pyramid(features, padded_hw)
        with record_function("box_roi_align"):
            num_images, num_proposals = proposals.scores.shape
            image_idx = torch.arange(num_images, device=self.device).repeat_interleave(num_proposals)
            pooled = self._cut(
                self._heads.box_roi_pool, pyramid, proposals.xyxy.flatten(0, 1), image_idx, proposals.num
            )
        with record_function("box_head"):
            logits, codes = self._heads.box_predictor(self._heads.box_head(pooled))
        with record_function("boxes"):
            return pyramid, detect(self._heads, logits, codes, proposals, input_hws, min_scores)

    def in_a_row(self, boxes: Boxes, capacity: int) -> Instances:
        """The first `capacity` of the boxes of all pictures."""
        num_images, per_image = boxes.scores.shape
        row = torch.arange(capacity, device=self.device)
        ends = boxes.num.cumsum(0)
        image_idx = torch.searchsorted(ends, row, right=True).clamp(max=num_images - 1)
        slot = (row - (ends - boxes.num)[image_idx]).clamp(max=per_image - 1)
        flat = image_idx * per_image + slot
        num = ends[-1:].clamp(max=capacity)
        return Instances(boxes.xyxy.flatten(0, 1)[flat], image_idx, boxes.outputs.flatten()[flat], num)

    def masks(self, pyramid: Pyramid, instances: Instances) -> Tensor:
        """(M, 28, 28) float32 probabilities of each instance's own class."""
        heads = self._heads
        with record_function("mask_roi_align"):
            pooled = self._cut(heads.mask_roi_pool, pyramid, *instances[:2], instances.num)
        with record_function("mask_head"):
            predictor = heads.mask_predictor
            hidden = predictor.relu(predictor.conv5_mask(heads.mask_head(pooled)))
            # Each instance's own row of the last, 1x1 convolution: all outputs would cost as many times more.
            weight = self._mask_weight[instances.outputs].unsqueeze(1)
            rows = hidden.permute(0, 2, 3, 1).flatten(1, 2)
            logits = torch.bmm(weight, rows.transpose(1, 2)).float().view(-1, MASK_SIDE, MASK_SIDE)
            probabilities: Tensor = (logits + self._mask_bias[instances.outputs][:, None, None]).sigmoid()
            return probabilities

    def heatmaps(self, pyramid: Pyramid, instances: Instances) -> Tensor:
        """(M, K, 56, 56) float32 logits of the keypoints' places in each box."""
        heads = self._heads
        with record_function("keypoint_roi_align"):
            pooled = self._cut(heads.keypoint_roi_pool, pyramid, *instances[:2], instances.num)
        with record_function("keypoint_head"):
            found: Tensor = heads.keypoint_predictor(heads.keypoint_head(pooled))
            return found.float()

    def details(self, pyramid: Pyramid, boxes: Boxes, capacity: int) -> Tensor:
        """The masks or heatmaps of the first `capacity` boxes of all pictures."""
        instances = self.in_a_row(boxes, capacity)
        return self.masks(pyramid, instances) if self._heads.has_mask() else self.heatmaps(pyramid, instances)

    def _pyramid(self, features: dict[str, Tensor], padded_hw: tuple[int, int]) -> Pyramid:
        """The levels that boxes can belong to: each has half the scale of the one before."""
        levels = [features[name] for name in self._heads.box_roi_pool.featmap_names if name in features]
        scales = infer_scales([(level.shape[2], level.shape[3]) for level in levels], padded_hw)
        num = round(scales[0] / scales[-1]).bit_length()
        return Pyramid(levels[:num], list(scales[:num]))

    def _cut(
        self, pool: MultiScaleRoIAlign, pyramid: Pyramid, xyxy: Tensor, image_idx: Tensor, num_valid: Tensor
    ) -> Tensor:
        """(N, C, side, side) in `dtype`, channels last."""
        side, _ = pool.output_size
        pooled: Tensor = roi_align(
            pyramid.levels, pyramid.scales, xyxy, image_idx, num_valid, side, pool.sampling_ratio
        )
        return pooled

    def _anchors_for(self, levels: list[Tensor], padded_hw: tuple[int, int]) -> list[Tensor]:
        """(A, 4) float32 anchors of each level for an input of this shape."""
        if padded_hw not in self._anchors:
            level_hws = [level.shape[-2:] for level in levels]
            strides = [
                [torch.tensor(padded_hw[0] // rows), torch.tensor(padded_hw[1] // columns)]
                for rows, columns in level_hws
            ]
            if len(self._anchors) == _MAX_ANCHOR_SHAPES:
                del self._anchors[next(iter(self._anchors))]
            self._anchors[padded_hw] = self._rpn.anchor_generator.grid_anchors(level_hws, strides)
        return self._anchors[padded_hw]
