"""The captured part of a CUDA graph must not synchronise with the host: the network runs on fake CUDA tensors.

Fake tensors have a shape, a dtype and a device but no values, so an operation whose shape or control flow depends on
values (`item`, `nonzero`, a bool index) raises. Copies between devices are detected by their operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.engine.architectures import build, fold_batch_norm
from pipeline.engine.staged_network import StagedNetwork

CUDA = torch.device("cuda", 0)


class OnCudaOnly(TorchDispatchMode):
    """Raises if an operator reads a tensor that is not on CUDA."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            # a Python number in a binary operation is a 0-d tensor here, and is passed to the kernel by value
            if isinstance(leaf, Tensor) and leaf.device.type != "cuda" and leaf.dim() > 0:
                raise AssertionError(f"{func} on {leaf.device}")
        return result


@pytest.fixture
def fake() -> FakeTensorMode:
    return FakeTensorMode(allow_non_fake_inputs=True)


def network_of(architecture: str, num_outputs: int, fake: FakeTensorMode) -> StagedNetwork:
    """Return the network on the fake device."""
    network = build(architecture, num_outputs)
    fold_batch_norm(network)
    with fake:
        for module in network.modules():
            for name, weight in module.named_parameters(recurse=False):
                fresh = torch.empty(weight.shape, dtype=torch.bfloat16, device=CUDA)
                setattr(module, name, nn.Parameter(fresh, requires_grad=False))
        network.to = lambda **_: network  # it is on the device already
        return StagedNetwork(network, CUDA, torch.bfloat16)


@torch.no_grad()
def run(network: StagedNetwork, batch: int, capacity: int) -> Tensor | None:
    pictures = torch.empty(batch, 3, 128, 192, dtype=torch.bfloat16, device=CUDA)
    pictures = pictures.contiguous(memory_format=torch.channels_last)
    input_hws = torch.empty(batch, 2, device=CUDA)
    min_scores = torch.empty(batch, network.num_outputs, device=CUDA)
    pyramid, boxes = network.boxes(pictures, input_hws, min_scores)
    assert boxes.xyxy.shape == (batch, network.max_detections, 4)
    return network.details(pyramid, boxes, capacity) if network.detail_shape else None


@pytest.mark.parametrize(
    ("architecture", "num_outputs", "details"),
    [
        ("street", 7, (40, 28, 28)),
        ("maskrcnn_resnet50_fpn_v2", 91, (40, 28, 28)),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 91, None),
        ("keypointrcnn_resnet50_fpn", 2, (40, 17, 56, 56)),
    ],
)
def test_the_forward_pass_never_synchronises(
    architecture: str, num_outputs: int, details: tuple[int, ...] | None, fake: FakeTensorMode
) -> None:
    network = network_of(architecture, num_outputs, fake)
    with fake:
        run(network, batch=3, capacity=40)  # anchors are computed once per shape, before the capture
        with OnCudaOnly():
            found = run(network, batch=3, capacity=40)
    assert (found is None and details is None) or (found is not None and tuple(found.shape) == details)


def reads_a_value(scores: Tensor) -> Any:
    return scores.sum().item()


def selects(scores: Tensor) -> Any:
    return scores[scores > 0.5]


def copies_from_the_host(scores: Tensor) -> Any:
    return scores * torch.tensor([10.0, 5.0]).to(CUDA)


def copies_to_the_host(scores: Tensor) -> Any:
    return scores.cpu()


@pytest.mark.parametrize("synchronising", [reads_a_value, selects, copies_from_the_host, copies_to_the_host])
def test_the_check_detects_synchronisation(synchronising: Callable[[Tensor], Any], fake: FakeTensorMode) -> None:
    with fake:
        scores = torch.empty(7, 2, device=CUDA)
        with OnCudaOnly(), pytest.raises((AssertionError, RuntimeError)):
            synchronising(scores)
