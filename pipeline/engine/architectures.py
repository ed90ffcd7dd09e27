"""The table of architectures, and the protocol that their networks implement."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor, nn
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
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class Network(Protocol):
    """What the engine, the training and the benchmarks use of a network.

    torchvision's FasterRCNN and its subclasses MaskRCNN and KeypointRCNN implement it. A network of another family must
    be a torch module with these parts. The names of its parameters are the names in the weights file.
    """

    backbone: Any
    """(B, 3, H, W) normalised images -> dict of (B, C, H, W) pyramid levels, finest first. `backbone.body` is the part
    that training can freeze, `backbone.out_channels` is C"""
    rpn: RegionProposalNetwork
    """`head`, `anchor_generator`, `box_coder`, thresholds and counts are used; boxes.py selects the proposals"""
    roi_heads: RoIHeads
    """box branch, and the mask or keypoint branch if `has_mask()` or `has_keypoint()`; boxes.py selects the
    detections"""
    transform: GeneralizedRCNNTransform
    """torchvision's preprocessing; only the comparisons with torchvision use it"""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def modules(self) -> Iterator[nn.Module]: ...
    def get_submodule(self, target: str) -> Any: ...
    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def to(self, *args: Any, **kwargs: Any) -> Any: ...
    def eval(self) -> Any: ...
    def requires_grad_(self, requires_grad: bool = ...) -> Any: ...


def build(architecture: str, num_outputs: int) -> Network:
    """Create the network of an architecture, in evaluation mode, with random weights.

    num_outputs is the number of outputs of the class head, including the background. Raises KeyError for a name that is
    not in `ARCHITECTURES`.
    """
    network = ARCHITECTURES[architecture](num_outputs)
    network.eval()
    network.requires_grad_(requires_grad=False)
    return network


def fold_batch_norm(module: Network | nn.Module) -> None:
    """Fold every batch norm into the convolution that is registered directly before it, in place.

    This is correct only if the children of each module are registered in the order in which they run, as in every
    architecture of the table; tests/integration/engine/test_architectures.py compares the outputs before and after.
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
    """MobileNetV2 with a feature pyramid of 128 channels at strides 4 to 64 and small heads: 6.7 million parameters."""
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


def _with_epsilon_0(constructor: Callable[..., FasterRCNN]) -> Callable[[int], FasterRCNN]:
    """For published weights that were trained while torchvision's frozen batch norm ignored its epsilon: torchvision
    sets the epsilon to 0 for them, and so does this.
    """

    def builder(num_outputs: int) -> FasterRCNN:
        network = _from_torchvision(constructor)(num_outputs)
        for module in list(network.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):  # does not accept an epsilon of 0
                    setattr(module, name, FrozenBatchNorm2d(child.num_features, eps=0.0))
        return network

    return builder


def _from_torchvision(constructor: Callable[..., FasterRCNN]) -> Callable[[int], FasterRCNN]:
    return lambda num_outputs: constructor(weights=None, weights_backbone=None, num_classes=num_outputs)


ARCHITECTURES: dict[str, Callable[[int], Network]] = {
    "street": _street,
    "maskrcnn_resnet50_fpn": _with_epsilon_0(maskrcnn_resnet50_fpn),
    "maskrcnn_resnet50_fpn_v2": _from_torchvision(maskrcnn_resnet50_fpn_v2),
    "keypointrcnn_resnet50_fpn": _with_epsilon_0(keypointrcnn_resnet50_fpn),
    "fasterrcnn_resnet50_fpn": _with_epsilon_0(fasterrcnn_resnet50_fpn),
    "fasterrcnn_resnet50_fpn_v2": _from_torchvision(fasterrcnn_resnet50_fpn_v2),
    "fasterrcnn_mobilenet_v3_large_320_fpn": _from_torchvision(fasterrcnn_mobilenet_v3_large_320_fpn),
}
"""name -> function that takes the number of outputs of the class head and returns the network"""
