"""The engine on a CUDA device, compared with the engine on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.engine_cases import assert_same, found_on, frame_of, street_pictures

from pipeline.contract.arrays import Detections, I420Frame
from pipeline.engine import Engine, load_engine

Pictures = list[NDArray[np.uint8]]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return street_pictures()


@pytest.fixture(scope="module")
def engine(cuda: torch.device) -> Engine:
    return load_engine("street", device=str(cuda), precision="fp32")


@pytest.fixture(scope="module")
def on_cpu(pictures: Pictures) -> list[Detections]:
    return found_on(load_engine("street", device="cpu", precision="fp32"), *map(frame_of, pictures))


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable TF32, which would round the factors to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def test_detections_equal_those_of_the_cpu(engine: Engine, pictures: Pictures, on_cpu: list[Detections]) -> None:
    for found, expected in zip(found_on(engine, *map(frame_of, pictures)), on_cpu, strict=True):
        assert len(expected) > 10
        assert_same(found, expected)


@pytest.mark.parametrize("num_images", [1, 2, 3, 7, 33])
def test_a_graph_is_reused_for_other_frames(
    engine: Engine, pictures: Pictures, on_cpu: list[Detections], num_images: int
) -> None:
    for first in range(3):
        order = [(first + index) % 3 for index in range(num_images)]
        found = found_on(engine, *(frame_of(pictures[index]) for index in order))
        for of_frame, index in zip(found, order, strict=True):
            assert_same(of_frame, on_cpu[index])


def test_more_instances_than_the_capacity_of_the_graph(
    cuda: torch.device, pictures: Pictures, on_cpu: list[Detections]
) -> None:
    engine = load_engine("street", device=str(cuda), precision="fp32")
    grey = frame_of(np.full_like(pictures[0], 128))
    for _ in range(2):
        assert sum(map(len, found_on(engine, grey, grey))) < 8
        for found, expected in zip(found_on(engine, *map(frame_of, pictures[:2])), on_cpu, strict=False):
            assert_same(found, expected)


def test_batches_in_flight_do_not_affect_each_other(
    engine: Engine, pictures: Pictures, on_cpu: list[Detections]
) -> None:
    assert engine.overlaps
    order = [0, 1, 2, 1, 0, 2, 2]
    pending = [
        engine.submit([frame_of(pictures[index])], min_scores=[0.05], class_ids=[None]) for index in order
    ]  # more batches than slots, so submit() waits for the first batches
    for one, index in reversed(list(zip(pending, order, strict=True))):
        assert_same(one.result()[0], on_cpu[index])


def test_frames_of_several_shapes_and_sizes_in_one_call(engine: Engine, pictures: Pictures) -> None:
    frames: list[I420Frame] = [
        frame_of(pictures[0]),
        frame_of(pictures[1][:, :320].copy()),
        frame_of(pictures[1][:160]),
        frame_of(pictures[2][:300, :540].copy()),
    ]
    reference = load_engine("street", device="cpu", precision="fp32")
    for found, expected in zip(found_on(engine, *frames), found_on(reference, *frames), strict=True):
        assert_same(found, expected)


def test_each_frame_has_its_own_filters_on_cuda(engine: Engine, pictures: Pictures) -> None:
    frames = [frame_of(pictures[0])] * 4
    everything, confident, cars, nothing = engine.infer(
        frames, min_scores=[0.05, 0.5, 0.05, 0.05], class_ids=[None, None, {3}, []]
    )
    assert confident.scores.tolist() == everything.scores[everything.scores >= 0.5].tolist()
    assert cars.scores.tolist() == everything.scores[everything.class_ids == 3].tolist()
    assert len(nothing) == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_detects_high_scoring_objects(
    cuda: torch.device, pictures: Pictures, on_cpu: list[Detections], precision: str
) -> None:
    (found,) = found_on(load_engine("street", device=str(cuda), precision=precision), frame_of(pictures[0]))
    # scores change by a few hundredths, so detections near the threshold may differ
    assert abs(int((found.scores >= 0.7).sum()) - int((on_cpu[0].scores >= 0.7).sum())) <= 2
    assert found.scores[0] == pytest.approx(on_cpu[0].scores[0], abs=0.05)


def test_warm_up_captures_every_graph(cuda: torch.device, pictures: Pictures) -> None:
    engine = load_engine("street", device=str(cuda), precision="bf16")
    engine.warm_up([(384, 682)], 4)
    torch.cuda.synchronize()
    reserved = torch.cuda.memory_reserved()
    for num_images in (1, 2, 3, 4):
        found_on(engine, *[frame_of(pictures[0])] * num_images)
    assert torch.cuda.memory_reserved() == reserved
