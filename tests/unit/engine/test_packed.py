"""Replacing layers for the CPU keeps the results, and layers without a faster equivalent are not replaced."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import Bottleneck
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from pipeline.engine import onednn
from pipeline.engine.architectures import build, fold_batch_norm
from pipeline.engine.device import choose_dtype
from pipeline.engine.onednn import Convolution, Layer, Linear, TransposedConvolution, as_layer
from pipeline.engine.packed import pack_for_cpu

CPU_DTYPE = choose_dtype("auto", torch.device("cpu"))[1]
DTYPES = list(dict.fromkeys([torch.float32, CPU_DTYPE]))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(11)


def maps(channels: int, *hw: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, channels, *hw).to(dtype).contiguous(memory_format=torch.channels_last)


def frozen(module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Put the module in the state that `pack_for_cpu` requires: folded norms, no gradients, channels last."""
    fold_batch_norm(module.eval())
    return module.requires_grad_(requires_grad=False).to(dtype=dtype, memory_format=torch.channels_last)


def packed(module: nn.Module) -> nn.Module:
    """Return a copy with replaced layers."""
    holder = nn.Sequential(copy.deepcopy(module))
    pack_for_cpu(holder)
    return holder


def roundings(dtype: torch.dtype, num: int) -> float:
    return num * torch.finfo(dtype).eps


def num_layers(module: nn.Module) -> int:
    return sum(isinstance(child, Layer) for child in module.modules())


# -- single layers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("plain", "kind"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), Convolution),
        (nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), Convolution),
        (nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=16), Convolution),
        (nn.Conv2d(16, 32, 1), Convolution),
        (nn.ConvTranspose2d(16, 24, 2, stride=2), TransposedConvolution),
    ],
    ids=["3x3", "stride 2 without bias", "depthwise, dilated", "1x1", "transposed"],
)
def test_a_layer_gives_torchs_result(plain: nn.Module, kind: type[Layer], dtype: torch.dtype) -> None:
    frozen(plain, dtype)
    layer = as_layer(plain)
    assert type(layer) is kind
    for hw in ((9, 7), (12, 20), (9, 7)):
        picture = maps(16, *hw, dtype=dtype)
        expected, found = plain(picture), layer(picture)
        # sums of 144 products in a different order
        torch.testing.assert_close(found, expected, rtol=roundings(dtype, 2), atol=roundings(dtype, 2))
        assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_linear_layer_gives_torchs_result_for_any_number_of_rows(dtype: torch.dtype) -> None:
    plain = frozen(nn.Linear(40, 24), dtype)
    layer = as_layer(plain)
    assert type(layer) is Linear
    for shape in ((1, 40), (33, 40), (2, 5, 40)):
        rows = torch.randn(shape).to(dtype)
        torch.testing.assert_close(layer(rows), plain(rows), rtol=roundings(dtype, 2), atol=roundings(dtype, 2))


def test_a_map_may_be_contiguous_nchw() -> None:
    plain = frozen(nn.Conv2d(16, 32, 3, padding=1))
    picture = torch.randn(2, 16, 9, 7)
    torch.testing.assert_close(as_layer(plain)(picture), plain(picture))


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_addend_is_added_before_the_activation(overwrite: bool) -> None:
    plain = frozen(nn.Conv2d(16, 32, 1))
    layer = as_layer(plain)
    layer.activation = onednn.RELU
    picture, addend = maps(16, 9, 7), maps(32, 9, 7)
    expected = (plain(picture) + addend).relu()
    before = addend.clone()
    found = layer(picture, addend, overwrite=overwrite)
    torch.testing.assert_close(found, expected)
    assert (found.data_ptr() == addend.data_ptr()) == overwrite
    if not overwrite:
        assert torch.equal(addend, before)


def test_the_cache_of_layouts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_MAX_SHAPES", 3)
    plain = frozen(nn.Conv2d(16, 32, 3, padding=1))
    layer = as_layer(plain)
    for side in range(4, 12):
        picture = maps(16, side, side)
        torch.testing.assert_close(layer(picture), plain(picture))
        assert len(layer._weight_of_shape) <= 3


@pytest.mark.parametrize(
    "plain",
    [nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4)],
    ids=["padding by name", "reflected padding", "another layer"],
)
def test_unsupported_layers_are_not_replaced(plain: nn.Module) -> None:
    assert as_layer(plain) is None


# -- the check of each layer on this machine


@pytest.fixture
def fresh_check() -> None:
    onednn.works.cache_clear()
    yield
    onednn.works.cache_clear()


@pytest.mark.usefixtures("fresh_check")
def test_layers_with_wrong_results_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Convolution.forward

    def wrong(self: Convolution, *arguments: Tensor, **options: bool) -> Tensor:
        return right(self, *arguments, **options) * 1.01

    monkeypatch.setattr(Convolution, "forward", wrong)
    network = frozen(nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 25, 8)))
    picture = maps(16, 7, 7)
    found = packed(network)
    assert num_layers(found) == 1  # the linear layer
    torch.testing.assert_close(found(picture), network(picture))


@pytest.mark.usefixtures("fresh_check")
def test_missing_operators_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_convolution_weight'")

    monkeypatch.setattr(Convolution, "_reorder", lacking)
    assert as_layer(nn.Conv2d(16, 16, 3)) is None


@pytest.mark.usefixtures("fresh_check")
def test_the_check_does_not_change_the_random_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert onednn.works("Conv2d", torch.float32) in (True, False)
    assert torch.equal(torch.rand(3), expected)


# -- blocks


def bottleneck(*, downsampled: bool) -> Bottleneck:
    downsample = nn.Sequential(nn.Conv2d(32, 64, 1, bias=False), nn.BatchNorm2d(64)) if downsampled else None
    block = Bottleneck(32 if downsampled else 64, 16, downsample=downsample)
    for norm in (module for module in block.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return block


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("downsampled", [False, True])
def test_a_residual_block_gives_torchs_result(downsampled: bool, dtype: torch.dtype) -> None:
    plain = frozen(bottleneck(downsampled=downsampled), dtype)
    picture = maps(32 if downsampled else 64, 10, 8, dtype=dtype)
    before = picture.clone()
    found = packed(plain)
    torch.testing.assert_close(found(picture), plain(picture), rtol=roundings(dtype, 8), atol=roundings(dtype, 8))
    assert torch.equal(picture, before)  # the input is not overwritten
    assert num_layers(found) == 3 + downsampled


def test_a_block_overwrites_an_input_that_only_it_references() -> None:
    plain = frozen(nn.Sequential(nn.Conv2d(8, 64, 1), nn.ReLU(), bottleneck(downsampled=False)))
    found = packed(plain)
    assert found[0][2].owns_input
    picture = maps(8, 10, 8)
    torch.testing.assert_close(found(picture), plain(picture))


def test_a_block_does_not_overwrite_a_returned_output() -> None:
    body = nn.Sequential(
        OrderedDict(first=nn.Conv2d(8, 64, 1), second=bottleneck(downsampled=False), third=nn.Conv2d(64, 8, 1))
    )
    plain = IntermediateLayerGetter(frozen(body), {"first": "a", "second": "b", "third": "c"})
    found = packed(plain)
    picture = maps(8, 10, 8)
    expected, outputs = plain(picture), found(picture)
    assert list(outputs) == ["a", "b", "c"]
    for name, output in outputs.items():
        torch.testing.assert_close(output, expected[name])


def test_an_activation_is_not_fused_into_an_output_that_is_returned() -> None:
    body = nn.Sequential(OrderedDict(first=nn.Conv2d(8, 16, 1), relu=nn.ReLU(), last=nn.Conv2d(16, 8, 1)))
    plain = IntermediateLayerGetter(frozen(body), {"first": "a", "last": "b"})
    outputs = packed(plain)(maps(8, 10, 8))
    assert float(outputs["a"].min()) < 0


def test_a_feature_pyramid_gives_torchs_result() -> None:
    plain = frozen(FeaturePyramidNetwork([8, 16, 24], 32, LastLevelMaxPool()))
    features = OrderedDict((name, maps(channels, side, side)) for name, channels, side in PYRAMID)
    before = {name: level.clone() for name, level in features.items()}
    found, expected = packed(plain)(features), plain(features)
    assert list(found) == list(expected)
    for name, level in expected.items():
        torch.testing.assert_close(found[name], level)
    assert all(torch.equal(level, before[name]) for name, level in features.items())


PYRAMID = [("0", 8, 16), ("1", 16, 8), ("2", 24, 4)]


def test_the_rpn_head_uses_one_convolution() -> None:
    plain = frozen(RPNHead(16, 3))
    nn.init.normal_(plain.bbox_pred.bias)
    levels = [maps(16, 12, 10), maps(16, 6, 5)]
    found, expected = packed(plain), plain(levels)
    for outputs, wanted in zip(found(levels), expected, strict=True):
        for output, of_level in zip(outputs, wanted, strict=True):
            torch.testing.assert_close(output, of_level)
    assert num_layers(found) == 2


# -- a whole network


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_street_network_gives_torchs_result(dtype: torch.dtype) -> None:
    """Backbone and heads; the input of the box head is channels last, as RoIAlign returns it."""
    plain = frozen(build("street", 7), dtype)
    found = copy.deepcopy(plain)
    pack_for_cpu(found)
    left = [name for name, module in found.named_modules() if type(module) in (nn.Conv2d, nn.Linear, nn.ReLU6)]
    assert left == []
    picture, pooled = maps(3, 64, 96, dtype=dtype), maps(128, 7, 7, dtype=dtype)
    pairs = list(zip(found.backbone(picture).values(), plain.backbone(picture).values(), strict=True))
    pairs.append((found.roi_heads.box_head(pooled), plain.roi_heads.box_head(pooled)))
    # float32: the box head sums 6,272 products in another order; bfloat16: ten additions are rounded once, not twice
    bound = roundings(dtype, 16 if dtype == torch.float32 else 2)
    for output, expected in pairs:
        error = float((output - expected).abs().max() / expected.abs().max())
        assert error <= bound
