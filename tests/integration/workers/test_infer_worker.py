"""The infer worker on a real bus, with an engine that records its calls, because the tests run without CUDA."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from support.bus_parts import Job

from pipeline.bus import Bus
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.contract.wire import FrameDetections
from pipeline.engine import Pending
from workers.base import Life
from workers.infer import InferWorker
from workers.roles.infer import InferTask

BAD_PIXEL = 7


class RecordingEngine:
    """Engine that records the first pixel of each frame. A batch with BAD_PIXEL fails in `submit` or `collect`."""

    spec = SimpleNamespace(name="street")
    device_name = "stand-in"
    precision = "fp32"

    def __init__(self, *, overlaps: bool, fails_late: bool = False) -> None:
        self.overlaps = overlaps
        self.calls: list[tuple[str, list[int]]] = []
        self._fails_late = fails_late

    def submit(
        self,
        frames: Sequence[I420Frame],
        *,
        min_scores: Sequence[float],
        class_ids: Sequence[Collection[int] | None],
    ) -> Pending:
        numbers = [int(frame.data[0]) for frame in frames]
        self.calls.append(("submit", numbers))
        is_bad = BAD_PIXEL in numbers
        if is_bad and not self._fails_late:
            raise RuntimeError("no such layer")

        def collect() -> list[Detections]:
            self.calls.append(("collect", numbers))
            if is_bad:
                raise RuntimeError("no such layer")
            return [Detections.empty(frame.source_width, frame.source_height) for frame in frames]

        return Pending(collect)


@contextmanager
def working(bus: Bus, engine: RecordingEngine) -> Iterator[Life]:
    task = InferTask(
        redis_url=bus.url, name="w1", model="street", weights=None, device="cpu", precision="fp32", batch=2,
        batch_timeout_ms=20.0,
    )  # fmt: skip
    life = Life()
    worker = InferWorker(task, bus, engine, life)  # type: ignore[arg-type]
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield life
    finally:
        life.stop()
        thread.join(20)
        assert not thread.is_alive()


def offered(bus: Bus, first_pixels: list[int]) -> Job:
    job = Job(bus)
    writer = job.writer()
    for pixel in first_pixels:
        job.offer(writer, 1, bytes([pixel]) * (32 * 16 * 3 // 2))
    return job


def wait_for_answers(job: Job, num: int) -> None:
    deadline_s = time.monotonic() + 20
    while len(job.messages()) < num and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert len(job.messages()) == num


@pytest.mark.parametrize("overlaps", [True, False])
def test_a_batch_is_delivered_while_the_next_is_computed(bus: Bus, overlaps: bool) -> None:
    job = offered(bus, [1, 2, 3, 4])
    engine = RecordingEngine(overlaps=overlaps)
    with working(bus, engine):
        wait_for_answers(job, 4)
    one, two = [1, 2], [3, 4]
    side_by_side = [("submit", one), ("submit", two), ("collect", one), ("collect", two)]
    in_turns = [("submit", one), ("collect", one), ("submit", two), ("collect", two)]
    assert engine.calls == (side_by_side if overlaps else in_turns)


@pytest.mark.parametrize("fails_late", [False, True])
@pytest.mark.parametrize("overlaps", [True, False])
def test_a_frame_that_fails_affects_no_other_frame_of_its_batch(bus: Bus, overlaps: bool, fails_late: bool) -> None:
    job = offered(bus, [1, 2, 3, BAD_PIXEL, 5, 6])
    with working(bus, RecordingEngine(overlaps=overlaps, fails_late=fails_late)):
        wait_for_answers(job, 6)
    assert job.gaps() == [(4, 4, "error", 1)]
    answered = [message.header.frame_seq for message in job.messages() if isinstance(message, FrameDetections)]
    assert sorted(answered) == [1, 2, 3, 5, 6]


def test_a_running_batch_is_delivered_before_the_worker_ends(bus: Bus) -> None:
    job = offered(bus, [1, 2])
    engine = RecordingEngine(overlaps=True)
    with working(bus, engine) as life:
        deadline_s = time.monotonic() + 20
        while not engine.calls and time.monotonic() < deadline_s:
            time.sleep(0.001)
        life.stop()
    assert len(job.messages()) == 2
