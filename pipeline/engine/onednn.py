"""Layers that call oneDNN's operators directly on the CPU, with prepacked weights and fused activations and additions.

The operators are those that torch's inductor emits for a frozen graph. They are private API, so only this file calls
them, and only after the kind of layer was compared with torch's own on this machine in this dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

# oneDNN's name of an activation, and its parameters.
Activation = tuple[str, list[float]]
NO_ACTIVATION: Activation = ("none", [])
RELU: Activation = ("relu", [])
ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: RELU,
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
}

# Maximum number of input shapes whose weight layouts a layer caches, which bounds memory for images of many sizes.
_MAX_SHAPES = 1024


class Layer(nn.Module, ABC):
    """A layer with a fused activation, for inference on the CPU in the dtype of its weight.

    The best layout of the weight depends on the input shape, so it is chosen at the first call with a shape. A layer
    has one or two layouts, each of which is stored once. The layout for another shape can be slow: a 1x1 convolution
    from 512 to 2048 channels took 79 ms instead of 10.
    """

    def __init__(self, plain: nn.Conv2d | nn.ConvTranspose2d | nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(plain.weight.detach(), requires_grad=False)
        self.bias = None if plain.bias is None else nn.Parameter(plain.bias.detach(), requires_grad=False)
        self.activation = NO_ACTIVATION
        self._weight_of_shape: dict[torch.Size, Tensor] = {}
        self._weight_of_layout: dict[bytes, Tensor] = {}

    @abstractmethod
    def _reorder(self, shape: torch.Size) -> Tensor:
        """The weight as an opaque tensor in the layout for an input of this shape."""

    def _weight_for(self, shape: torch.Size) -> Tensor:
        weight = self._weight_of_shape.get(shape)
        if weight is None:
            reordered = self._reorder(shape)
            layout = torch.ops.mkldnn._get_mkldnn_serialized_md(reordered).numpy().tobytes()
            weight = self._weight_of_layout.setdefault(layout, reordered)
            if len(self._weight_of_shape) == _MAX_SHAPES:
                self._weight_of_shape.clear()
            self._weight_of_shape[shape] = weight
        return weight


class Convolution(Layer):
    """`nn.Conv2d`, (B, C, H, W) -> (B, C', H', W'), channels last. A grouped convolution does not support an addend."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__(plain)
        self._geometry = (list(plain.padding), list(plain.stride), list(plain.dilation), plain.groups)
        self.groups = plain.groups

    def forward(self, maps: Tensor, addend: Tensor | None = None, *, overwrite: bool = False) -> Tensor:
        """activation(convolution(maps) + addend), rounded once.

        addend     shape and dtype of the output; channels last if overwrite is set
        overwrite  write the output to the memory of the addend
        Raises RuntimeError for an addend with an activation other than ReLU.
        """
        maps = maps.contiguous(memory_format=torch.channels_last)
        operators = torch.ops.mkldnn
        layer = (self._weight_for(maps.shape), self.bias, *self._geometry)
        name, parameters = self.activation
        after_sum = (None if name == "none" else name, parameters, "")
        output: Tensor
        if addend is None:
            output = operators._convolution_pointwise.default(maps, *layer, *self.activation, "")
        elif overwrite:
            output = operators._convolution_pointwise_.binary(addend, maps, *layer, "add", 1.0, *after_sum)
        else:
            addend = addend.contiguous(memory_format=torch.channels_last)
            output = operators._convolution_pointwise.binary(maps, addend, *layer, "add", 1.0, *after_sum)
        return output

    def _reorder(self, shape: torch.Size) -> Tensor:
        weight: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self._geometry, list(shape))
        return weight


class TransposedConvolution(Layer):
    """`nn.ConvTranspose2d`, (B, C, H, W) -> (B, C', H', W'), channels last.

    For kernel 2 and stride 2, a matrix product followed by a pixel shuffle took the same time, within 5 %.
    """

    def __init__(self, plain: nn.ConvTranspose2d) -> None:
        super().__init__(plain)
        padding, output_padding = list(plain.padding), list(plain.output_padding)
        self._geometry = (padding, output_padding, list(plain.stride), list(plain.dilation), plain.groups)

    def forward(self, maps: Tensor) -> Tensor:
        maps = maps.contiguous(memory_format=torch.channels_last)
        output: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise.default(
            maps, self._weight_for(maps.shape), self.bias, *self._geometry, *self.activation, ""
        )
        return output

    def _reorder(self, shape: torch.Size) -> Tensor:
        weight: Tensor = torch.ops.mkldnn._reorder_convolution_transpose_weight(
            self.weight, *self._geometry, list(shape)
        )
        return weight


class Linear(Layer):
    """`nn.Linear`, (..., K) -> (..., K')."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self.in_features, self.out_features = plain.in_features, plain.out_features

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = torch.ops.mkldnn._linear_pointwise.default(
            rows, self._weight_for(rows.shape), self.bias, *self.activation, ""
        )
        return output

    def _reorder(self, shape: torch.Size) -> Tensor:
        weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(self.weight, shape[:-1].numel())
        return weight


def as_layer(plain: nn.Module) -> Layer | None:
    """The layer as a oneDNN layer; None if there is no such layer, or none that works on this machine in its dtype."""
    make = _LAYERS.get(type(plain))
    if make is None or plain.weight.device.type != "cpu":
        return None
    if not isinstance(plain, nn.Linear) and (plain.padding_mode != "zeros" or isinstance(plain.padding, str)):
        return None
    return make(plain) if works(type(plain).__name__, plain.weight.dtype) else None


@cache
def works(kind: str, dtype: torch.dtype) -> bool:
    """Whether small layers of this torch class, alone and with every fused operation, match torch's results here."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            return all(_agrees(plain.to(dtype), maps.to(dtype)) for plain, maps in _samples(kind))
        except (AttributeError, RuntimeError):
            # The operator does not exist, or does not support this CPU or dtype.
            return False


def _samples(kind: str) -> list[tuple[nn.Module, Tensor]]:
    """Test layers, each with an input."""
    if kind == nn.Linear.__name__:
        return [(nn.Linear(24, 16), torch.randn(5, 24))]
    maps = torch.randn(2, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    if kind == nn.ConvTranspose2d.__name__:
        return [(nn.ConvTranspose2d(16, 16, 2, stride=2), maps)]
    return [(nn.Conv2d(16, 16, 3, padding=1, groups=groups), maps) for groups in (1, 16)]


def _agrees(plain: nn.Module, maps: Tensor) -> bool:
    packed = _LAYERS[type(plain)](plain)
    expected = plain(maps)
    pairs = [(expected, packed(maps))]
    for activation, packed.activation in ACTIVATIONS.items():
        pairs.append((activation()(expected), packed(maps)))
    if isinstance(packed, Convolution) and packed.groups == 1:
        packed.activation = RELU
        added = (expected + maps).relu()
        pairs.append((added, packed(maps, maps)))
        pairs.append((added, packed(maps, maps.clone(), overwrite=True)))
    # torch's own layers round the intermediate result and the final one, the fused layers only the final one.
    unit = 2 * torch.finfo(maps.dtype).eps
    return all(torch.allclose(actual, wanted, rtol=unit, atol=unit) for wanted, actual in pairs)


_LAYERS: dict[type[nn.Module], Callable[..., Layer]] = {
    nn.Conv2d: Convolution,
    nn.ConvTranspose2d: TransposedConvolution,
    nn.Linear: Linear,
}
