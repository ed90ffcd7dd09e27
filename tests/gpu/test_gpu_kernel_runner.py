"""The CUDA runner on a small network: slots, buckets, uploads and downloads.

The interpreter has no streams and no graphs. Replacements run every operation immediately, and a replay runs the
forward pass again into the same output. Preprocessing uses the Triton kernel; RoIAlign and NMS, which would take
minutes in the interpreter, use the CPU kernels. test_gpu_engine.py tests streams and graphs on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ops.preprocess import rgb_to_i420
from pipeline.contract.arrays import ColourMatrix, I420Frame
from pipeline.engine.architectures import build
from pipeline.engine.eager import EagerRunner
from pipeline.engine.graphs import GraphRunner
from pipeline.engine.runner import RunnerInput, RunnerOutput
from pipeline.engine.staged_network import StagedNetwork
from pipeline.models.registry import MODELS

SPEC = MODELS["street"]
PADDED_HW = (32, 64)
"""small, because the interpreter takes milliseconds for each tile of a picture"""
MAX_DETECTIONS = 12


class StandInEvent:
    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class StandInStream:
    def __init__(self, device: torch.device) -> None:
        pass

    def wait_event(self, event: StandInEvent) -> None:
        pass


class StandInGraph:
    """A graph whose replay runs the forward pass again."""

    def __init__(self, forward: Callable[[], Tensor]) -> None:
        self._forward = forward
        self.output = forward()

    def replay(self) -> None:
        self.output.copy_(self._forward())


class InterpretedRunner(GraphRunner):
    """A GraphRunner without captures."""

    def _graph(self, lane: Any, capacity: int) -> Any:
        if capacity not in lane.graphs:
            graph = StandInGraph(lambda: self._forward(lane, capacity))
            lane.graphs[capacity] = graph, graph.output
        return lane.graphs[capacity]


@pytest.fixture
def runner_class(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> type[GraphRunner]:
    if device.type == "cuda":
        return GraphRunner
    from ops.preprocess_triton import preprocess

    monkeypatch.setattr("pipeline.engine.graphs.preprocess", preprocess)
    monkeypatch.setattr("pipeline.engine.graphs._buffer", lambda shape, dtype, device: torch.zeros(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "Stream", StandInStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", StandInEvent)
    return InterpretedRunner


def network_on(device: torch.device) -> StagedNetwork:
    """Return a network with few proposals, for the interpreter, in which every proposal becomes a detection."""
    torch.manual_seed(3)
    network = build("street", 7)
    network.rpn._pre_nms_top_n["testing"] = 40
    network.rpn._post_nms_top_n["testing"] = 16
    network.roi_heads.detections_per_img = MAX_DETECTIONS
    network.roi_heads.score_thresh = 0.0
    for predictor in (network.rpn.head.cls_logits, network.roi_heads.box_predictor.cls_score):
        predictor.weight.mul_(20)
    return StagedNetwork(network, device, torch.float32)


@pytest.fixture
def references() -> EagerRunner:
    return EagerRunner(network_on(torch.device("cpu")), SPEC)


def picture(seed: int, hw: tuple[int, int] = (30, 60)) -> I420Frame:
    noise = np.random.default_rng(seed).integers(0, 256, (hw[0] // 10, hw[1] // 10, 3), np.uint8)
    rgb = np.ascontiguousarray(noise.repeat(10, axis=0).repeat(10, axis=1))
    return I420Frame(rgb_to_i420(rgb), hw[1], hw[0], hw[1], hw[0], ColourMatrix.BT601, full_range=True)


def job(*frames: I420Frame, min_score: float = 0.0) -> RunnerInput:
    wanted = np.full((len(frames), 7), min_score, np.float32)
    return RunnerInput(list(frames), [(30, 60)] * len(frames), PADDED_HW, wanted)


def assert_found(found: RunnerOutput, expected: RunnerOutput) -> None:
    assert found.num.tolist() == expected.num.tolist()
    for index, num in enumerate(expected.num.tolist()):
        np.testing.assert_allclose(found.scores[index, :num], expected.scores[index, :num], atol=1e-4)
        np.testing.assert_array_equal(found.outputs[index, :num], expected.outputs[index, :num])
        np.testing.assert_allclose(found.xyxy[index, :num], expected.xyxy[index, :num], atol=0.02)
    assert found.details is not None
    assert expected.details is not None
    np.testing.assert_allclose(found.details, expected.details, atol=1e-3)


def test_batches_of_any_size_give_the_results_of_single_images(
    runner_class: type[GraphRunner], references: EagerRunner, device: torch.device
) -> None:
    runner = runner_class(network_on(device), SPEC)
    for seeds in ((1,), (2, 3, 4), (5,), (6, 1)):
        found = runner.start(job(*map(picture, seeds)))()
        expected = references.start(job(*map(picture, seeds)))()
        assert expected.num.min() > 2
        assert_found(found, expected)


def test_a_result_is_kept_while_its_slot_is_reused(
    runner_class: type[GraphRunner], references: EagerRunner, device: torch.device
) -> None:
    runner = runner_class(network_on(device), SPEC)
    collects = [runner.start(job(picture(seed))) for seed in (1, 2, 3)]
    for collect, seed in zip(collects, (1, 2, 3), strict=True):
        assert_found(collect(), references.start(job(picture(seed)))())


def test_a_batch_with_too_many_instances_is_run_again(
    runner_class: type[GraphRunner], references: EagerRunner, device: torch.device
) -> None:
    runner = runner_class(network_on(device), SPEC)
    nothing = runner.start(job(picture(1), picture(2), min_score=2.0))()
    assert nothing.num.tolist() == [0, 0]
    found = runner.start(job(picture(1), picture(2)))()
    assert found.num.sum() > 16  # the smallest graph has a capacity of 8 per image
    assert_found(found, references.start(job(picture(1), picture(2)))())


def test_warm_up_returns_one_box(runner_class: type[GraphRunner], device: torch.device) -> None:
    runner = runner_class(network_on(device), SPEC)
    found = runner.warm_up(job(picture(1)), 2)
    assert found.num.tolist() == [1]
    assert found.xyxy[0, 0].tolist() == [0.0, 0.0, 60.0, 30.0]
    assert found.details is not None
    assert found.details.shape == (1, 28, 28)
