"""The networks by the architecture key of a `ModelSpec`, in torchvision's names, without their weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import mobilenet_v2
from torchvision.models.detection import (
    FasterRCNN,
    MaskRCNN,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    keypointrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


def build(architecture: str, num_outputs: int) -> FasterRCNN:
    """The network in evaluation mode with random weights; num_outputs counts the background too. Raises KeyError.

    torchvision derives MaskRCNN and KeypointRCNN from FasterRCNN: which of the three it is follows from `spec.output`.
    """
    network = _BUILDERS[architecture](num_outputs)
    network.eval()
    network.requires_grad_(requires_grad=False)
    return network


def fold_batch_norm(module: nn.Module) -> None:
    """Merges every batch norm that directly follows a convolution, in the order of registration, into it, in place.

    That order is the order of execution in every network here; tests/unit/engine/test_architectures.py compares the
    outputs.
    """
    before: tuple[str, nn.Module] | None = None
    for name, child in list(module.named_children()):
        if (
            before is not None
            and isinstance(before[1], nn.Conv2d)
            and isinstance(child, nn.BatchNorm2d | FrozenBatchNorm2d)
        ):
            setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
            setattr(module, name, nn.Identity())
        else:
            fold_batch_norm(child)
        before = (name, child)


def _street(num_outputs: int) -> MaskRCNN:
    """MobileNetV2 with a feature pyramid of 128 channels at strides 4 to 64, and light heads: 6.7 million weights."""
    body = mobilenet_v2(norm_layer=FrozenBatchNorm2d).features[:18]
    channels = 128
    backbone = BackboneWithFPN(
        body, {"3": "0", "6": "1", "13": "2", "17": "3"}, [24, 32, 96, 320], channels, extra_blocks=LastLevelMaxPool()
    )
    levels = ["0", "1", "2", "3"]
    return MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0, 3.0),) * 5),
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=300,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
        box_head=TwoMLPHead(channels * 7 * 7, 512),
        box_predictor=FastRCNNPredictor(512, num_outputs),
        mask_roi_pool=MultiScaleRoIAlign(levels, 14, 2),
        mask_head=MaskRCNNHeads(channels, (channels,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(channels, channels, num_outputs),
    )


def _without_epsilon(constructor: Callable[..., FasterRCNN]) -> Callable[[int], FasterRCNN]:
    """For weights trained when torchvision's frozen batch norm ignored its epsilon: it is 0, as torchvision sets it."""

    def builder(num_outputs: int) -> FasterRCNN:
        network = _as_it_is(constructor)(num_outputs)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):  # which takes no epsilon of 0
                    setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=0.0))
        return network

    return builder


def _as_it_is(constructor: Callable[..., FasterRCNN]) -> Callable[[int], FasterRCNN]:
    return lambda num_outputs: constructor(weights=None, weights_backbone=None, num_classes=num_outputs)


_BUILDERS: dict[str, Callable[[int], FasterRCNN]] = {
    "street": _street,
    "maskrcnn_resnet50_fpn": _without_epsilon(maskrcnn_resnet50_fpn),
    "maskrcnn_resnet50_fpn_v2": _as_it_is(maskrcnn_resnet50_fpn_v2),
    "keypointrcnn_resnet50_fpn": _without_epsilon(keypointrcnn_resnet50_fpn),
    "fasterrcnn_resnet50_fpn": _without_epsilon(fasterrcnn_resnet50_fpn),
    "fasterrcnn_resnet50_fpn_v2": _as_it_is(fasterrcnn_resnet50_fpn_v2),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _as_it_is(fasterrcnn_mobilenet_v3_large_320_fpn),
}
