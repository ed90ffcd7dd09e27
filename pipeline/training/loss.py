"""The loss of Mask R-CNN (He et al. 2017, section 3; Ren et al. 2015 for the proposals), with torchvision's modules.

It differs from torchvision's loss in two points:
- An anchor or RoI that lies mostly in an ignored region and matches no object is not a background sample.
- On a picture on which only some classes were labelled, an unmatched RoI may show an object of another class. The class
  loss of a background sample is therefore -log(p(background) + sum of p(class) over the unlabelled classes), and the
  proposals learn no background.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import roi_align

from pipeline.engine.architectures import Network
from pipeline.training.sample import MASK_TARGET_SIDE, Batch

_MAX_IGNORED_SHARE = 0.5
_SMOOTH_L1_BETA = 1 / 9


class Losses(NamedTuple):
    """Scalar losses: objectness and boxes of the proposals; class, boxes and masks of the RoIs.

    `masks` is 0 for a network without masks.
    """

    objectness: Tensor
    proposals: Tensor
    classes: Tensor
    boxes: Tensor
    masks: Tensor

    @property
    def total(self) -> Tensor:
        return self.objectness + self.proposals + self.classes + self.boxes + self.masks


@dataclass(frozen=True, slots=True)
class Sampling:
    """Numbers of samples per picture.

    num_anchors      anchors in the loss of the proposals, at most half of them matched to objects
    num_rois         RoIs in the loss of the box head, at most a quarter of them matched to objects
    hard_share       share of hard negatives among the background RoIs: those with the largest class loss. The others
                     are drawn at random (Shrivastava et al. 2016 use hard negatives alone, which needs complete labels)
    num_masks        largest number of masks in the mask loss
    pre_nms_top_n    proposals per level before NMS
    post_nms_top_n   proposals per picture after NMS

    torchvision uses 2000 proposals and 512 RoIs. With these smaller numbers the heads cost less than the trunk.
    """

    num_anchors: int = 256
    num_rois: int = 128
    hard_share: float = 0.5
    num_masks: int = 16
    pre_nms_top_n: int = 600
    post_nms_top_n: int = 320


class DetectionLoss:
    """The loss of a network with torchvision's modules. Samples are drawn with torch's global generator."""

    def __init__(
        self,
        network: Network,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        autocast: AbstractContextManager[object],
        sampling: Sampling,
    ) -> None:
        """Changes the samplers of the network.

        mean, std   normalisation of the input, for RGB from 0 to 1
        autocast    context for the convolutions; boxes, sampling and losses are always float32
        """
        self._network, self._autocast = network, autocast
        self._mean, self._std = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (mean, std))
        self._num_masks, self._hard_share = sampling.num_masks, sampling.hard_share
        rpn, heads = network.rpn, network.roi_heads
        # The RPN uses the settings for training only in training mode. Only this module is set to it; in the others,
        # training mode would update the batch norms.
        rpn.training = True
        rpn._pre_nms_top_n["training"] = sampling.pre_nms_top_n
        rpn._post_nms_top_n["training"] = sampling.post_nms_top_n
        rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(sampling.num_anchors, 0.5)
        heads.fg_bg_sampler = BalancedPositiveNegativeSampler(sampling.num_rois, 0.25)

    def __call__(self, batch: Batch) -> Losses:
        """The losses of a batch on the device of the network. Each is a mean over its samples."""
        hw = (batch.rgb.shape[2], batch.rgb.shape[3])
        ignored = _integral_image(batch.ignored)
        with self._autocast:
            features: dict[str, Tensor] = self._network.backbone(self._normalised(batch.rgb))
            objectness, deltas = self._network.rpn.head(list(features.values()))
        objectness, deltas = [level.float() for level in objectness], [level.float() for level in deltas]
        features = {name: level.float() for name, level in features.items()}
        proposals, objectness_loss, proposal_loss = self._propose(batch, ignored, features, objectness, deltas)
        rois, matched, outputs = self._sample(batch, ignored, proposals, features, hw)
        class_loss, box_loss = self._box_losses(batch, features, rois, matched, outputs, hw)
        mask_loss = self._mask_loss(batch, features, rois, matched, outputs, hw)
        return Losses(objectness_loss, proposal_loss, class_loss, box_loss, mask_loss)

    def _normalised(self, rgb: Tensor) -> Tensor:
        self._mean, self._std = self._mean.to(rgb.device), self._std.to(rgb.device)
        pictures: Tensor = (rgb.float() - self._mean) / self._std
        return pictures.contiguous(memory_format=torch.channels_last)

    def _propose(
        self,
        batch: Batch,
        ignored: Tensor,
        features: dict[str, Tensor],
        objectness_levels: list[Tensor],
        delta_levels: list[Tensor],
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The proposals of each picture, the objectness loss and the box loss of the anchors.

        ignored   from `_integral_image`
        """
        rpn, num = self._network.rpn, len(batch.rgb)
        hw = (batch.rgb.shape[2], batch.rgb.shape[3])
        anchors: list[Tensor] = rpn.anchor_generator(ImageList(batch.rgb, [hw] * num), list(features.values()))
        per_level = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness_levels]
        objectness, deltas = concat_box_prediction_layers(objectness_levels, delta_levels)
        with torch.no_grad():
            decoded = rpn.box_coder.decode(deltas, anchors).view(num, -1, 4)
            proposals, _ = rpn.filter_proposals(decoded, objectness, [hw] * num, per_level)
            targets = [{"boxes": boxes} for boxes in batch.boxes]
            labels, matched = rpn.assign_targets_to_anchors(anchors, targets)
            for index, label in enumerate(labels):
                not_background = _ignored_share(ignored[index], anchors[index]) > _MAX_IGNORED_SHARE
                if not bool(batch.labelled[index].all()):
                    not_background = torch.ones_like(not_background)
                label[(label == 0) & not_background] = -1
            codes = torch.cat(rpn.box_coder.encode(matched, anchors))
            positive, negative = (torch.cat(part).nonzero()[:, 0] for part in rpn.fg_bg_sampler(labels))
            sampled = torch.cat([positive, negative])
        num_sampled = max(len(sampled), 1)
        box_loss = functional.smooth_l1_loss(deltas[positive], codes[positive], beta=_SMOOTH_L1_BETA, reduction="sum")
        objectness_loss = functional.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], torch.cat(labels)[sampled], reduction="sum"
        )
        return proposals, objectness_loss / num_sampled, box_loss / num_sampled

    @torch.no_grad()
    def _sample(
        self, batch: Batch, ignored: Tensor, proposals: list[Tensor], features: dict[str, Tensor], hw: tuple[int, int]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The sampled RoIs of each picture: boxes (R, 4), index of the matched object (R,), class output (R,), 0 for
        background.
        """
        heads = self._network.roi_heads
        candidates = heads.add_gt_proposals(proposals, batch.boxes)
        matched, outputs = heads.assign_targets_to_proposals(candidates, batch.boxes, batch.outputs)
        for index, output in enumerate(outputs):
            share = _ignored_share(ignored[index], candidates[index])
            output[(output == 0) & (share > _MAX_IGNORED_SHARE)] = -1
        logits, _ = self._box_heads(features, candidates, hw)
        lengths = [len(output) for output in outputs]
        labelled = batch.labelled.repeat_interleave(torch.tensor(lengths, device=logits.device), 0)
        losses = torch.split(class_losses(logits, torch.cat(outputs).clamp(min=0), labelled), lengths)
        kept_idx = [
            with_hard_negatives(output, drawn, loss, round(self._hard_share * int((output[drawn] == 0).sum())))
            for output, drawn, loss in zip(outputs, heads.subsample(outputs), losses, strict=True)
        ]

        def select(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor[kept] for tensor, kept in zip(tensors, kept_idx, strict=True)]

        return select(candidates), select(matched), select(outputs)

    def _box_losses(
        self,
        batch: Batch,
        features: dict[str, Tensor],
        rois: list[Tensor],
        matched: list[Tensor],
        outputs: list[Tensor],
        hw: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        heads = self._network.roi_heads
        with torch.no_grad():
            truths = [_rows(boxes, index) for boxes, index in zip(batch.boxes, matched, strict=True)]
            codes = torch.cat(heads.box_coder.encode(truths, rois))
            wanted = torch.cat(outputs)
            image_idx = torch.cat([torch.full_like(output, index) for index, output in enumerate(outputs)])
        logits, deltas = self._box_heads(features, rois, hw)
        num_rois = max(len(wanted), 1)
        class_loss = class_losses(logits, wanted, batch.labelled[image_idx]).sum() / num_rois
        positive = (wanted > 0).nonzero()[:, 0]
        own = deltas.view(*logits.shape, 4)[positive, wanted[positive]]
        box_loss = functional.smooth_l1_loss(own, codes[positive], beta=_SMOOTH_L1_BETA, reduction="sum")
        return class_loss, box_loss / num_rois

    def _box_heads(self, features: dict[str, Tensor], rois: list[Tensor], hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits (R, C) and box deltas (R, 4 C), float32, of the concatenated RoIs of all pictures."""
        heads = self._network.roi_heads
        pooled = heads.box_roi_pool(features, rois, [hw] * len(rois))
        with self._autocast:
            logits, deltas = heads.box_predictor(heads.box_head(pooled))
        return logits.float(), deltas.float()

    def _mask_loss(
        self,
        batch: Batch,
        features: dict[str, Tensor],
        rois: list[Tensor],
        matched: list[Tensor],
        outputs: list[Tensor],
        hw: tuple[int, int],
    ) -> Tensor:
        heads = self._network.roi_heads
        if not heads.has_mask():
            return torch.zeros((), device=batch.rgb.device)
        kept_idx = [_random_subset((output > 0).nonzero()[:, 0], self._num_masks) for output in outputs]
        own_rois = [roi[kept] for roi, kept in zip(rois, kept_idx, strict=True)]
        pooled = heads.mask_roi_pool(features, own_rois, [hw] * len(own_rois))
        with self._autocast:
            logits = heads.mask_predictor(heads.mask_head(pooled))
        wanted = torch.cat([output[kept] for output, kept in zip(outputs, kept_idx, strict=True)])
        own = logits.float()[torch.arange(len(wanted), device=wanted.device), wanted]
        if len(own) == 0:
            zero: Tensor = own.sum()  # 0, but connected to the graph
            return zero
        with torch.no_grad():
            objects = [index[kept] for index, kept in zip(matched, kept_idx, strict=True)]
            truths = torch.cat([_rows(boxes, index) for boxes, index in zip(batch.boxes, objects, strict=True)])
            masks = torch.cat([mask[index] for mask, index in zip(batch.masks, objects, strict=True)])
            targets = mask_targets(masks, truths, torch.cat(own_rois), own.shape[-1])
        return functional.binary_cross_entropy_with_logits(own, targets)


def class_losses(logits: Tensor, outputs: Tensor, labelled: Tensor) -> Tensor:
    """(R,) float: the class loss of each sample, -log p(output). For a background sample, p is the probability of the
    background or of any class that is not labelled on the sample's picture.

    logits     (R, C)
    outputs    (R,) int64: class output of each sample, 0 for background
    labelled   (R, C) bool: classes that are labelled on the sample's picture; column 0 is True
    """
    own = functional.one_hot(outputs, logits.shape[1]).bool()
    allowed = own | (~labelled & (outputs == 0)[:, None])
    losses: Tensor = logits.logsumexp(1) - logits.masked_fill(~allowed, float("-inf")).logsumexp(1)
    return losses


def with_hard_negatives(outputs: Tensor, drawn: Tensor, losses: Tensor, num_hard: int) -> Tensor:
    """Replaces `num_hard` of the drawn background samples by the background samples with the largest losses.

    outputs   (R,) int64: class output of each RoI, 0 for background, negative for an ignored RoI
    drawn     (S,) int64: indices of the drawn samples
    losses    (R,): class loss of each RoI

    Returns (S,) distinct indices.
    """
    positive, negative = drawn[outputs[drawn] > 0], drawn[outputs[drawn] == 0]
    hard = losses.masked_fill(outputs != 0, float("-inf")).topk(min(num_hard, len(negative))).indices
    random = negative[~torch.isin(negative, hard)][: len(negative) - len(hard)]
    return torch.cat([positive, hard, random])


def mask_targets(masks: Tensor, boxes: Tensor, rois: Tensor, side: int) -> Tensor:
    """(R, side, side) float32: the share of each cell of a RoI that its object covers.

    masks   (R, 112, 112) uint8, 0 to 255: mask of each RoI's object, resized from the object's box
    boxes   (R, 4) xyxy: box of each RoI's object, pixels
    rois    (R, 4) xyxy, pixels
    """
    origin, scale = boxes[:, :2].repeat(1, 2), MASK_TARGET_SIDE / (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    local = (rois - origin) * scale
    index = torch.arange(len(rois), device=rois.device, dtype=local.dtype)[:, None]
    targets: Tensor = roi_align(
        masks[:, None].float() / 255, torch.cat([index, local], 1), side, sampling_ratio=4, aligned=True
    )
    return targets[:, 0]


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """boxes[index]; zeros for a picture without objects, on which every index is 0 and has no meaning."""
    return boxes[index] if len(boxes) else boxes.new_zeros((len(index), 4))


def _random_subset(index: Tensor, max_size: int) -> Tensor:
    return index if len(index) <= max_size else index[torch.randperm(len(index), device=index.device)[:max_size]]


def _integral_image(ignored: Tensor) -> Tensor:
    """(B, H + 1, W + 1) float32: the integral image, the number of ignored pixels above and to the left."""
    sums = ignored.float().cumsum(1).cumsum(2)
    return functional.pad(sums, (1, 0, 1, 0))


def _ignored_share(integral: Tensor, boxes: Tensor) -> Tensor:
    """(N,): the share of ignored pixels among the pixels that each box touches. boxes (N, 4) xyxy."""
    height, width = integral.shape[0] - 1, integral.shape[1] - 1
    x1, y1 = boxes[:, 0].floor().clamp(0, width - 1).long(), boxes[:, 1].floor().clamp(0, height - 1).long()
    x2 = torch.maximum(boxes[:, 2].ceil().clamp(max=width).long(), x1 + 1)
    y2 = torch.maximum(boxes[:, 3].ceil().clamp(max=height).long(), y1 + 1)
    count = integral[y2, x2] - integral[y1, x2] - integral[y2, x1] + integral[y1, x1]
    return count / ((x2 - x1) * (y2 - y1))
