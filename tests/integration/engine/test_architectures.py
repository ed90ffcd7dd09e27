"""The networks equal torchvision's for its published weights, and folding batch norms does not change the outputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.ops import FrozenBatchNorm2d

from pipeline.engine.architectures import build, fold_batch_norm
from pipeline.models.registry import MODELS

Model = tuple[str, FasterRCNN, list[torch.Tensor]]
"""name of the model, network, outputs of the network"""


def with_random_norms(network: FasterRCNN) -> FasterRCNN:
    """Set small variances, so that an epsilon of 1e-5 matters, and weights that compensate for them."""
    torch.manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.uniform_(0.05, 0.15)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.005, 0.015)
    return network


def outputs(network: FasterRCNN) -> list[torch.Tensor]:
    """Return the outputs of every stage with convolutions, for a random picture and random RoI features."""
    torch.manual_seed(6)
    picture = torch.randn(1, 3, 64, 96)
    channels = network.backbone.out_channels
    heads = network.roi_heads
    levels = [*network.backbone(picture).values()]
    logits, deltas = network.rpn.head(levels)
    found = [*levels, *logits, *deltas, *heads.box_predictor(heads.box_head(torch.randn(2, channels, 7, 7)))]
    regions = torch.randn(2, channels, 14, 14)
    if heads.has_mask():
        found.append(heads.mask_predictor(heads.mask_head(regions)))
    if heads.has_keypoint():
        found.append(heads.keypoint_predictor(heads.keypoint_head(regions)))
    return found


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Model:
    """A network with random norms. Tests must not change it."""
    name = request.param
    network = with_random_norms(build(MODELS[name].architecture, len(MODELS[name].head_class_ids) + 1))
    with torch.inference_mode():
        return name, network, outputs(network)


def test_the_kind_of_network_follows_from_the_output_of_the_model(model: Model) -> None:
    name, network, _ = model
    assert type(network) is {"boxes": FasterRCNN, "masks": MaskRCNN, "keypoints": KeypointRCNN}[MODELS[name].output]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_give_the_same_outputs_in_torchvisions_network(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision loads our weights in place of its published ones, so that it creates the same kind of norm layers."""
    name, ours, found_outputs = model
    if MODELS[name].weights_url is None:
        pytest.skip("torchvision has no such model")
    state = ours.state_dict()
    weights = get_model_weights(name).COCO_V1
    asked_for = []

    def instead_of_the_download(url: str, *_: Any, **__: Any) -> dict[str, torch.Tensor]:
        asked_for.append(url)
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", instead_of_the_download)
    theirs = get_model(name, weights=weights).eval()
    assert asked_for == [MODELS[name].weights_url]
    with torch.inference_mode():
        for found, expected in zip(found_outputs, outputs(theirs), strict=True):
            # the frozen batch norm rounds in another order, over about 50 layers
            assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    counters = {key for key in state if key.endswith("num_batches_tracked")}
    assert theirs.state_dict().keys() | counters == state.keys()
    # a file may have no counters, because frozen batch norms have none
    ours.load_state_dict(theirs.state_dict())


def test_folding_batch_norms_changes_no_output(model: Model) -> None:
    _, network, before = model
    folded = copy.deepcopy(network)
    with torch.inference_mode():
        fold_batch_norm(folded)
        after = outputs(folded)
    assert not [module for module in folded.modules() if hasattr(module, "running_mean")]
    for expected, found in zip(before, after, strict=True):
        # float32 sums in another order, over about 50 layers
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
