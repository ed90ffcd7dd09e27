"""The network in the form in which it is trained, and the conversion back to the form in which it is stored.

Batch norms are folded into their convolutions: the running statistics are constant, scale and bias are learnt as part
of the convolution, and each layer saves two passes over memory. The layers up to the first level of the feature pyramid
are frozen, as detectron2 freezes the stem and the first stage: they detect edges and colours already, and their large
feature maps would cost most of the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pipeline.engine.architectures import Network, build, fold_batch_norm
from pipeline.engine.weights import load_weights
from pipeline.errors import UsageError
from pipeline.models.registry import ModelSpec

State = dict[str, Tensor]


def start_network(spec: ModelSpec, base: ModelSpec, init: str | None, frozen: Sequence[str] = ()) -> Network:
    """The network of `spec` with folded batch norms, in fp32, with the weights of `base` or of the file `init`.

    The rows of the class head and of the mask head are copied by label. Rows of labels that `base` does not have are
    initialised at random, from torch's global generator.

    frozen   dotted names of modules that are not trained, in addition to `frozen_part`

    Raises ModelError for unusable weights, UsageError for a keypoint model or an unknown module.
    """
    if spec.output == "keypoints":
        raise UsageError(f"model {spec.name} finds keypoints, which cannot be trained; choose one for masks or boxes")
    source = build(base.architecture, len(base.head_class_ids) + 1)
    load_weights(source, base, init)
    network = build(spec.architecture, len(spec.head_class_ids) + 1)
    network.load_state_dict(_transferred(source.state_dict(), network.state_dict(), base, spec))
    fold_batch_norm(network)
    network.to(memory_format=torch.channels_last)
    network.requires_grad_(requires_grad=True)
    frozen_part(network).requires_grad_(requires_grad=False)
    for name in frozen:
        _module(network, name).requires_grad_(requires_grad=False)
    return network


def frozen_part(network: Network) -> nn.ModuleList:
    """The layers of the backbone's body up to the first one whose output the feature pyramid uses."""
    body = network.backbone.body
    first = next(iter(body.return_layers))
    names = list(dict(body.named_children()))
    return nn.ModuleList(body[name] for name in names[: names.index(first) + 1])


def _module(network: Network, name: str) -> Any:
    """A module by its dotted name. Raises UsageError that lists the modules at the level of the unknown name."""
    module: Any = network
    path = ""
    for part in name.split("."):
        children = dict(module.named_children())
        if part not in children:
            known = ", ".join(f"{path}{child}" for child in children) or "no modules"
            raise UsageError(f"--freeze {name}: the network has no such module; at that level it has {known}")
        module, path = children[part], f"{path}{part}."
    return module


def stored_state(spec: ModelSpec, folded: Mapping[str, Tensor]) -> State:
    """The state dict that fits `pipeline.engine.architectures.build`, from one with folded batch norms."""
    template = build(spec.architecture, len(spec.head_class_ids) + 1)
    state = {name: tensor.detach().float().cpu() for name, tensor in folded.items()}
    norms = dict(_folded_norms(template))
    for norm_name, conv_name in norms.items():
        norm = template.get_submodule(norm_name)
        bias = state.pop(f"{conv_name}.bias")
        ones = torch.ones_like(bias)
        state[f"{norm_name}.weight"], state[f"{norm_name}.bias"] = ones, bias
        state[f"{norm_name}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm_name}.running_var"] = ones - norm.eps
        if isinstance(norm, nn.BatchNorm2d):
            state[f"{norm_name}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return {name: state[name] for name in template.state_dict()}


def _folded_norms(module: Network | nn.Module, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name of the norm, name of the convolution) for each pair that `fold_batch_norm` merges."""
    before: tuple[str, nn.Module] | None = None
    for name, child in module.named_children():
        if (
            before is not None
            and isinstance(before[1], nn.Conv2d)
            and isinstance(child, nn.BatchNorm2d | FrozenBatchNorm2d)
        ):
            yield prefix + name, prefix + before[0]
        else:
            yield from _folded_norms(child, f"{prefix}{name}.")
        before = (name, child)


def _transferred(source: State, target: State, base: ModelSpec, spec: ModelSpec) -> State:
    """`target` with the tensors of `source`; rows of a label are copied to the label's rows in `spec`."""
    rows = torch.tensor(_source_outputs(base, spec))
    known = rows >= 0
    for name, tensor in target.items():
        given = source[name]
        if not name.startswith(_PREDICTORS):
            target[name] = given
            continue
        per_output = 4 if ".bbox_pred." in name else 1
        grouped = tensor.clone().view(len(rows), per_output, *tensor.shape[1:])
        grouped[known] = given.view(-1, per_output, *given.shape[1:])[rows[known]]
        target[name] = grouped.flatten(0, 1)
    return target


_PREDICTORS = (
    "roi_heads.box_predictor.cls_score.",
    "roi_heads.box_predictor.bbox_pred.",
    "roi_heads.mask_predictor.mask_fcn_logits.",
)


def _source_outputs(base: ModelSpec, spec: ModelSpec) -> list[int]:
    """For each output of `spec` the output of `base` with the same label, or -1. Output 0 is the background in both."""
    output_of = {
        base.labels[class_id]: k for k, class_id in enumerate(base.head_class_ids, 1) if class_id in base.labels
    }
    return [0, *(output_of.get(spec.labels.get(class_id, ""), -1) for class_id in spec.head_class_ids)]
