"""Networks and frames for the benchmarks when trained weights are not available.

With plain random weights, all 1000 x 90 scores are near 1/91, and with any lower threshold torchvision sorts all of
them in its NMS. No trained network does that, so the comparison would favour the engine. A random network is therefore
adjusted to behave like a trained one on the frame of the benchmark:

- residual branches are damped, so that activations neither vanish nor explode;
- each pyramid level gets its share of the proposals, so that boxes have all sizes from 16 pixels to most of the
  picture;
- the bias of the background is chosen so that a few hundred scores pass the threshold of 0.05 and more than 100 boxes
  remain after NMS, so that `detections_per_img`, which is a maximum, is the number of detections as long as it is
  lower; outputs without a category never pass;
- boxes differ a little from their proposals;
- the kernels of the mask head blur, so that masks are blobs and not noise.

The time of convolutions and linear layers does not depend on their weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList

from benchmarks.judge import rgb_of
from benchmarks.peers import without_resize
from ops.preprocess import rgb_to_i420
from pipeline.contract.arrays import ColourMatrix, I420Frame
from pipeline.engine.architectures import build
from pipeline.engine.weights import load_weights
from pipeline.models.registry import ModelSpec
from pipeline.synthetic import Scene, SceneConfig

SCORE_THRESHOLD = 0.05

NUM_CANDIDATES = 400
"""number of scores per picture that pass the threshold"""

_RESIDUAL_GAIN = 0.25

_PROPOSALS_OF_LEVEL = (350, 300, 200, 150)
"""shares of the proposals of P2 to P5 before NMS; P6 is every second cell of P5"""

_FOREGROUND_STD = 2.5
"""standard deviation of the class logits over the proposals"""

_CODE_STD = 0.7
"""standard deviation of the box codes: 10 is one box width for the centre, 5 a factor of e for the sides"""

_MASK_STD = 4.0
"""standard deviation of the mask logits"""


def street_frames(size_wh: tuple[int, int], source_wh: tuple[int, int], num_frames: int) -> list[I420Frame]:
    """Pictures of a busy synthetic street, rendered at the size of the frames on the bus."""
    scene = Scene(
        SceneConfig(
            width=size_wh[0], height=size_wh[1], num_frames=25 * num_frames, num_people=16, num_cars=8, num_bicycles=3
        )
    )
    pictures = (scene.render(25 * index).image for index in range(num_frames))
    return [I420Frame(rgb_to_i420(rgb), *size_wh, *source_wh, ColourMatrix.BT601, full_range=True) for rgb in pictures]


def network_for(spec: ModelSpec, frame: I420Frame, num_detections: int, device: torch.device) -> MaskRCNN:
    """A network of the spec in fp32 with its packaged weights, or with random weights adjusted to the frame. It detects
    at most num_detections objects on a picture, with scores above 0.05.
    """
    if spec.weights_url is None:
        network = build(spec.architecture, len(spec.head_class_ids) + 1)
        load_weights(network, spec, None)
        network = without_resize(network.to(device), spec)
    else:
        network = _random_network(spec, frame, device)
    network.roi_heads.detections_per_img = num_detections
    network.roi_heads.score_thresh = SCORE_THRESHOLD
    return network


@torch.no_grad()
def _random_network(spec: ModelSpec, frame: I420Frame, device: torch.device) -> MaskRCNN:
    """A network with random weights, always the same, adjusted to the frame as the module's docstring describes."""
    torch.manual_seed(0)
    network = without_resize(build(spec.architecture, len(spec.head_class_ids) + 1).to(device), spec)
    for name, module in network.backbone.body.named_modules():
        if name.endswith("bn3"):
            module.weight.fill_(_RESIDUAL_GAIN)
    images, _ = network.transform([rgb_of(frame).to(device)])
    _spread_over_levels(network, images)
    features = network.backbone(images.tensors)
    proposals, _ = network.rpn(images, features)
    _set_box_head(network, spec, network.roi_heads.box_roi_pool(features, proposals, images.image_sizes))
    found, _ = network.roi_heads(features, proposals, images.image_sizes)
    boxes = [found[0]["boxes"]]
    _set_mask_head(network, network.roi_heads.mask_roi_pool(features, boxes, images.image_sizes))
    return network


def _spread_over_levels(network: MaskRCNN, images: ImageList) -> None:
    """Scale the outputs of the pyramid, and with them the objectness, until each level has its share of the proposals.

    The layers after the pyramid have no bias yet, so the objectness of a level is proportional to its activations.
    """
    levels = list(network.backbone(images.tensors).values())
    objectness, _ = network.rpn.head(levels)
    spread = float(levels[0].std(dim=(2, 3)).mean())
    lowest = [
        float(level.flatten().topk(num).values[-1]) for level, num in zip(objectness, _PROPOSALS_OF_LEVEL, strict=False)
    ]
    for block, of_level in zip(network.backbone.fpn.layer_blocks, lowest, strict=True):
        last = [module for module in block.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)][-1]
        _scale(last, lowest[0] / (of_level * spread))


def _set_box_head(network: MaskRCNN, spec: ModelSpec, pooled: Tensor) -> None:
    predictor = network.roi_heads.box_predictor
    hidden = network.roi_heads.box_head(pooled)
    for layer, std in ((predictor.cls_score, _FOREGROUND_STD), (predictor.bbox_pred, _CODE_STD)):
        values = layer(hidden)
        _scale(layer, std / float(values.std(dim=0).mean()))
        layer.bias -= layer(hidden).mean(dim=0)
    no_category = [output for output, class_id in enumerate(spec.head_class_ids, 1) if class_id not in spec.labels]
    predictor.cls_score.bias[no_category] = -100.0
    logits = predictor.cls_score(hidden)
    low, high = -100.0, 100.0
    for _ in range(30):
        middle = (low + high) / 2
        logits[:, 0] = middle
        num_candidates = int((logits.softmax(dim=1)[:, 1:] > SCORE_THRESHOLD).sum())
        low, high = (middle, high) if num_candidates > NUM_CANDIDATES else (low, middle)
    predictor.cls_score.weight[0] = 0.0
    predictor.cls_score.bias[0] = high


def _set_mask_head(network: MaskRCNN, pooled: Tensor) -> None:
    blur = torch.tensor([0.25, 0.5, 0.25], device=pooled.device)
    head, predictor = network.roi_heads.mask_head, network.roi_heads.mask_predictor
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(module.weight[:, :, 1:2, 1:2] * torch.outer(blur, blur) * 9)
    deconvolution = predictor.conv5_mask.weight
    deconvolution.copy_(deconvolution[:, :, :1, :1].expand_as(deconvolution))
    hidden = predictor.relu(predictor.conv5_mask(head(pooled)))
    last = predictor.mask_fcn_logits
    _scale(last, _MASK_STD / float(last(hidden).std(dim=(0, 2, 3)).mean()))
    last.bias -= last(hidden).mean(dim=(0, 2, 3))


def _scale(layer: nn.Conv2d | nn.Linear | nn.BatchNorm2d, factor: float) -> None:
    layer.weight *= factor
    if layer.bias is not None:
        layer.bias *= factor
