"""The network run step by step: on the CPU, where counts are at hand and padding would cost time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import record_function

from ops.preprocess import preprocess_batch
from pipeline.engine.jobs import Found, Job
from pipeline.engine.network import Network
from pipeline.models.registry import ModelSpec


class EagerRunner:
    """Runs a job when it is started."""

    def __init__(self, network: Network, spec: ModelSpec) -> None:
        self._network = network
        self._spec = spec

    def start(self, job: Job) -> Callable[[], Found]:
        """What gives the result."""
        found = self._run(job)
        return lambda: found

    def warm_up(self, job: Job, max_batch: int) -> Found:
        """Runs every stage once and finds one box, the whole of each picture."""
        return self._run(job, at_least_one=True)

    @torch.inference_mode()
    def _run(self, job: Job, *, at_least_one: bool = False) -> Found:
        network = self._network
        input_hws = torch.tensor(job.input_hws, dtype=torch.float32)
        pyramid, boxes = network.boxes(self._batch(job), input_hws, torch.from_numpy(job.min_scores))
        if at_least_one:
            boxes.xyxy[:, 0, 2:] = input_hws.flip(1)
            boxes.num.clamp_(min=1)
        details = None
        if network.detail_shape:
            details = network.details(pyramid, boxes, int(boxes.num.sum())).numpy()
        return Found(boxes.xyxy.numpy(), boxes.scores.numpy(), boxes.outputs.numpy(), boxes.num.numpy(), details)

    def _batch(self, job: Job) -> Tensor:
        with record_function("preprocess"):
            bf16 = self._network.dtype == torch.bfloat16
            mean, std = self._spec.mean, self._spec.std
            batch = torch.from_numpy(preprocess_batch(job.frames, job.input_hws, job.padded_hw, mean, std, bf16=bf16))
            return (batch.view(torch.bfloat16) if bf16 else batch).permute(0, 3, 1, 2)
