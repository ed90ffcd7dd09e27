"""Comparison of the engine with torchvision and pycocotools: same input, matched detections, average precision.

Used by `benchmarks.parity` and the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from ops.assignment import solve_assignment
from ops.iou import box_iou
from ops.preprocess import rgb_to_i420
from pipeline.coco.average_precision import coco_metrics
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.engine.architectures import build
from pipeline.engine.weights import load_weights
from pipeline.models.registry import ModelSpec, input_hw

MIN_BOX_IOU = 0.99
MAX_SCORE_DIFFERENCE = 1e-3

# A mask is pasted into its box, widened by 30/28 and truncated to whole pixels. If an edge of that box is closer to a
# whole number than the rounding error of float32, two pastings that differ by a pixel are both correct.
_WIDENING = 30 / 28
_UNDECIDED_PX = 1e-4

# (Kr, Kb), the luma coefficients of the ITU recommendations
_LUMA_SHARES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}

_MatrixF64 = NDArray[np.float64]


def model_frame(picture: Image.Image, spec: ModelSpec) -> I420Frame:
    """The picture at the model's input size as I420, BT.601, full range, as `pipeline.engine.segment` makes it."""
    height, width = input_hw(spec, (picture.height, picture.width))
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    data = rgb_to_i420(np.asarray(resized))
    return I420Frame(data, width, height, picture.width, picture.height, ColourMatrix.BT601, full_range=True)


def rgb_of(frame: I420Frame) -> Tensor:
    """(3, H, W) float32 RGB in [0, 1], not rounded to 8 bits: `ops.reference.i420_to_rgb` as matrix products."""
    y, u, v = (plane.astype(np.float64) for plane in frame.planes())
    rows, columns = _upsampling(len(u)), _upsampling(u.shape[1])
    cb, cr = (rows @ (plane - 128) @ columns.T for plane in (u, v))
    kr, kb = _LUMA_SHARES[frame.matrix]
    offset, luma_span, chroma_span = (0, 255, 255) if frame.full_range else (16, 219, 224)
    luma = (y - offset) / luma_span
    red, blue = luma + 2 * (1 - kr) * cr / chroma_span, luma + 2 * (1 - kb) * cb / chroma_span
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return torch.from_numpy(np.stack([red, green, blue]).clip(0, 1).astype(np.float32))


def _upsampling(size: int) -> _MatrixF64:
    """(2 * size, size) weights of the chroma samples, which lie between pixels 2i and 2i + 1, in each pixel."""
    position = ((np.arange(2 * size) - 0.5) / 2).clip(0, size - 1)
    share: _MatrixF64 = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size)))
    return share


class Torchvision:
    """torchvision's forward pass in fp32. `network` is torchvision's module, for access to its stages."""

    def __init__(self, network: FasterRCNN, spec: ModelSpec) -> None:
        """Takes ownership of the network with its weights and sets the normalisation of its transform."""
        self.network = network.float().eval()
        self.network.transform.image_mean, self.network.transform.image_std = spec.mean, spec.std
        self._spec = spec
        self._class_id_of_output = np.array([0, *spec.head_class_ids], np.int32)

    @classmethod
    def load(cls, spec: ModelSpec, weights: str | None = None) -> Torchvision:
        """Load the model with its weights, or with those of a file. Raises ModelError."""
        network = build(spec.architecture, len(spec.head_class_ids) + 1)
        load_weights(network, spec, weights)
        return cls(network, spec)

    def on_frame(self, frame: I420Frame) -> Detections:
        """Detections on the frame that the engine also gets, without a resize, in pixels of the source."""
        return self._detect(rgb_of(frame), (frame.source_height, frame.source_width), resized=False)

    def on_picture(self, picture: Image.Image) -> Detections:
        """Detections on the picture itself, which torchvision resizes by its own rule."""
        rgb = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        return self._detect(rgb, (picture.height, picture.width), resized=True)

    @torch.inference_mode()
    def _detect(self, rgb: Tensor, out_hw: tuple[int, int], *, resized: bool) -> Detections:
        """The steps of torchvision's `GeneralizedRCNN.forward`, with boxes and masks in pixels of out_hw."""
        network, transform = self.network, self.network.transform
        short, long = sorted(rgb.shape[1:])
        # With min_size and max_size equal to the sides, torchvision's resize has the scale 1.
        transform.min_size, transform.max_size = (
            ((self._spec.min_size,), self._spec.max_size) if resized else ((short,), long)
        )
        images, _ = transform([rgb])
        features = network.backbone(images.tensors)
        proposals, _ = network.rpn(images, features)
        found, _ = network.roi_heads(features, proposals, images.image_sizes)
        return self._detections(transform.postprocess(found, images.image_sizes, [out_hw])[0], out_hw)

    def _detections(self, found: Mapping[str, Tensor], hw: tuple[int, int]) -> Detections:
        class_ids = self._class_id_of_output[found["labels"].numpy()]
        keep = np.isin(class_ids, list(self._spec.labels))  # some outputs of a COCO head have no category
        masks = found["masks"][:, 0].numpy()[keep] > 0.5 if "masks" in found else None
        return Detections(
            boxes_xyxy=found["boxes"].numpy()[keep],
            scores=found["scores"].numpy()[keep],
            class_ids=class_ids[keep],
            mask_bits=None,
            rle_counts=None if masks is None else [_encoded(mask) for mask in masks],
            width=hw[1],
            height=hw[0],
            keypoints=found["keypoints"].numpy()[keep] if "keypoints" in found else None,
        )


def _encoded(mask: NDArray[np.bool_]) -> bytes:
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts


class Agreement(NamedTuple):
    """Agreement of detections with reference detections."""

    num_expected: int
    num_partners: int
    mask_ious: NDArray[np.float64]
    """mask IoU of each matched pair, 1 for a model without masks; pairs whose pasting is ambiguous are left out"""

    @property
    def share(self) -> float:
        """Share of the reference detections that have a match; 1 without reference detections."""
        return self.num_partners / self.num_expected if self.num_expected else 1.0

    @property
    def least_iou(self) -> float:
        """Lowest mask IoU; 1 without masks."""
        return float(self.mask_ious.min(initial=1.0))

    @property
    def share_undecided(self) -> float:
        """Share of the matched pairs whose masks were not compared."""
        return 1 - len(self.mask_ious) / self.num_partners if self.num_partners else 0.0


def partners(found: Detections, expected: Detections) -> NDArray[np.int64]:
    """Match detections one to one, as many as possible: (P, 2) indices [found, expected] of pairs with the same class,
    box IoU >= 0.99 and a score difference of at most 0.001.
    """
    fits = (
        (box_iou(found.boxes_xyxy, expected.boxes_xyxy) >= MIN_BOX_IOU)
        & (found.class_ids[:, None] == expected.class_ids)
        & (np.abs(found.scores[:, None].astype(np.float64) - expected.scores) <= MAX_SCORE_DIFFERENCE)
    )
    of_found = solve_assignment(np.where(fits, 0.0, 1.0))
    pairs = np.stack([np.arange(len(found)), of_found], axis=1)[of_found >= 0]
    chosen: NDArray[np.int64] = pairs[fits[pairs[:, 0], pairs[:, 1]]]
    return chosen


def agreement(founds: Sequence[Detections], expecteds: Sequence[Detections]) -> Agreement:
    """Agreement over all pictures."""
    ious, num_partners = [], 0
    for found, expected in zip(founds, expecteds, strict=True):
        pairs = partners(found, expected)
        num_partners += len(pairs)
        decided = pairs[_is_pasting_decided(expected.boxes_xyxy[pairs[:, 1]])]
        ious += [_mask_iou(found, expected, *pair) for pair in decided.tolist()]
    return Agreement(sum(map(len, expecteds)), num_partners, np.array(ious, np.float64))


def _is_pasting_decided(boxes_xyxy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(N, 4) -> (N,)"""
    corners = boxes_xyxy.astype(np.float64).reshape(-1, 2, 2)
    centre = corners.mean(axis=1, keepdims=True)
    edges = centre + (corners - centre) * _WIDENING
    decided: NDArray[np.bool_] = (np.abs(edges - edges.round()) > _UNDECIDED_PX).all(axis=(1, 2))
    return decided


def _mask_iou(found: Detections, expected: Detections, found_idx: int, expected_idx: int) -> float:
    if found.rle_counts is None or expected.rle_counts is None:
        return 1.0
    ours, theirs = found.rle_counts[found_idx], expected.rle_counts[expected_idx]
    if ours == theirs:  # both may be empty
        return 1.0
    hw = [expected.height, expected.width]
    return float(coco_mask.iou([{"size": hw, "counts": ours}], [{"size": hw, "counts": theirs}], [0])[0, 0])


class AveragePrecision(NamedTuple):
    """COCO's AP at IoU 0.50:0.95 with at most 100 detections; NaN if the detections have no masks."""

    boxes: float
    masks: float


def average_precision(truth: COCO, detections: Mapping[int, Detections]) -> AveragePrecision:
    """Average precision of the detections, given by image ID, on these images only.

    A class that is not labelled on an image (`labelled_category_ids`; without this entry all classes are labelled) is
    ignored there.
    """
    found = coco_metrics(truth, detections)
    return AveragePrecision(found.boxes.ap, float("nan") if found.masks is None else found.masks.ap)
