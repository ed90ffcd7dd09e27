"""Replacement of a network's modules by faster equivalents for the CPU: oneDNN layers with fused operations.

torch's own modules reorder the weight of a convolution at every call, and run activations and residual additions as
separate passes over memory.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.mobilenetv2 import InvertedResidual as InvertedResidualV2
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork

from pipeline.engine.onednn import ACTIVATIONS, NO_ACTIVATION, RELU, Convolution, Layer, Linear, as_layer


def pack_for_cpu(module: nn.Module) -> None:
    """Replace the submodules of `module`, in place, by equivalents that run faster on this CPU.

    Call it after `fold_batch_norm`, with the module on the CPU, in its dtype, channels last. Afterwards the module is
    for inference only and cannot be moved or converted. Input and output shapes stay torchvision's; feature maps are
    channels last. A layer that this torch or CPU cannot run in the faster form is not replaced.

    - Convolutions, transposed convolutions and linear layers store their weight in oneDNN's layout.
    - ReLU, ReLU6 and Hardswish that directly follow a layer in a container are fused into the layer.
    - The additions of ResNet's and MobileNet's residuals and of the feature pyramid are fused into the convolution.
    - The two 1x1 convolutions of `RPNHead` become one, which reads the map once.
    - `TwoMLPHead` of `RoIHeads` reads channels-last maps without a copy: the columns of its first weight are permuted.

    The results are bit-identical except for additions and Hardswish, which are rounded once instead of twice, and
    `TwoMLPHead`, which sums in another order.
    """
    _pack_children(module)


class _Bottleneck(nn.Module):
    """ResNet's bottleneck block with a fused residual addition."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = block.conv1, block.conv2, block.conv3
        self.conv1.activation = self.conv2.activation = self.conv3.activation = RELU
        self.downsample = block.downsample or nn.Identity()
        self.owns_input = False
        self._owns_identity = _allocates_output(self.downsample)

    def forward(self, maps: Tensor) -> Tensor:
        identity = self.downsample(maps)
        overwrite = self.owns_input or self._owns_identity
        output: Tensor = self.conv3(self.conv2(self.conv1(maps)), identity, overwrite=overwrite)
        return output


class _InvertedResidual(nn.Module):
    """MobileNet's block with a residual: a chain of layers whose last convolution adds the input."""

    def __init__(self, steps: list[nn.Module]) -> None:
        super().__init__()
        self.before = nn.Sequential(*steps[:-1])
        self.last = steps[-1]
        self.owns_input = False

    def forward(self, maps: Tensor) -> Tensor:
        output: Tensor = self.last(self.before(maps), maps, overwrite=self.owns_input)
        return output


class _Pyramid(nn.Module):
    """`FeaturePyramidNetwork` whose lateral convolutions add to the upsampled coarser level in place."""

    def __init__(self, pyramid: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(_steps(block)[0] for block in pyramid.inner_blocks)
        self.layer_blocks = pyramid.layer_blocks
        self.extra_blocks = pyramid.extra_blocks

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        names, maps = list(features), list(features.values())
        top = self.inner_blocks[-1](maps[-1])
        levels = [self.layer_blocks[-1](top)]
        for index in reversed(range(len(maps) - 1)):
            enlarged = functional.interpolate(top, size=maps[index].shape[-2:], mode="nearest")
            top = self.inner_blocks[index](maps[index], enlarged, overwrite=True)
            levels.insert(0, self.layer_blocks[index](top))
        if self.extra_blocks is not None:
            levels, names = self.extra_blocks(levels, maps, names)
        return OrderedDict(zip(names, levels, strict=True))


class _RPNHead(nn.Module):
    """`RPNHead` with one convolution for objectness and deltas: 3.7 instead of 7.3 ms for a ResNet's first level."""

    def __init__(self, head: RPNHead) -> None:
        super().__init__()
        self.conv = head.conv
        layers = (head.cls_logits, head.bbox_pred)
        self._channels = [len(layer.weight) for layer in layers]
        joined = nn.Conv2d(layers[0].weight.shape[1], sum(self._channels), 1, device="meta")
        joined.weight, joined.bias = (
            nn.Parameter(torch.cat(parameters), requires_grad=False)
            for parameters in ([layer.weight for layer in layers], [layer.bias for layer in layers])
        )
        self.both = Convolution(joined)

    def forward(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        outputs = [self.both(self.conv(level)).split(self._channels, dim=1) for level in levels]
        return [objectness for objectness, _ in outputs], [deltas for _, deltas in outputs]


class _TwoMLPHead(nn.Module):
    """`TwoMLPHead` that reads the cells of a map in channels-last order."""

    def __init__(self, head: TwoMLPHead, pooled_hw: tuple[int, int]) -> None:
        super().__init__()
        self.fc6, self.fc7 = head.fc6, head.fc7
        self.fc6.activation = self.fc7.activation = RELU
        by_cell = self.fc6.weight.unflatten(1, (-1, pooled_hw[0] * pooled_hw[1])).transpose(1, 2)
        self.fc6.weight = nn.Parameter(by_cell.flatten(1), requires_grad=False)

    def forward(self, maps: Tensor) -> Tensor:
        output: Tensor = self.fc7(self.fc6(maps.permute(0, 2, 3, 1).flatten(1)))
        return output


def _pack_children(module: nn.Module) -> None:
    for name, child in module._modules.items():
        if child is not None:
            setattr(module, name, _packed(child))
    if _is_chain(module) or isinstance(module, IntermediateLayerGetter):
        _fuse_activations(module)
        _allow_overwriting(module)
    if isinstance(module, RoIHeads) and isinstance(module.box_head, TwoMLPHead):
        head = module.box_head
        if isinstance(head.fc6, Linear) and isinstance(head.fc7, Linear):
            module.box_head = _TwoMLPHead(head, module.box_roi_pool.output_size)


def _packed(module: nn.Module) -> nn.Module:
    """The faster equivalent of a module, or the module itself with its submodules replaced."""
    layer = as_layer(module)
    if layer is not None:
        return layer
    _pack_children(module)
    if isinstance(module, Bottleneck) and _is_plain_bottleneck(module):
        return _Bottleneck(module)
    if isinstance(module, InvertedResidualV2 | InvertedResidualV3):
        steps = _steps(module.conv if isinstance(module, InvertedResidualV2) else module.block)
        if not module.use_res_connect:
            return nn.Sequential(*steps)
        return _InvertedResidual(steps) if len(steps) > 1 and _can_add(steps[-1]) else module
    if isinstance(module, FeaturePyramidNetwork):
        chains = [_steps(block) for block in module.inner_blocks]
        return _Pyramid(module) if all(len(chain) == 1 and _can_add(chain[0]) for chain in chains) else module
    if isinstance(module, RPNHead):
        return _RPNHead(module) if isinstance(module.cls_logits, Convolution) else module
    return module


def _is_plain_bottleneck(block: Bottleneck) -> bool:
    """Whether the block has no batch norms left and its convolutions are replaced."""
    return (
        all(isinstance(norm, nn.Identity) for norm in (block.bn1, block.bn2, block.bn3))
        and all(isinstance(convolution, Convolution) for convolution in (block.conv1, block.conv2))
        and _can_add(block.conv3)
        and type(block.relu) is nn.ReLU
    )


def _can_add(module: nn.Module) -> bool:
    return isinstance(module, Convolution) and module.groups == 1 and module.activation == NO_ACTIVATION


def _is_chain(module: nn.Module) -> bool:
    """Whether the module only runs its children in order."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _steps(module: nn.Module) -> list[nn.Module]:
    """The layers that a chain, including nested chains, runs one after the other."""
    if isinstance(module, nn.Identity):
        return []
    if not _is_chain(module):
        return [module]
    return [step for child in module._modules.values() if child is not None for step in _steps(child)]


def _fuse_activations(container: nn.Sequential | IntermediateLayerGetter) -> None:
    """Fuse each activation into the layer before it, unless the container also returns that layer's output."""
    returned = getattr(container, "return_layers", {})
    before: nn.Module | None = None
    for name, child in container._modules.items():
        activation = ACTIVATIONS.get(type(child))
        if activation is not None and isinstance(before, Layer) and before.activation == NO_ACTIVATION:
            before.activation = activation
            setattr(container, name, nn.Identity())
            before = None
        elif not isinstance(child, nn.Identity):
            before = child
        if name in returned:
            before = None


def _allow_overwriting(container: nn.Sequential | IntermediateLayerGetter) -> None:
    """Let a residual block overwrite its input if nothing else references it: the output of the layer before it."""
    returned = getattr(container, "return_layers", {})
    is_free = False
    for name, child in container._modules.items():
        if isinstance(child, _Bottleneck | _InvertedResidual):
            child.owns_input = is_free
        if not isinstance(child, nn.Identity):
            is_free = _allocates_output(child)
        is_free = is_free and name not in returned


def _allocates_output(module: nn.Module) -> bool:
    """Whether the module's output is memory that only the caller references."""
    steps = _steps(module)
    return bool(steps) and isinstance(steps[-1], Layer | _Bottleneck | _InvertedResidual)
