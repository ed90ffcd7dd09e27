"""Optimizer, learning rate over the run, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.engine.architectures import Network
from pipeline.training.settings import OptimizerName

BODY_LR_SHARE = 0.3
"""The body has learnt on far more pictures than are given here."""

MAX_GRADIENT_NORM = 5.0

_WARM_UP_SHARE = 0.05
_LAST_LR_SHARE = 0.01
_ADAMW_DECAY, _SGD_DECAY, _SGD_MOMENTUM = 1e-2, 1e-4, 0.9
_AVERAGE_DECAY = 0.998


def make_optimizer(network: Network, name: OptimizerName, lr: float) -> Optimizer:
    """Over the parameters that are not frozen; biases and norms are not decayed."""
    decay = _ADAMW_DECAY if name == "adamw" else _SGD_DECAY
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter_name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = parameter_name.startswith("backbone.body."), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    options = [
        {
            "params": parameters,
            "lr": lr,
            "weight_decay": decay if decayed else 0.0,
            "lr_share": BODY_LR_SHARE if in_body else 1.0,
        }
        for (in_body, decayed), parameters in groups.items()
    ]
    if name == "adamw":
        return AdamW(options)
    return SGD(options, momentum=_SGD_MOMENTUM)


def set_lr(optimizer: Optimizer, peak: float, progress: float) -> float:
    """Linear warm-up, then a cosine; progress of the run from 0 to 1. Returns the rate of the heads."""
    if progress < _WARM_UP_SHARE:
        share = 0.05 + 0.95 * progress / _WARM_UP_SHARE
    else:
        along = min((progress - _WARM_UP_SHARE) / (1 - _WARM_UP_SHARE), 1.0)
        share = _LAST_LR_SHARE + (1 - _LAST_LR_SHARE) * (1 + math.cos(math.pi * along)) / 2
    for group in optimizer.param_groups:
        group["lr"] = peak * share * group["lr_share"]
    return peak * share


class AveragedWeights:
    """The exponential average of the parameters that are trained, over about the last 500 steps."""

    def __init__(self, network: Network) -> None:
        self._parameters = {name: item for name, item in network.named_parameters() if item.requires_grad}
        self.tensors = {name: item.detach().clone() for name, item in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After step number `step`, from 0: the first steps count more, else the start would never be forgotten."""
        decay = min(_AVERAGE_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._parameters.values()), 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
