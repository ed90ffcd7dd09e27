"""torchvision's forward pass, which the benchmarks time beside the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from benchmarks.masks import encoded
from pipeline.contract.arrays import Detections
from pipeline.models.registry import ModelSpec


class _Unresized(GeneralizedRCNNTransform):
    """torchvision's transform without the resize, for pictures of the network's input size."""

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        return image, target


def without_resize(network: MaskRCNN, spec: ModelSpec) -> MaskRCNN:
    """The network with a transform that normalises as in the spec and pads, but does not resize."""
    network.transform = _Unresized(spec.min_size, spec.max_size, spec.mean, spec.std).eval()
    return network


@torch.inference_mode()
def forward(
    network: MaskRCNN, pictures: Sequence[Tensor], source_hw: tuple[int, int], *, paste: bool = True
) -> list[dict[str, Tensor]]:
    """torchvision's detections on (3, H, W) float32 RGB pictures, with boxes and pasted masks in pixels of the source.

    These are the steps of torchvision's `GeneralizedRCNN.forward`, with the size of the source instead of the input in
    the last step. Without `paste`, the last step is left out: boxes in input pixels and 28x28 masks.
    """
    images, _ = network.transform(list(pictures))
    features = network.backbone(images.tensors)
    proposals, _ = network.rpn(images, features)
    found, _ = network.roi_heads(features, proposals, images.image_sizes)
    if paste:
        found = network.transform.postprocess(found, images.image_sizes, [source_hw] * len(pictures))
    results: list[dict[str, Tensor]] = found
    return results


def to_rle(found: Sequence[dict[str, Tensor]]) -> list[list[bytes]]:
    """pycocotools' RLE strings of the pasted masks of each picture."""
    return [encoded(of_picture["masks"].cpu()) for of_picture in found]


def detections(
    found: Sequence[dict[str, Tensor]], rles: Sequence[list[bytes]], spec: ModelSpec, source_hw: tuple[int, int]
) -> list[Detections]:
    """Convert torchvision's output to `Detections`."""
    class_id_of_output = np.array([0, *spec.head_class_ids], np.int32)
    return [
        Detections(
            boxes_xyxy=of_picture["boxes"].cpu().numpy(),
            scores=of_picture["scores"].cpu().numpy(),
            class_ids=class_id_of_output[of_picture["labels"].cpu().numpy()],
            mask_bits=None,
            rle_counts=counts,
            width=source_hw[1],
            height=source_hw[0],
        )
        for of_picture, counts in zip(found, rles, strict=True)
    ]
