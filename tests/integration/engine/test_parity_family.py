"""Every stage of the engine, compared with the same stage of torchvision's networks on the same inputs.

With random weights, scores are nearly tied, and a complete run may order detections differently. Stages are therefore
compared on equal inputs. The weights are scaled on the pictures so that features, scores, boxes, masks and heatmaps
vary like the outputs of a trained network.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import keypointrcnn_inference, maskrcnn_inference
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.judge import Torchvision, agreement, rgb_of
from ops.keypoints import decode_keypoints
from ops.preprocess import preprocess_batch, rgb_to_i420
from pipeline.contract.arrays import ColourMatrix, I420Frame
from pipeline.engine import Engine
from pipeline.engine.architectures import build
from pipeline.engine.boxes import Boxes, detect, propose
from pipeline.engine.staged_network import FlatBoxes, StagedNetwork
from pipeline.models.registry import MODELS, ModelSpec
from pipeline.synthetic import Scene, SceneConfig

PADDED_HW = (192, 288)
INPUT_HWS = [(192, 270), (176, 288)]
"""two pictures smaller than the padded batch, with sizes that the input rule does not change"""

NUM_PROPOSALS = 120
NUM_DETECTIONS = 24

# Sums of up to 12,544 float32 products in another order, over about 50 layers; relative to the largest value.
SUM_TOLERANCE = 1e-4
# Of two proposals with tied scores at the limit on their number, either may be kept.
SCORE_TOLERANCE = 1e-6
# Decoding a box takes about ten operations on numbers up to 288, each with a rounding error of up to 2^-16.
BOX_TOLERANCE_PX = 1e-3

FAMILY = [name for name, spec in MODELS.items() if spec.weights_url is not None]
WITH_MASKS = [name for name in FAMILY if MODELS[name].output == "masks"]


class StageOutputs(NamedTuple):
    """Outputs of each stage of torchvision's network for two pictures, and our network with the same weights."""

    spec: ModelSpec
    frames: list[I420Frame]
    theirs: FasterRCNN
    images: ImageList
    features: OrderedDict[str, Tensor]
    objectness: list[Tensor]
    deltas: list[Tensor]
    proposals: list[Tensor]
    pooled: Tensor
    logits: Tensor
    codes: Tensor
    found: list[dict[str, Tensor]]
    """boxes, scores and labels of each picture"""
    ours: StagedNetwork
    our_network: FasterRCNN
    """the network whose modules `ours` replaced"""


@pytest.fixture(params=FAMILY)
def stages(request: pytest.FixtureRequest) -> StageOutputs:
    return stages_of(request.param)


@cache
@torch.inference_mode()
def stages_of(name: str) -> StageOutputs:
    spec = dataclasses.replace(MODELS[name], min_size=PADDED_HW[0], max_size=PADDED_HW[1])
    frames = pictures()
    torch.manual_seed(7)
    theirs = without_resize(build(spec.architecture, len(spec.head_class_ids) + 1), spec)
    theirs.rpn._post_nms_top_n = {"training": NUM_PROPOSALS, "testing": NUM_PROPOSALS}
    theirs.roi_heads.detections_per_img = NUM_DETECTIONS
    images = images_of(theirs, frames)
    scale_weights(theirs, images)
    features = theirs.backbone(images.tensors)
    objectness, deltas = theirs.rpn.head(list(features.values()))
    proposals, _ = theirs.rpn(images, features)
    heads = theirs.roi_heads
    pooled = heads.box_roi_pool(features, proposals, images.image_sizes)
    logits, codes = heads.box_predictor(heads.box_head(pooled))
    found = heads.postprocess_detections(untied(logits), codes, proposals, images.image_sizes)
    per_image = [
        dict(zip(("boxes", "scores", "labels"), of_image, strict=True)) for of_image in zip(*found, strict=True)
    ]
    our_network = copy.deepcopy(theirs)
    ours = StagedNetwork(our_network, torch.device("cpu"), torch.float32)
    return StageOutputs(
        spec,
        frames,
        theirs,
        images,
        features,
        objectness,
        deltas,
        proposals,
        pooled,
        logits,
        codes,
        per_image,
        ours,
        our_network,
    )


def untied(logits: Tensor) -> Tensor:
    """Add noise, because small RoIs can give equal features: RoIAlign enlarges RoIs to one cell of their level."""
    return logits + 1e-3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(7))


def pictures() -> list[I420Frame]:
    frames = []
    for index, (height, width) in enumerate(INPUT_HWS):
        scene = Scene(SceneConfig(width=width, height=height, num_frames=100, num_people=12, num_cars=6))
        rgb = scene.render(30 + 40 * index).image
        frames.append(I420Frame(rgb_to_i420(rgb), width, height, width, height, ColourMatrix.BT601, full_range=True))
    return frames


def without_resize(network: FasterRCNN, spec: ModelSpec) -> FasterRCNN:
    network.transform.image_mean, network.transform.image_std = spec.mean, spec.std
    network.transform.resize = lambda image, target: (image, target)
    return network


def images_of(network: FasterRCNN, frames: list[I420Frame]) -> ImageList:
    images, _ = network.transform([rgb_of(frame) for frame in frames])
    return images


def scale_weights(network: FasterRCNN, images: ImageList) -> None:
    """Set random norms, then scale the output layers, in order of execution, to given standard deviations."""
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            module.weight.uniform_(0.8, 1.2)
            module.bias.normal_(0, 0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            if name.endswith("bn3"):  # otherwise each of 16 residuals doubles the variance
                module.weight.mul_(0.25)
    levels = list(network.backbone(images.tensors).values())
    for block, level in zip(network.backbone.fpn.layer_blocks, levels, strict=False):
        rescale(last_layer(block), 1.0, level)
    features = network.backbone(images.tensors)
    head, heads = network.rpn.head, network.roi_heads
    objectness, deltas = head(list(features.values()))
    rescale(head.cls_logits, 2.0, *objectness)
    rescale(head.bbox_pred, 0.3, *deltas)
    proposals, _ = network.rpn(images, features)
    hidden = heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    rescale(heads.box_predictor.cls_score, 2.5, heads.box_predictor.cls_score(hidden))
    rescale(heads.box_predictor.bbox_pred, 0.7, heads.box_predictor.bbox_pred(hidden))
    proposals = [of_image[:NUM_DETECTIONS] for of_image in proposals]
    if heads.has_mask():
        hidden = heads.mask_head(heads.mask_roi_pool(features, proposals, images.image_sizes))
        rescale(heads.mask_predictor.mask_fcn_logits, 3.0, heads.mask_predictor(hidden))
    if heads.has_keypoint():
        hidden = heads.keypoint_head(heads.keypoint_roi_pool(features, proposals, images.image_sizes))
        rescale(heads.keypoint_predictor.kps_score_lowres, 3.0, heads.keypoint_predictor(hidden))


def last_layer(block: nn.Module) -> nn.Module:
    return [module for module in block.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)][-1]


def rescale(layer: nn.Module, deviation: float, *outputs: Tensor) -> None:
    """Scale and shift the layer: each output channel gets mean 0, all together the standard deviation `deviation`."""
    rows = torch.cat([output.transpose(0, 1).flatten(1) for output in outputs], dim=1)
    means = rows.mean(dim=1)
    factor = deviation / float((rows - means[:, None]).std())
    layer.weight.mul_(factor)
    layer.bias.sub_(means).mul_(factor)


def assert_close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    error = (found - expected).abs()
    assert float(error.max()) <= SUM_TOLERANCE * float(expected.abs().max()), f"at {error.argmax()}: {error.max()}"


def channels_last(maps: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
    return OrderedDict((name, level.to(memory_format=torch.channels_last)) for name, level in maps.items())


def as_boxes(proposals: list[Tensor]) -> Boxes:
    """torchvision's proposals as `Boxes`, with NaN in the padding."""
    num = torch.tensor([len(of_image) for of_image in proposals])
    xyxy = torch.full((len(proposals), NUM_PROPOSALS, 4), float("nan"))
    for of_image, boxes in zip(xyxy, proposals, strict=True):
        of_image[: len(boxes)] = boxes
    return Boxes(xyxy, torch.zeros(xyxy.shape[:2]), torch.zeros(xyxy.shape[:2], dtype=torch.int64), num)


def as_instances(found: list[dict[str, Tensor]]) -> FlatBoxes:
    num = torch.tensor([sum(len(of_image["boxes"]) for of_image in found)])
    image_idx = torch.cat([torch.full((len(of_image["boxes"]),), index) for index, of_image in enumerate(found)])
    boxes, labels = (torch.cat([of_image[name] for of_image in found]) for name in ("boxes", "labels"))
    return FlatBoxes(boxes, image_idx, labels, num)


def test_the_random_networks_give_meaningful_outputs(stages: StageOutputs) -> None:
    assert all(len(of_image) > 50 for of_image in stages.proposals)
    sides = torch.cat(stages.proposals)[:, 2:] - torch.cat(stages.proposals)[:, :2]
    areas = sides.prod(dim=1)
    assert float(areas.max() / areas.min()) > 16  # from at least two pyramid levels
    for of_image in stages.found:
        assert len(of_image["scores"]) == NUM_DETECTIONS
        assert float(of_image["scores"].max()) > 0.3
        assert len(of_image["labels"].unique()) > 1 or len(stages.spec.head_class_ids) == 1


def test_backbone(stages: StageOutputs) -> None:
    """The backbone on I420 frames, including colour conversion and normalisation."""
    spec = stages.spec
    batch = torch.from_numpy(preprocess_batch(stages.frames, INPUT_HWS, PADDED_HW, spec.mean, spec.std))
    with torch.inference_mode():
        features = stages.our_network.backbone(batch.permute(0, 3, 1, 2))
    assert list(features) == list(stages.features)
    for name, expected in stages.features.items():
        assert_close(features[name], expected)


def test_rpn_head(stages: StageOutputs) -> None:
    with torch.inference_mode():
        found = stages.our_network.rpn.head(list(channels_last(stages.features).values()))
    for ours, theirs in zip(found, (stages.objectness, stages.deltas), strict=True):
        for level, expected in zip(ours, theirs, strict=True):
            assert_close(level, expected)


def test_proposals(stages: StageOutputs) -> None:
    found = proposals_of(stages, stages.our_network)
    assert found.num.tolist() == [len(of_image) for of_image in stages.proposals]
    for xyxy, scores, num, expected in zip(found.xyxy, found.scores, found.num, stages.proposals, strict=True):
        above = scores[:num] > scores[num - 1] + SCORE_TOLERANCE
        assert num_partners(xyxy[:num][above], expected) == int(above.sum())
    scores = found.scores[0, : found.num[0]]
    assert bool((scores[1:] <= scores[:-1]).all())


def proposals_of(stages: StageOutputs, network: FasterRCNN) -> Boxes:
    level_hws = [level.shape[-2:] for level in stages.objectness]
    strides = [[torch.tensor(side // cells) for side, cells in zip(PADDED_HW, hw, strict=True)] for hw in level_hws]
    anchors = stages.theirs.rpn.anchor_generator.grid_anchors(level_hws, strides)
    return propose(network.rpn, stages.objectness, stages.deltas, anchors, torch.tensor(INPUT_HWS).float())


def num_partners(found: Tensor, expected: Tensor) -> int:
    """Return the number of boxes that have an equal expected box, within BOX_TOLERANCE_PX; matches are one to one."""
    left = list(range(len(expected)))
    num = 0
    for box in found:
        nearest = min(left, key=lambda index: float((expected[index] - box).abs().max()), default=None)
        if nearest is not None and float((expected[nearest] - box).abs().max()) <= BOX_TOLERANCE_PX:
            left.remove(nearest)
            num += 1
    return num


def test_pooled_features_of_the_box_head(stages: StageOutputs) -> None:
    """RoIAlign on torchvision's features and proposals, with padding after the proposals of each picture."""
    proposals = as_boxes(stages.proposals)
    with torch.inference_mode():
        pyramid = stages.ours._pyramid(channels_last(stages.features), PADDED_HW)
        image_idx = torch.arange(len(INPUT_HWS)).repeat_interleave(NUM_PROPOSALS)
        pool = stages.theirs.roi_heads.box_roi_pool
        found = stages.ours._pool(pool, pyramid, proposals.xyxy.flatten(0, 1), image_idx, proposals.num)
    is_valid = (torch.arange(NUM_PROPOSALS) < proposals.num[:, None]).flatten()
    assert_close(found[is_valid], stages.pooled)


def test_box_head(stages: StageOutputs) -> None:
    heads = stages.our_network.roi_heads
    with torch.inference_mode():
        pooled = stages.pooled.to(memory_format=torch.channels_last)
        logits, codes = heads.box_predictor(heads.box_head(pooled))
    assert_close(logits, stages.logits)
    assert_close(codes, stages.codes)


def detections_of(stages: StageOutputs, network: FasterRCNN) -> Boxes:
    proposals = as_boxes(stages.proposals)
    num_outputs = stages.logits.shape[1]
    is_valid = torch.arange(NUM_PROPOSALS) < proposals.num[:, None]
    padded = []
    for values in (untied(stages.logits), stages.codes):
        rows = torch.full((*is_valid.shape, values.shape[1]), float("nan"))
        rows[is_valid] = values
        padded.append(rows.flatten(0, 1))
    min_scores = torch.zeros(len(INPUT_HWS), num_outputs)
    return detect(network.roi_heads, *padded, proposals, torch.tensor(INPUT_HWS).float(), min_scores)


def test_detections(stages: StageOutputs) -> None:
    found = detections_of(stages, stages.our_network)
    for index, expected in enumerate(stages.found):
        num = int(found.num[index])
        assert num == len(expected["scores"])
        torch.testing.assert_close(found.scores[index, :num], expected["scores"], rtol=0, atol=SCORE_TOLERANCE)
        assert torch.equal(found.outputs[index, :num], expected["labels"])
        torch.testing.assert_close(found.xyxy[index, :num], expected["boxes"], rtol=0, atol=BOX_TOLERANCE_PX)


@pytest.mark.parametrize("name", WITH_MASKS)
def test_masks(name: str) -> None:
    stages = stages_of(name)
    heads = stages.theirs.roi_heads
    boxes, labels = ([of_image[key] for of_image in stages.found] for key in ("boxes", "labels"))
    with torch.inference_mode():
        hidden = heads.mask_head(heads.mask_roi_pool(stages.features, boxes, stages.images.image_sizes))
        expected = torch.cat(maskrcnn_inference(heads.mask_predictor(hidden), labels))[:, 0]
        pyramid = stages.ours._pyramid(channels_last(stages.features), PADDED_HW)
        found = stages.ours.masks(pyramid, as_instances(stages.found))
    assert 0.2 < float((expected > 0.5).float().mean()) < 0.8
    assert_close(found, expected)


def test_keypoints() -> None:
    stages = stages_of("keypointrcnn_resnet50_fpn")
    heads = stages.theirs.roi_heads
    boxes = [of_image["boxes"] for of_image in stages.found]
    with torch.inference_mode():
        hidden = heads.keypoint_head(heads.keypoint_roi_pool(stages.features, boxes, stages.images.image_sizes))
        heatmaps = heads.keypoint_predictor(hidden)
        expected, scores = keypointrcnn_inference(heatmaps, boxes)
        pyramid = stages.ours._pyramid(channels_last(stages.features), PADDED_HW)
        found = stages.ours.heatmaps(pyramid, as_instances(stages.found))
    assert_close(found, heatmaps)
    decoded = decode_keypoints(heatmaps.numpy(), torch.cat(boxes).numpy())
    np.testing.assert_allclose(decoded[:, :, :2], torch.cat(expected)[:, :, :2], atol=BOX_TOLERANCE_PX)
    np.testing.assert_allclose(decoded[:, :, 2], torch.cat(scores), atol=SUM_TOLERANCE * float(heatmaps.abs().max()))


def test_complete_runs(stages: StageOutputs) -> None:
    """Nearly tied detections can swap, also at the limit on their number, so 90 % must be equal."""
    torchvision = Torchvision(stages.theirs, stages.spec)
    engine = Engine(copy.deepcopy(stages.theirs), stages.spec, torch.device("cpu"), "fp32")
    founds = engine.infer(stages.frames, min_scores=[0.0] * 2, class_ids=[None] * 2)
    agreed = agreement(founds, [torchvision.on_frame(frame) for frame in stages.frames])
    print(stages.spec.name, agreed.share, agreed.least_iou, agreed.num_expected)
    assert agreed.share >= 0.9
