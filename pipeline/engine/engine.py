"""Mask R-CNN in torchvision's semantics behind one call: frames in, detections with RLE masks out.

The stages are called one by one, so that classes and scores nobody asked for leave before the mask head, only the
winning class' channel is computed, and masks stay 28x28 until `ops.masks` writes their run lengths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.rpn import concat_box_prediction_layers

from ops.masks import pack_bits, paste_rle
from ops.preprocess import preprocess_batch
from pipeline.engine.architectures import build, fold_batch_norm
from pipeline.engine.device import choose_device, choose_dtype
from pipeline.engine.pooling import RoiFeatures
from pipeline.engine.weights import load_weights
from pipeline.models import ModelSpec, get_model, input_hw
from pipeline.structures import MASK_SIDE, ColourMatrix, Detections, I420Frame

# Every level of the pyramid must divide the input.
_SIZE_DIVISOR = 32

# Anchors are kept for this many input shapes; one shape of a ResNet costs 4 MB.
_MAX_ANCHOR_SHAPES = 8


class _Pyramid(NamedTuple):
    """What the trunk makes of a batch."""

    levels: list[Tensor]
    """finest first, in the network's format"""
    for_rois: RoiFeatures
    """those of them that regions are cut from"""
    padded_hw: tuple[int, int]
    """of the batch"""


class Engine:
    """A loaded network. Not safe for use from several threads at once.

    spec          the model
    device_name   `cpu` or the name of the GPU
    precision     fp32, bf16 or fp16: the format of the convolutions; boxes and the sums of RoIAlign are always fp32
    """

    def __init__(self, network: MaskRCNN, spec: ModelSpec, device: torch.device, precision: str) -> None:
        """Takes the network over: folds its batch norms and moves it. `precision` as for `choose_dtype`."""
        self.spec = spec
        self.precision, self._dtype = choose_dtype(precision, device)
        self.device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self._device = device
        # Trunk of `street` on two Zen 4 cores, fp32: 72 ms as it comes, 52 folded, 40 folded and channels last;
        # bf16: 44, 38, 24.
        fold_batch_norm(network)
        self._network = network.to(device=device, dtype=self._dtype, memory_format=torch.channels_last)
        self._network.rpn.anchor_generator.set_cell_anchors(torch.float32, device)
        self._class_id_of_output = np.array([0, *spec.head_class_ids], np.int32)
        self._anchors: dict[tuple[int, int], Tensor] = {}

    def warm_up(self, sizes_hw: Iterable[tuple[int, int]]) -> None:
        """Runs every stage once for frames of these (height, width), so that the first real frame is not slow."""
        for height, width in sizes_hw:
            grey = np.full(height * width * 3 // 2, 128, np.uint8)
            frame = I420Frame(grey, width, height, width, height, ColourMatrix.BT709, full_range=False)
            self.infer([frame], min_scores=[0.0], class_ids=[None])
            box = np.array([[0.0, 0.0, width, height]], np.float32)
            with torch.inference_mode():
                batch, _ = self._preprocess([frame])
                masks = self._masks(self._pyramid(batch), [box], [np.ones(1, np.int64)])
            paste_rle(masks, box, (height, width))

    @torch.inference_mode()
    def infer(
        self,
        frames: Sequence[I420Frame],
        *,
        min_scores: Sequence[float],
        class_ids: Sequence[Collection[int] | None],
    ) -> list[Detections]:
        """Detections of each frame, in pixels of its source, at most 100, with score >= max(0.05, min_scores[i]).

        class_ids[i] are the categories to keep, None for all. Frames are run together with those of the same padded
        input shape only, so what is found on one does not depend on the others beyond rounding.
        Raises ValueError when the three sequences differ in length.
        """
        if not len(frames) == len(min_scores) == len(class_ids):
            raise ValueError(
                f"expected one minimum score and one set of classes per frame, "
                f"got {len(frames)} frames, {len(min_scores)} scores, {len(class_ids)} sets"
            )
        groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, frame in enumerate(frames):
            height, width = input_hw(self.spec, (frame.height, frame.width))
            groups[_padded(height), _padded(width)].append(index)
        results: dict[int, Detections] = {}
        for indices in groups.values():
            detections = self._infer_group(
                [frames[index] for index in indices],
                [min_scores[index] for index in indices],
                [class_ids[index] for index in indices],
            )
            results.update(zip(indices, detections, strict=True))
        return [results[index] for index in range(len(frames))]

    def _infer_group(
        self, frames: list[I420Frame], min_scores: list[float], class_ids: list[Collection[int] | None]
    ) -> list[Detections]:
        batch, input_hws = self._preprocess(frames)
        pyramid = self._pyramid(batch)
        found = self._boxes(pyramid, input_hws)
        kept = [self._filtered(*of_frame) for of_frame in zip(found, min_scores, class_ids, strict=True)]
        boxes = [boxes_xyxy for boxes_xyxy, _, _ in kept]
        masks = self._masks(pyramid, boxes, [outputs for _, _, outputs in kept])
        ends = np.cumsum([len(scores) for _, scores, _ in kept])[:-1]
        return [
            self._detections(frame, frame_input_hw, *of_frame, of_frame_masks)
            for frame, frame_input_hw, of_frame, of_frame_masks in zip(
                frames, input_hws, kept, np.split(masks, ends), strict=True
            )
        ]

    def _preprocess(self, frames: list[I420Frame]) -> tuple[Tensor, list[tuple[int, int]]]:
        """(B, 3, H, W) on the device, channels last, and the part of it that each picture fills."""
        input_hws = [input_hw(self.spec, (frame.height, frame.width)) for frame in frames]
        padded_hw = (_padded(input_hws[0][0]), _padded(input_hws[0][1]))
        batch = torch.from_numpy(preprocess_batch(frames, input_hws, padded_hw, self.spec.mean, self.spec.std))
        return batch.permute(0, 3, 1, 2).to(device=self._device, dtype=self._dtype), input_hws

    def _pyramid(self, batch: Tensor) -> _Pyramid:
        features: dict[str, Tensor] = self._network.backbone(batch)
        names = self._network.roi_heads.box_roi_pool.featmap_names
        padded_hw = (batch.shape[2], batch.shape[3])
        for_rois = RoiFeatures({name: features[name] for name in names}, padded_hw)
        return _Pyramid(list(features.values()), for_rois, padded_hw)

    def _boxes(
        self, pyramid: _Pyramid, input_hws: list[tuple[int, int]]
    ) -> list[tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]]:
        """Per picture: boxes (N, 4) in input pixels, scores (N,), outputs of the class head (N,), by falling score."""
        rpn, heads = self._network.rpn, self._network.roi_heads
        objectness, deltas = rpn.head(pyramid.levels)
        anchors_per_level = [level[0].numel() for level in objectness]
        flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
        anchors = self._anchors_for(pyramid)
        proposals = rpn.box_coder.decode(flat_deltas.float(), [anchors] * len(input_hws)).view(len(input_hws), -1, 4)
        kept, _ = rpn.filter_proposals(proposals, flat_objectness.float(), input_hws, anchors_per_level)
        pooled = pyramid.for_rois.align(heads.box_roi_pool, kept)
        logits, regression = heads.box_predictor(heads.box_head(pooled.to(self._dtype)))
        found = heads.postprocess_detections(logits.float(), regression.float(), kept, input_hws)
        return [
            (boxes.cpu().numpy(), scores.cpu().numpy(), outputs.cpu().numpy())
            for boxes, scores, outputs in zip(*found, strict=True)
        ]

    def _anchors_for(self, pyramid: _Pyramid) -> Tensor:
        """(A, 4) float32 on the device: anchors of all levels for an input of this shape."""
        height, width = pyramid.padded_hw
        if pyramid.padded_hw not in self._anchors:
            level_hws = [level.shape[-2:] for level in pyramid.levels]
            strides = [[torch.tensor(height // rows), torch.tensor(width // columns)] for rows, columns in level_hws]
            if len(self._anchors) == _MAX_ANCHOR_SHAPES:
                del self._anchors[next(iter(self._anchors))]
            anchors = self._network.rpn.anchor_generator.grid_anchors(level_hws, strides)
            self._anchors[pyramid.padded_hw] = torch.cat(anchors)
        return self._anchors[pyramid.padded_hw]

    def _filtered(
        self,
        found: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]],
        min_score: float,
        class_ids: Collection[int] | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Without the scores and classes that nobody asked for, nor outputs that stand for no category."""
        boxes_xyxy, scores, outputs = found
        wanted = self.spec.labels if class_ids is None else class_ids
        keep = (scores >= min_score) & np.isin(self._class_id_of_output[outputs], list(wanted))
        return boxes_xyxy[keep], scores[keep], outputs[keep]

    def _masks(
        self,
        pyramid: _Pyramid,
        boxes_xyxy: list[NDArray[np.float32]],
        outputs: list[NDArray[np.int64]],
    ) -> NDArray[np.float32]:
        """(N, 28, 28) float32 probabilities of the given outputs, for the boxes of all pictures in a row."""
        all_outputs = torch.from_numpy(np.concatenate(outputs)).to(self._device)
        if len(all_outputs) == 0:
            return np.zeros((0, MASK_SIDE, MASK_SIDE), np.float32)
        heads = self._network.roi_heads
        rois = [torch.from_numpy(boxes).to(self._device) for boxes in boxes_xyxy]
        pooled = pyramid.for_rois.align(heads.mask_roi_pool, rois)
        predictor = heads.mask_predictor
        hidden = functional.relu(predictor.conv5_mask(heads.mask_head(pooled.to(self._dtype))))
        # Each instance's own row of the last, 1x1 convolution: all outputs would cost as many times more.
        weight = predictor.mask_fcn_logits.weight[all_outputs].flatten(1).unsqueeze(1)
        bias = predictor.mask_fcn_logits.bias[all_outputs].float()
        logits = torch.bmm(weight, hidden.flatten(2)).float().view(-1, MASK_SIDE, MASK_SIDE)
        probabilities: NDArray[np.float32] = torch.sigmoid(logits + bias[:, None, None]).cpu().numpy()
        return probabilities

    def _detections(
        self,
        frame: I420Frame,
        frame_input_hw: tuple[int, int],
        boxes_xyxy: NDArray[np.float32],
        scores: NDArray[np.float32],
        outputs: NDArray[np.int64],
        masks: NDArray[np.float32],
    ) -> Detections:
        """Everything in pixels of the source frame."""
        source_wh = np.array([frame.source_width, frame.source_height] * 2, np.float32)
        input_wh = np.array([frame_input_hw[1], frame_input_hw[0]] * 2, np.float32)
        boxes_xyxy = np.minimum(boxes_xyxy * (source_wh / input_wh), source_wh)
        return Detections(
            boxes_xyxy=boxes_xyxy,
            scores=scores,
            class_ids=self._class_id_of_output[outputs],
            mask_bits=pack_bits(masks),
            rle_counts=paste_rle(masks, boxes_xyxy, (frame.source_height, frame.source_width)),
            width=frame.source_width,
            height=frame.source_height,
        )


def load_engine(
    model: str, *, weights: str | None = None, device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """The engine of a registered model.

    weights   a file of the same architecture, or None for the model's own; torchvision's are downloaded when not cached
    device    auto, cpu, cuda or cuda:N
    precision auto (bf16 where the device multiplies it, else fp32), fp32, bf16, fp16
    threads   for torch on the CPU; None leaves torch's choice
    Raises ModelError or UsageError.
    """
    spec = get_model(model)
    torch_device = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    network = build(spec.architecture, len(spec.head_class_ids) + 1)
    load_weights(network, spec, weights)
    return Engine(network, spec, torch_device, precision)


def _padded(size_px: int) -> int:
    return -(-size_px // _SIZE_DIVISOR) * _SIZE_DIVISOR
