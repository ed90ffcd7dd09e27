"""Optimizer, learning rate schedule, and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from pipeline.engine.architectures import Network
from pipeline.training.settings import OptimizerName

BODY_LR_SHARE = 0.3
"""learning rate of the backbone's body relative to the heads: the body was pretrained on far more pictures"""

MAX_GRADIENT_NORM = 5.0

# shares of the run and of the peak learning rate
_WARM_UP_SHARE = 0.05
_LAST_LR_SHARE = 0.01
_ADAMW_DECAY, _SGD_DECAY, _SGD_MOMENTUM = 1e-2, 1e-4, 0.9
_AVERAGE_DECAY = 0.998


def make_optimizer(network: Network, name: OptimizerName, lr: float) -> Optimizer:
    """An optimizer of the parameters that are not frozen. Biases and norms have no weight decay."""
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
    """Sets the learning rate: linear warm-up, then cosine decay. Returns the rate of the heads.

    peak       learning rate after the warm-up
    progress   completed share of the run, 0 to 1
    """
    if progress < _WARM_UP_SHARE:
        share = 0.05 + 0.95 * progress / _WARM_UP_SHARE
    else:
        decayed = min((progress - _WARM_UP_SHARE) / (1 - _WARM_UP_SHARE), 1.0)
        share = _LAST_LR_SHARE + (1 - _LAST_LR_SHARE) * (1 + math.cos(math.pi * decayed)) / 2
    for group in optimizer.param_groups:
        group["lr"] = peak * share * group["lr_share"]
    return peak * share


class AveragedWeights:
    """Exponential moving average of the trained parameters, over about the last 500 steps."""

    def __init__(self, network: Network) -> None:
        self._parameters = {name: item for name, item in network.named_parameters() if item.requires_grad}
        self.tensors = {name: item.detach().clone() for name, item in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Includes the parameters after step number `step`, from 0.

        The decay is smaller in the first steps, so that the initial weights lose their influence.
        """
        decay = min(_AVERAGE_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.tensors.values()), list(self._parameters.values()), 1 - decay)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
