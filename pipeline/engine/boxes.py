"""Box decoding and selection in tensors of fixed shapes: proposals of the RPN and detections of the box head.

B images, L pyramid levels, P proposals and D detections per image, C outputs of the class head including the
background. Counts stay on the device, and rows after the count are padding. Nothing synchronises with the host, so that
the stages can be captured in a CUDA graph. The steps and their order are torchvision's;
tests/integration/engine/test_parity_family.py compares each stage with torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from pipeline.engine.kernels import nms

# Logarithm of the maximum ratio of a box side to the side of its anchor in the box coding of Faster R-CNN.
_MAX_LOG_SCALE = math.log(1000.0 / 16)

# Maximum number of (proposal, class) scores per image that enter NMS, the highest first. In the images that were
# tested, the result is the same as with all scores above the threshold.
_MAX_CANDIDATES = 4096

# Detections with a shorter side are dropped.
_MIN_DETECTION_PX = 1e-2


class Boxes(NamedTuple):
    """Boxes of a batch, by descending score; the first num[b] of N rows of image b are valid."""

    xyxy: Tensor
    """(B, N, 4) float32 in input pixels"""
    scores: Tensor
    """(B, N) float32, in [0, 1]"""
    outputs: Tensor
    """(B, N) int64: output of the class head; for proposals, the pyramid level"""
    num: Tensor
    """(B,) int64"""


def propose(
    rpn: RegionProposalNetwork,
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Sequence[Tensor],
    input_hws: Tensor,
) -> Boxes:
    """Select the proposals: the best anchors of each level are decoded, clipped and suppressed by NMS within the level,
    and the best proposals of all levels are kept.

    objectness  (B, A, H, W) logits per level, for A anchors per cell
    deltas      (B, 4 * A, H, W) box codes per level
    anchors     (H * W * A, 4) float32 per level
    input_hws   (B, 2) float32: height and width of each image inside the padded input
    """
    best = [_best_of_level(rpn.pre_nms_top_n(), *level) for level in zip(objectness, deltas, anchors, strict=True)]
    widest = max(logits.shape[1] for logits, _, _ in best)
    logits = torch.stack([_padded(values, widest, -math.inf) for values, _, _ in best], dim=1)
    codes = torch.stack([_padded(values, widest, 0.0) for _, values, _ in best], dim=1)
    starts = torch.stack([_padded(values, widest, 0.0) for _, _, values in best], dim=1)
    num_images, num_levels = logits.shape[:2]

    xyxy = _clipped(_decoded(codes, starts, rpn.box_coder.weights), input_hws[:, None, None])
    scores = logits.sigmoid()
    is_candidate = (logits > -math.inf) & _has_size(xyxy, rpn.min_size) & (scores >= rpn.score_thresh)
    max_kept = min(widest, rpn.post_nms_top_n())
    kept, num_kept = nms(xyxy.flatten(0, 1), is_candidate.flatten(0, 1), rpn.nms_thresh, max_kept, None)
    kept = kept.view(num_images, num_levels, max_kept)
    is_kept = torch.arange(max_kept, device=kept.device) < num_kept.view(num_images, num_levels, 1)

    scores = torch.where(is_kept, scores.gather(2, kept), -1.0).flatten(1)
    xyxy = xyxy.gather(2, kept.unsqueeze(-1).expand(-1, -1, -1, 4)).flatten(1, 2)
    scores, chosen = scores.topk(min(scores.shape[1], rpn.post_nms_top_n()), dim=1)
    return Boxes(_rows(xyxy, chosen), scores, chosen // max_kept, (scores >= 0).sum(dim=1))


def detect(
    heads: RoIHeads,
    class_logits: Tensor,
    codes: Tensor,
    proposals: Boxes,
    input_hws: Tensor,
    min_scores: Tensor,
) -> Boxes:
    """Select the detections: boxes above the thresholds are suppressed by NMS within their class, and the best are
    kept.

    class_logits  (B * P, C) logits of the concatenated proposals
    codes         (B * P, 4 * C) box codes
    min_scores    (B, C) float32: lowest score of each class on each image (infinity excludes the class), in addition to
                  the network's own threshold
    """
    num_images, num_proposals = proposals.scores.shape
    num_classes = class_logits.shape[1] - 1
    scores = class_logits.float().softmax(dim=1).view(num_images, num_proposals, num_classes + 1)[:, :, 1:]
    is_valid = torch.arange(num_proposals, device=scores.device) < proposals.num[:, None]
    is_wanted = (scores > heads.score_thresh) & (scores >= min_scores[:, None, 1:]) & is_valid[:, :, None]
    scores = torch.where(is_wanted, scores, -1.0).flatten(1)
    scores, chosen = scores.topk(min(scores.shape[1], _MAX_CANDIDATES), dim=1)
    proposal_idx, outputs = chosen // num_classes, chosen % num_classes + 1

    codes = codes.view(num_images, num_proposals * (num_classes + 1), 4)
    codes = _rows(codes, proposal_idx * (num_classes + 1) + outputs).float()
    xyxy = _decoded(codes, _rows(proposals.xyxy, proposal_idx), heads.box_coder.weights)
    xyxy = _clipped(xyxy, input_hws[:, None])
    is_candidate = (scores >= 0) & _has_size(xyxy, _MIN_DETECTION_PX)
    kept, num = nms(xyxy, is_candidate, heads.nms_thresh, heads.detections_per_img, outputs)
    return Boxes(_rows(xyxy, kept), scores.gather(1, kept), outputs.gather(1, kept), num)


def _best_of_level(max_kept: int, objectness: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, K), codes (B, K, 4) and anchors (B, K, 4) of the best anchors of a level, float32, by descending
    score.
    """
    logits = objectness.permute(0, 2, 3, 1).flatten(1).float()
    logits, chosen = logits.topk(min(max_kept, logits.shape[1]), dim=1)
    codes = deltas.permute(0, 2, 3, 1).reshape(len(logits), -1, 4)
    return logits, _rows(codes, chosen).float(), anchors[chosen]


def _padded(values: Tensor, length: int, filling: float) -> Tensor:
    """Pad dimension 1 to `length` with the value `filling`: (B, length, …)."""
    missing = values.new_full((len(values), length - values.shape[1], *values.shape[2:]), filling)
    return torch.cat([values, missing], dim=1)


def _rows(values: Tensor, idx: Tensor) -> Tensor:
    """Select the rows idx (B, K) of values (B, N, 4): (B, K, 4)."""
    return values.gather(1, idx.unsqueeze(-1).expand(-1, -1, 4))


def _decoded(codes: Tensor, starts: Tensor, weights: Sequence[float]) -> Tensor:
    """Decode box codes (…, 4) relative to the boxes `starts` (…, 4): equation 2 of the Faster R-CNN paper.

    weights are torchvision's divisors of the codes [x, y, width, height]; its networks use equal values for x and y and
    for width and height.
    """
    shift_weight, _, scale_weight, _ = weights
    sizes = starts[..., 2:] - starts[..., :2]
    centres = starts[..., :2] + 0.5 * sizes
    centres = codes[..., :2] / shift_weight * sizes + centres
    half = 0.5 * ((codes[..., 2:] / scale_weight).clamp(max=_MAX_LOG_SCALE).exp() * sizes)
    return torch.cat([centres - half, centres + half], dim=-1)


def _clipped(xyxy: Tensor, hws: Tensor) -> Tensor:
    """Clip boxes (…, 4) to images of (height, width); hws (…, 2) broadcasts against the boxes."""
    return torch.minimum(xyxy.clamp(min=0), hws.flip(-1).tile(2))


def _has_size(xyxy: Tensor, min_px: float) -> Tensor:
    """Whether both sides of each box are at least min_px long; False for NaN."""
    return (xyxy[..., 2:] - xyxy[..., :2] >= min_px).all(dim=-1)
