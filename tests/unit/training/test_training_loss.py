"""The loss equals torchvision's for fully labelled data, and excludes ignored regions and unlabelled classes."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import roi_heads
from torchvision.models.detection.image_list import ImageList

from pipeline.engine.architectures import build
from pipeline.training.loss import DetectionLoss, Losses, Sampling, class_losses, mask_targets, with_hard_negatives
from pipeline.training.sample import MASK_TARGET_SIDE, Batch

HW = (96, 128)
NUM_OUTPUTS = 4
AS_TORCHVISION = Sampling(
    num_anchors=256, num_rois=512, hard_share=0.0, num_masks=10_000, pre_nms_top_n=2000, post_nms_top_n=2000
)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    network = build("street", NUM_OUTPUTS)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_normal_(parameter)
    return network


def batch(*, objects: bool = True, ignored: bool = False, labelled: tuple[bool, ...] = (True,) * NUM_OUTPUTS) -> Batch:
    """Return a batch of two pictures. The second has no objects."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[10.0, 12, 50, 70], [60, 20, 120, 60], [30, 30, 46, 46]])[: 3 if objects else 0]
    masks = torch.randint(0, 256, (len(boxes), MASK_TARGET_SIDE, MASK_TARGET_SIDE), generator=generator)
    return Batch(
        rgb=torch.randint(0, 256, (2, 3, *HW), dtype=torch.uint8, generator=generator),
        boxes=[boxes, boxes[:0]],
        outputs=[torch.tensor([1, 3, 2])[: len(boxes)], torch.zeros(0, dtype=torch.int64)],
        masks=[masks.to(torch.uint8), masks[:0].to(torch.uint8)],
        ignored=torch.full((2, *HW), ignored),
        labelled=torch.tensor([labelled, labelled]),
    )


def losses_of(network: Any, given: Batch, sampling: Sampling = AS_TORCHVISION) -> Losses:
    loss = DetectionLoss(network, MEAN, STD, contextlib.nullcontext(), sampling)
    torch.manual_seed(7)
    return loss(given)


def torchvision_losses(network: Any, given: Batch, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Return torchvision's losses.

    The mask targets come from `mask_targets`, because torchvision's function takes masks of whole pictures.
    """

    def project(masks: Tensor, rois: Tensor, matched: Tensor, side: int) -> Tensor:
        if len(masks) == 0:
            return masks.new_zeros((0, side, side), dtype=torch.float32)
        return mask_targets(masks[matched], given.boxes[0][matched], rois, side)

    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", project)
    pictures = (given.rgb.float() / 255 - MEAN[0]) / STD[0]
    targets = [
        {"boxes": boxes, "labels": outputs, "masks": masks}
        for boxes, outputs, masks in zip(given.boxes, given.outputs, given.masks, strict=True)
    ]
    # RPN and heads in training mode, batch norms in inference mode
    monkeypatch.setattr(network.rpn, "training", True)
    monkeypatch.setattr(network.roi_heads, "training", True)
    torch.manual_seed(7)
    features = network.backbone(pictures)
    images = ImageList(pictures, [HW, HW])
    proposals, proposal_losses = network.rpn(images, features, targets)
    _, head_losses = network.roi_heads(features, proposals, images.image_sizes, targets)
    return {**proposal_losses, **head_losses}


def test_losses_equal_torchvisions(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = losses_of(network, batch())
    expected = torchvision_losses(network, batch(), monkeypatch)
    # both sum the same samples in float32, in different orders
    for loss, name in (
        (ours.objectness, "loss_objectness"),
        (ours.proposals, "loss_rpn_box_reg"),
        (ours.classes, "loss_classifier"),
        (ours.boxes, "loss_box_reg"),
        (ours.masks, "loss_mask"),
    ):
        assert float(loss) > 0
        torch.testing.assert_close(
            loss, expected[name], rtol=2e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_ignored_regions_are_not_background(network: Any) -> None:
    empty = losses_of(network, batch(objects=False))
    ignored = losses_of(network, batch(objects=False, ignored=True))
    assert float(empty.objectness) > 0
    assert float(empty.classes) > 0
    assert [float(value) for value in ignored] == [0.0] * 5


def test_objects_in_ignored_regions_contribute_to_the_loss(network: Any) -> None:
    found = losses_of(network, batch(ignored=True))
    assert all(float(value) > 0 for value in found)


def test_only_boxes_mostly_inside_ignored_regions_are_ignored(network: Any) -> None:
    given = batch(objects=False)
    given.ignored[:, :, : HW[1] // 2] = True
    whole, half = losses_of(network, batch(objects=False)), losses_of(network, given)
    assert float(half.objectness) > 0
    assert float(half.objectness) != float(whole.objectness)


def test_unlabelled_classes_disable_background_anchors(network: Any) -> None:
    found = losses_of(network, batch(objects=False, labelled=(True, True, False, True)))
    assert float(found.objectness) == 0.0
    assert float(found.classes) > 0


def test_background_may_be_an_unlabelled_class() -> None:
    logits = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]]).repeat(3, 1)  # p = 1/8, 2/8, 5/8
    outputs = torch.tensor([0, 0, 1])
    labelled = torch.tensor([[True, True, True], [True, True, False], [True, True, False]])
    expected = [-math.log(1 / 8), -math.log(6 / 8), -math.log(2 / 8)]
    # one float32 rounding in each of two logarithms of sums
    assert class_losses(logits, outputs, labelled).tolist() == pytest.approx(expected, abs=1e-6)


def test_background_gradient_does_not_lower_an_unlabelled_class() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    labelled = torch.tensor([[True, True, False]])
    class_losses(logits, torch.tensor([0]), labelled).sum().backward()
    assert logits.grad is not None
    background, labelled_class, unlabelled_class = logits.grad[0].tolist()
    assert labelled_class > 0  # its logit decreases
    assert unlabelled_class < 0  # its logit increases like the background logit
    assert background == pytest.approx(unlabelled_class)


def test_mask_targets_by_hand() -> None:
    left_half = torch.zeros(1, MASK_TARGET_SIDE, MASK_TARGET_SIDE, dtype=torch.uint8)
    left_half[:, :, : MASK_TARGET_SIDE // 2] = 255
    boxes = torch.tensor([[10.0, 20, 50, 60]])
    rois = torch.tensor([[10.0, 20, 50, 60], [30, 20, 50, 60], [10, 20, 30, 40], [-10, 20, 30, 60]])
    same, right, corner, shifted = mask_targets(left_half.repeat(4, 1, 1), boxes.repeat(4, 1), rois, 4)
    assert same.tolist() == [[1, 1, 0, 0]] * 4
    assert not right[:, 1:].any()  # the mask is interpolated at its edge, which the first column touches
    assert (corner[:, :3] == 1).all()
    assert shifted.tolist() == [[0, 0, 1, 1]] * 4


def test_fewer_samples_change_the_loss(network: Any) -> None:
    few = Sampling(num_anchors=16, num_rois=16, num_masks=1, pre_nms_top_n=50, post_nms_top_n=20)
    found = losses_of(network, batch(), few)
    assert all(math.isfinite(float(value)) for value in found)
    assert float(found.masks) != float(losses_of(network, batch()).masks)


def test_a_model_of_boxes_has_no_mask_loss() -> None:
    torch.manual_seed(0)
    network = build("fasterrcnn_mobilenet_v3_large_320_fpn", NUM_OUTPUTS)
    found = losses_of(network, batch(), Sampling())
    assert float(found.masks) == 0.0
    assert float(found.total) == pytest.approx(sum(float(value) for value in found[:4]))


def test_hard_negatives_replace_random_negatives() -> None:
    outputs = torch.tensor([2, 0, 0, 0, -1, 0, 0, 1, 0])
    losses = torch.tensor([9.0, 0.1, 0.5, 0.2, 9.0, 0.9, 0.3, 9.0, 0.4])
    random_idx = torch.tensor([0, 1, 3, 5, 6])
    chosen = with_hard_negatives(outputs, random_idx, losses, num_hard=2).tolist()
    # the object, the two backgrounds with the highest loss, and the first remaining random samples
    assert chosen == [0, 5, 2, 1, 3]
    assert with_hard_negatives(outputs, random_idx, losses, num_hard=0).tolist() == random_idx.tolist()
    assert sorted(with_hard_negatives(outputs, random_idx, losses, num_hard=9).tolist()) == [0, 2, 5, 6, 8]
    nothing = with_hard_negatives(outputs[:1], random_idx[:1], losses[:1], num_hard=0)
    assert nothing.tolist() == [0]
