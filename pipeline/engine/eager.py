"""The CPU runner: runs the stages one after the other, with tensors of the exact number of detections."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import record_function

from ops.preprocess import preprocess_batch
from pipeline.engine.runner import RunnerInput, RunnerOutput
from pipeline.engine.staged_network import StagedNetwork
from pipeline.models.registry import ModelSpec


class EagerRunner:
    """Implements `Runner`; `start` runs the batch before it returns."""

    def __init__(self, network: StagedNetwork, spec: ModelSpec) -> None:
        self._network = network
        self._spec = spec

    def start(self, batch: RunnerInput) -> Callable[[], RunnerOutput]:
        """Run a batch. Returns a function that returns the result."""
        output = self._run(batch)
        return lambda: output

    def warm_up(self, batch: RunnerInput, max_batch: int) -> RunnerOutput:
        """Run every stage once. Returns one detection for each image, whose box is the whole image."""
        return self._run(batch, at_least_one=True)

    @torch.inference_mode()
    def _run(self, batch: RunnerInput, *, at_least_one: bool = False) -> RunnerOutput:
        network = self._network
        input_hws = torch.tensor(batch.input_hws, dtype=torch.float32)
        pyramid, boxes = network.boxes(self._input(batch), input_hws, torch.from_numpy(batch.min_scores))
        if at_least_one:
            boxes.xyxy[:, 0, 2:] = input_hws.flip(1)
            boxes.num.clamp_(min=1)
        details = None
        if network.detail_shape:
            details = network.details(pyramid, boxes, int(boxes.num.sum())).numpy()
        return RunnerOutput(boxes.xyxy.numpy(), boxes.scores.numpy(), boxes.outputs.numpy(), boxes.num.numpy(), details)

    def _input(self, batch: RunnerInput) -> Tensor:
        """(B, 3, H, W) normalised and padded input, channels last, in the network's dtype."""
        with record_function("preprocess"):
            bf16 = self._network.dtype == torch.bfloat16
            mean, std = self._spec.mean, self._spec.std
            pixels = torch.from_numpy(
                preprocess_batch(batch.frames, batch.input_hws, batch.padded_hw, mean, std, bf16=bf16)
            )
            return (pixels.view(torch.bfloat16) if bf16 else pixels).permute(0, 3, 1, 2)
