"""Roofline: a lower bound of the time of a network on a device, from the operations and bytes of its layers.

Convolutions, transposed convolutions and linear layers count. A multiplication and an addition are two operations; a
layer reads its input and its weights once and writes its output once, with 2 bytes per number. Fused operations and
everything between the layers (RoIAlign, NMS, sorting) count as free. The time of a layer is the maximum of the times
for its operations and for its bytes.

At 768x1344, the input size for 1080p, that is 522 GFLOP an image with 100 detections for
`maskrcnn_resnet50_fpn` and 853 for `maskrcnn_resnet50_fpn_v2`; at 800x1344 it is 538 and 873.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.engine.architectures import build
from pipeline.models.registry import ModelSpec

BYTES_PER_NUMBER = 2
"""bytes of a bf16 number"""


class Layer(NamedTuple):
    """Operations and bytes of one call of a layer for one image."""

    stage: str
    """name of the stage in torch's profiler"""
    flops: int
    activation_bytes: int
    """bytes of input and output"""
    weight_bytes: int
    """independent of the number of images"""


class Peaks(NamedTuple):
    """Peak rates of a device."""

    flops_per_s: float
    bytes_per_s: float


def layers(
    spec: ModelSpec, padded_hw: tuple[int, int], num_detections: int, *, own_class_only: bool = False
) -> list[Layer]:
    """The layers for one image of an input size, in the order in which they run.

    own_class_only   the last layer of the mask head computes one channel instead of one for each class
    """
    with torch.device("meta"):
        network = build(spec.architecture, len(spec.head_class_ids) + 1)
        picture = torch.empty(1, 3, *padded_hw)
    found: list[Layer] = []
    stage = ""

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        (numbers_in, numbers_out), weight = (inputs[0].numel(), output.numel()), module.weight
        if own_class_only and module is network.roi_heads.mask_predictor.mask_fcn_logits:
            weight, numbers_out = weight[:1], numbers_out // len(weight)
        # operations for each number that a layer writes, or that a transposed convolution reads
        per_number = weight[0].numel()
        flops = 2 * per_number * (numbers_in if isinstance(module, nn.ConvTranspose2d) else numbers_out)
        activations = BYTES_PER_NUMBER * (numbers_in + numbers_out)
        found.append(Layer(stage, flops, activations, BYTES_PER_NUMBER * weight.numel()))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_hook(count)
    heads, num_channels = network.roi_heads, network.backbone.out_channels
    stage = "trunk"
    network.rpn.head(list(network.backbone(picture).values()))
    stage = "box_head"
    pooled_hw = heads.box_roi_pool.output_size
    pooled = torch.empty(network.rpn.post_nms_top_n(), num_channels, *pooled_hw, device="meta")
    heads.box_predictor(heads.box_head(pooled))
    stage = "mask_head"
    pooled = torch.empty(num_detections, num_channels, *heads.mask_roi_pool.output_size, device="meta")
    heads.mask_predictor(heads.mask_head(pooled))
    return found


def least_s(counted: Sequence[Layer], num_images: int, peaks: Peaks) -> float:
    """Lower bound of the time of a batch, in seconds."""
    return sum(
        max(
            num_images * layer.flops / peaks.flops_per_s,
            (num_images * layer.activation_bytes + layer.weight_bytes) / peaks.bytes_per_s,
        )
        for layer in counted
    )
