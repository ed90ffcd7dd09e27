"""A network split into the stages that the runners call: images -> boxes -> masks or heatmaps.

Every stage takes and returns tensors of fixed shapes and never synchronises with the device, so that the whole forward
pass can be captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.ops import MultiScaleRoIAlign

from ops.mask_format import MASK_SIDE
from ops.roi_align import infer_scales
from pipeline.engine.architectures import Network, fold_batch_norm
from pipeline.engine.boxes import Boxes, detect, propose
from pipeline.engine.kernels import roi_align
from pipeline.engine.packed import pack_for_cpu

# 14x14 cells per RoI, upsampled twice by a factor of two: by a deconvolution and by an interpolation.
_HEATMAP_SIDE = 56

# Maximum number of input shapes whose anchors are cached; one shape of a ResNet takes 4 MB.
_MAX_ANCHOR_SHAPES = 8


class Pyramid(NamedTuple):
    """The feature maps that RoIAlign samples."""

    levels: list[Tensor]
    """(B, C, H, W) each, finest first, channels last"""
    scales: list[float]
    """scale of each level relative to the input"""


class FlatBoxes(NamedTuple):
    """The boxes of all images, concatenated image by image; the first `num` of M rows are valid."""

    xyxy: Tensor
    """(M, 4) float32, input pixels"""
    image_idx: Tensor
    """(M,) int64"""
    outputs: Tensor
    """(M,) int64, output of the class head"""
    num: Tensor
    """(1,) int64"""


class StagedNetwork:
    """The stages of a network on a device.

    dtype        the format of the convolutions; boxes, scores and the sums of RoIAlign are float32
    num_outputs  number of outputs of the class head, including the background

    The details of an instance are its mask or its keypoint heatmaps, whichever the network detects. A network that
    detects boxes only has no details.
    """

    def __init__(self, network: Network, device: torch.device, dtype: torch.dtype) -> None:
        """Takes ownership of the network: folds its batch norms, moves it to the device, converts it to dtype, and on
        the CPU replaces its layers by faster ones.
        """
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
            pack_for_cpu(cast(nn.Module, network))

    @property
    def max_detections(self) -> int:
        """Maximum number of detections on one image."""
        return int(self._heads.detections_per_img)

    @property
    def detail_shape(self) -> tuple[int, ...]:
        """Shape of the details of one instance; empty for a network without details."""
        if self._heads.has_mask():
            return (MASK_SIDE, MASK_SIDE)
        if self._heads.has_keypoint():
            return (self._heads.keypoint_predictor.out_channels, _HEATMAP_SIDE, _HEATMAP_SIDE)
        return ()

    def boxes(self, batch: Tensor, input_hws: Tensor, min_scores: Tensor) -> tuple[Pyramid, Boxes]:
        """Detect boxes on a batch. Returns the pyramid, from which `details` are computed, and the detections.

        batch       (B, 3, H, W) in `dtype`: normalised, padded, channels last
        input_hws   (B, 2) float32: height and width of each image inside the padded input
        min_scores  (B, num_outputs) float32: lowest score of each class on each image, in addition to the network's own
                    threshold
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
            pooled = self._pool(
                self._heads.box_roi_pool, pyramid, proposals.xyxy.flatten(0, 1), image_idx, proposals.num
            )
        with record_function("box_head"):
            logits, codes = self._heads.box_predictor(self._heads.box_head(pooled))
        with record_function("boxes"):
            return pyramid, detect(self._heads, logits, codes, proposals, input_hws, min_scores)

    def flatten(self, boxes: Boxes, capacity: int) -> FlatBoxes:
        """The boxes of all images, concatenated, in `capacity` rows.

        Rows from `num` on are padding; boxes beyond `capacity` are left out.
        """
        num_images, per_image = boxes.scores.shape
        row = torch.arange(capacity, device=self.device)
        ends = boxes.num.cumsum(0)
        image_idx = torch.searchsorted(ends, row, right=True).clamp(max=num_images - 1)
        slot = (row - (ends - boxes.num)[image_idx]).clamp(max=per_image - 1)
        flat = image_idx * per_image + slot
        num = ends[-1:].clamp(max=capacity)
        return FlatBoxes(boxes.xyxy.flatten(0, 1)[flat], image_idx, boxes.outputs.flatten()[flat], num)

    def masks(self, pyramid: Pyramid, instances: FlatBoxes) -> Tensor:
        """(M, 28, 28) float32 mask probabilities of each instance for its own class."""
        heads = self._heads
        with record_function("mask_roi_align"):
            pooled = self._pool(heads.mask_roi_pool, pyramid, *instances[:2], instances.num)
        with record_function("mask_head"):
            predictor = heads.mask_predictor
            hidden = predictor.relu(predictor.conv5_mask(heads.mask_head(pooled)))
            # The last layer is a 1x1 convolution with one output per class. Only the output of the instance's own class
            # is computed, as a matrix product with that row of the weight.
            weight = self._mask_weight[instances.outputs].unsqueeze(1)
            rows = hidden.permute(0, 2, 3, 1).flatten(1, 2)
            logits = torch.bmm(weight, rows.transpose(1, 2)).float().view(-1, MASK_SIDE, MASK_SIDE)
            probabilities: Tensor = (logits + self._mask_bias[instances.outputs][:, None, None]).sigmoid()
            return probabilities

    def heatmaps(self, pyramid: Pyramid, instances: FlatBoxes) -> Tensor:
        """(M, K, 56, 56) float32 heatmaps (logits) of the K keypoints in each box."""
        heads = self._heads
        with record_function("keypoint_roi_align"):
            pooled = self._pool(heads.keypoint_roi_pool, pyramid, *instances[:2], instances.num)
        with record_function("keypoint_head"):
            logits: Tensor = heads.keypoint_predictor(heads.keypoint_head(pooled))
            return logits.float()

    def details(self, pyramid: Pyramid, boxes: Boxes, capacity: int) -> Tensor:
        """The details of the boxes of all images, in the rows of `flatten(boxes, capacity)`."""
        instances = self.flatten(boxes, capacity)
        return self.masks(pyramid, instances) if self._heads.has_mask() else self.heatmaps(pyramid, instances)

    def _pyramid(self, features: dict[str, Tensor], padded_hw: tuple[int, int]) -> Pyramid:
        """The levels that RoIs can be assigned to, each of half the scale of the level before it."""
        levels = [features[name] for name in self._heads.box_roi_pool.featmap_names if name in features]
        scales = infer_scales([(level.shape[2], level.shape[3]) for level in levels], padded_hw)
        # The number of levels that differ by a factor of two, for example 4 for scales of 1/4 to 1/32. Further levels
        # of equal scale, as in MobileNet v3, are left out.
        num = round(scales[0] / scales[-1]).bit_length()
        return Pyramid(levels[:num], list(scales[:num]))

    def _pool(
        self, pool: MultiScaleRoIAlign, pyramid: Pyramid, xyxy: Tensor, image_idx: Tensor, num_valid: Tensor
    ) -> Tensor:
        """RoIAlign: (N, C, side, side) in `dtype`, channels last."""
        side, _ = pool.output_size
        pooled: Tensor = roi_align(
            pyramid.levels, pyramid.scales, xyxy, image_idx, num_valid, side, pool.sampling_ratio
        )
        return pooled

    def _anchors_for(self, levels: list[Tensor], padded_hw: tuple[int, int]) -> list[Tensor]:
        """(A, 4) float32 anchors of each level for an input of shape padded_hw."""
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
