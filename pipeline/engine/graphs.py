"""The CUDA runner: the forward pass for each (input shape, batch size, number of instances) is one CUDA graph.

Three CUDA streams overlap: upload of the next batch, computation of the current one, download of the previous one.
Frames are uploaded as I420, 1.5 bytes per pixel, through pinned memory; the graph's first kernel converts, resizes and
normalises them. Batch sizes are rounded up to a bucket with images whose minimum scores are infinite. The host
synchronises once per batch, with the event of the finished download.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ops.preprocess import NUM_PARAMS, pack_frames
from pipeline.engine.kernels import preprocess
from pipeline.engine.runner import MAX_BATCH, RunnerInput, RunnerOutput
from pipeline.engine.staged_network import StagedNetwork
from pipeline.models.registry import ModelSpec

_BATCH_BUCKETS = (1, 2, 4, 8, 16, MAX_BATCH)

# Mean numbers of instances per image that graphs are captured for, besides the maximum. The masks of 100 instances are
# a fifth of all operations, and street scenes have about 15 instances.
_INSTANCE_BUCKETS = (8, 24)

# Factor between the expected number of instances and the capacity. A batch with more instances than its graph has
# capacity for is run again with the largest graph.
_HEADROOM = 1.25

# Number of batches in flight: one is transferred while the other is computed.
_NUM_SLOTS = 2

# Maximum number of (input shape, batch size) pairs whose graphs are kept.
_MAX_LANES = 48

# Eager runs before a capture: they compile the Triton kernels and let cuDNN choose its algorithms.
_NUM_WARM_UPS = 2


@dataclass(slots=True)
class _Slot:
    """Buffers and events of one batch in flight. The inputs are planes, params and min_scores."""

    host_inputs: list[Tensor]
    device_inputs: list[Tensor]
    device_output: Tensor
    host_output: Tensor
    uploaded: torch.cuda.Event = field(default_factory=lambda: torch.cuda.Event())  # type: ignore[no-untyped-call]
    computed: torch.cuda.Event = field(default_factory=lambda: torch.cuda.Event())  # type: ignore[no-untyped-call]
    downloaded: torch.cuda.Event = field(default_factory=lambda: torch.cuda.Event())  # type: ignore[no-untyped-call]
    collect: Callable[[], RunnerOutput] | None = None
    """waits for the batch that uses the slot"""


@dataclass(slots=True)
class _Lane:
    """Buffers and graphs for batches of one input shape and batch size."""

    padded_hw: tuple[int, int]
    num_images: int
    inputs: list[Tensor]
    """device buffers that the graphs read"""
    slots: itertools.cycle[_Slot]
    """used in turn"""
    graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = field(default_factory=dict)
    """instance capacity -> graph and its output buffer"""


class GraphRunner:
    """Implements `Runner` for batches of at most MAX_BATCH images; two batches of a shape can be in flight at once."""

    def __init__(self, network: StagedNetwork, spec: ModelSpec) -> None:
        torch.backends.cudnn.benchmark = True  # the input shapes are fixed
        self._network = network
        self._spec = spec
        self._compute, self._upload, self._download = (
            torch.cuda.Stream(network.device)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        self._pool = torch.cuda.graph_pool_handle()
        self._lanes: dict[tuple[tuple[int, int], int], _Lane] = {}
        self._instances_per_image = 0.0

    @torch.inference_mode()
    def warm_up(self, batch: RunnerInput, max_batch: int) -> RunnerOutput:
        """Capture every graph for batches of up to max_batch images of this input shape.

        Returns one detection for each image, whose box is the whole image and whose mask is empty.
        """
        for num_images in _BATCH_BUCKETS[: _BATCH_BUCKETS.index(_bucket(max_batch)) + 1]:
            lane = self._lane(batch.padded_hw, num_images)
            for capacity in self._capacities(num_images):
                self._graph(lane, capacity)
        output = self.start(batch)()
        output.xyxy[:, 0] = [[0.0, 0.0, width, height] for height, width in batch.input_hws]
        shape = (len(batch.frames), *self._network.detail_shape)
        return output._replace(num=np.ones_like(output.num), details=np.zeros(shape, np.float32) if shape[1:] else None)

    @torch.inference_mode()
    def start(self, batch: RunnerInput) -> Callable[[], RunnerOutput]:
        """Start to run a batch. Returns a function that waits for the result and returns it."""
        lane = self._lane(batch.padded_hw, _bucket(len(batch.frames)))
        slot = next(lane.slots)
        if slot.collect is not None:
            slot.collect()
        self._fill(slot.host_inputs, batch)
        with torch.cuda.stream(self._upload):
            _copy(slot.host_inputs, slot.device_inputs)
            slot.uploaded.record()
        expected = self._instances_per_image * len(batch.frames) * _HEADROOM
        capacities = self._capacities(lane.num_images)
        capacity = next((capacity for capacity in capacities if capacity >= expected), capacities[-1])
        self._run(lane, slot, capacity)
        slot.collect = functools.cache(lambda: self._collected(lane, slot, capacity, len(batch.frames)))
        return slot.collect

    def _fill(self, host_inputs: list[Tensor], batch: RunnerInput) -> None:
        """Write the batch to the host buffers. The rows after its images keep what an earlier batch left there."""
        planes, params, min_scores = (host.numpy() for host in host_inputs)
        pack_frames(batch.frames, batch.input_hws, planes, params)
        min_scores[: len(batch.frames)] = batch.min_scores

    def _run(self, lane: _Lane, slot: _Slot, capacity: int) -> None:
        """Enqueue the graph and the copy of its output to the host."""
        graph, output = self._graph(lane, capacity)
        self._compute.wait_event(slot.uploaded)
        with torch.cuda.stream(self._compute):
            _copy(slot.device_inputs, lane.inputs)
            graph.replay()
            slot.device_output[: len(output)].copy_(output)
            slot.computed.record()
        self._download.wait_event(slot.computed)
        with torch.cuda.stream(self._download):
            slot.host_output[: len(output)].copy_(slot.device_output[: len(output)], non_blocking=True)
            slot.downloaded.record()

    @torch.inference_mode()
    def _collected(self, lane: _Lane, slot: _Slot, capacity: int, num_images: int) -> RunnerOutput:
        """Wait for the result of the first num_images images. Runs the batch again with the largest graph if it has
        more instances than capacity.
        """
        slot.downloaded.synchronize()
        num_instances = int(slot.host_output[:num_images].sum())
        self._instances_per_image = max(0.9 * self._instances_per_image, num_instances / num_images)
        if self._network.detail_shape and num_instances > capacity:
            self._run(lane, slot, self._capacities(lane.num_images)[-1])
            slot.downloaded.synchronize()
        return self._unpacked(slot.host_output, lane.num_images, num_images, num_instances)

    def _capacities(self, num_images: int) -> list[int]:
        """Instance capacities that graphs are captured for, ascending; the last is the maximum number of instances."""
        max_detections = self._network.max_detections
        if not self._network.detail_shape:
            return [0]
        return [
            num_images * per_image for per_image in (*_INSTANCE_BUCKETS, max_detections) if per_image <= max_detections
        ]

    def _lane(self, padded_hw: tuple[int, int], num_images: int) -> _Lane:
        key = (padded_hw, num_images)
        if key not in self._lanes:
            if len(self._lanes) == _MAX_LANES:
                torch.cuda.synchronize(self._network.device)
                del self._lanes[next(iter(self._lanes))]
            self._lanes[key] = self._new_lane(padded_hw, num_images)
        return self._lanes[key]

    def _new_lane(self, padded_hw: tuple[int, int], num_images: int) -> _Lane:
        device, host = self._network.device, torch.device("cpu")
        per_image = 1 + 6 * self._network.max_detections
        output = num_images * per_image + self._capacities(num_images)[-1] * math.prod(self._network.detail_shape)
        slots = [
            _Slot(
                self._inputs(padded_hw, num_images, host),
                self._inputs(padded_hw, num_images, device),
                _buffer((output,), torch.float32, device),
                _buffer((output,), torch.float32, host),
            )
            for _ in range(_NUM_SLOTS)
        ]
        lane = _Lane(padded_hw, num_images, self._inputs(padded_hw, num_images, device), itertools.cycle(slots))
        # The buffers are zeroed on the caller's stream, and other streams write to them next.
        torch.cuda.synchronize(device)
        return lane

    def _inputs(self, padded_hw: tuple[int, int], num_images: int, device: torch.device) -> list[Tensor]:
        """Buffers for planes, params and min_scores."""
        return [
            _buffer((num_images, math.prod(padded_hw) * 3 // 2), torch.uint8, device),
            _buffer((num_images, NUM_PARAMS), torch.float32, device),
            _buffer((num_images, self._network.num_outputs), torch.float32, device),
        ]

    def _graph(self, lane: _Lane, capacity: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        if capacity not in lane.graphs:
            with torch.cuda.stream(self._compute):
                for _ in range(_NUM_WARM_UPS):
                    self._forward(lane, capacity)
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may allocate CUDA memory during the capture.
            with torch.cuda.graph(graph, self._pool, self._compute, capture_error_mode="thread_local"):
                output = self._forward(lane, capacity)
            lane.graphs[capacity] = graph, output
        return lane.graphs[capacity]

    def _forward(self, lane: _Lane, capacity: int) -> Tensor:
        """(B + 6 * B * D + capacity * size of a detail,) float32: num, scores, xyxy, outputs and details, flattened and
        concatenated. float32 represents the integers among them exactly.
        """
        planes, params, min_scores = lane.inputs
        batch = preprocess(planes, params, lane.padded_hw, self._spec.mean, self._spec.std, self._network.dtype)
        pyramid, boxes = self._network.boxes(batch, params[:, 2:4], min_scores)
        parts = [boxes.num, boxes.scores, boxes.xyxy, boxes.outputs]
        if capacity:
            parts.append(self._network.details(pyramid, boxes, capacity))
        return torch.cat([part.float().flatten() for part in parts])

    def _unpacked(self, output: Tensor, lane_images: int, num_images: int, num_instances: int) -> RunnerOutput:
        """Split the output of `_forward` and copy the part of the first num_images images."""
        max_detections, detail_shape = self._network.max_detections, self._network.detail_shape
        sizes = [lane_images * size for size in (1, max_detections, 4 * max_detections, max_detections)]
        num, scores, xyxy, outputs, details = np.split(output.numpy(), np.cumsum(sizes))
        of_instances = details[: num_instances * math.prod(detail_shape)].reshape(-1, *detail_shape)
        return RunnerOutput(
            xyxy=xyxy.reshape(-1, max_detections, 4)[:num_images].copy(),
            scores=scores.reshape(-1, max_detections)[:num_images].copy(),
            outputs=outputs.reshape(-1, max_detections)[:num_images].astype(np.int64),
            num=num[:num_images].astype(np.int64),
            details=of_instances.copy() if detail_shape else None,
        )


def _bucket(num_images: int) -> int:
    return next(bucket for bucket in _BATCH_BUCKETS if bucket >= num_images)


def _buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A buffer of zeros; on the host in pinned memory."""
    return torch.zeros(shape, dtype=dtype, device=device, pin_memory=device.type == "cpu")


def _copy(sources: list[Tensor], targets: list[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source, non_blocking=True)
