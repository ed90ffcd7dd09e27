"""infer: frames of all streams through the model, in batches."""

from __future__ import annotations

import time

from pipeline.batching import Batcher
from pipeline.bus import LOST_CONNECTION, Bus, FrameQueue, QueuedFrame
from pipeline.engine import Engine, load_engine
from pipeline.models import bus_hw
from pipeline.structures import Detections, I420Frame
from pipeline.wire import FrameDetections
from workers.base import Life, Reconnecting, log
from workers.tasks import InferTask

TYPICAL_SOURCE_HW = (1080, 1920)
"""most cameras have its shape, and the first frame of another only costs a little more"""
IDLE_WAIT_S = 0.5
STREAMS_REFRESH_S = 1.0
BEAT_INTERVAL_S = 1.0


def run(task: InferTask, life: Life) -> None:
    """Work until asked to stop. Raises ModelError or UsageError when the model cannot be run."""
    bus = Bus(task.redis_url)
    bus.beat("infer", task.name, "starting", detail=f"loading {task.model}")
    engine = load_engine(
        task.model, weights=task.weights, device=task.device, precision=task.precision, threads=task.num_threads
    )
    engine.warm_up([bus_hw(engine.spec, TYPICAL_SOURCE_HW)])
    try:
        InferWorker(task, bus, engine, life).run()
    finally:
        bus.forget_worker("infer", task.name)


class InferWorker:
    """One model on one device."""

    def __init__(self, task: InferTask, bus: Bus, engine: Engine, life: Life) -> None:
        self._task = task
        self._bus = bus
        self._engine = engine
        self._life = life
        self._queue: FrameQueue = bus.frame_queue(task.name)
        self._reconnecting = Reconnecting(bus, life)
        self._batcher: Batcher[QueuedFrame] = Batcher(task.batch, task.batch_timeout_ms / 1000)
        self._detail = f"{engine.spec.name} on {engine.device_name}, {engine.precision}"
        self._counters = {"frames": 0.0, "batches": 0.0, "mixed_batches": 0.0, "errors": 0.0, "infer_s": 0.0}
        self._refresh_at_s = 0.0
        self._beat_at_s = 0.0

    def run(self) -> None:
        """The loop."""
        log.info("ready: %s", self._detail)
        while not self._life.stopping:
            try:
                self._step()
            except LOST_CONNECTION:
                self._reconnecting.wait()
                self._queue.reload()
        self._infer(self._batcher.take())

    def _step(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._refresh_at_s:
            streams = self._bus.streams().items()
            self._queue.set_streams(stream_id for stream_id, stream in streams if stream.model == self._task.model)
            self._refresh_at_s = now_s + STREAMS_REFRESH_S
        if now_s >= self._beat_at_s:
            self._bus.beat("infer", self._task.name, "running", detail=self._detail, counters=self._counters)
            self._beat_at_s = now_s + BEAT_INTERVAL_S
        if (owed := self._queue.read_owed()) is not None:
            self._infer([owed])
            return
        self._batcher.add(self._queue.read(self._batcher.room), time.monotonic())
        wait_s = self._batcher.wait_s(time.monotonic())
        if wait_s == 0.0:
            self._infer(self._batcher.take())
        else:
            self._queue.wait(min(wait_s, IDLE_WAIT_S))

    def _infer(self, queued: list[QueuedFrame]) -> None:
        """Answer every one of the frames, whatever happens to them."""
        frames = [(entry, frame) for entry in queued if (frame := self._usable(entry)) is not None]
        if not frames:
            return
        now_ns, start_s = self._bus.clock.now_ns(), time.monotonic()
        try:
            found = self._engine.infer(
                [frame for _, frame in frames],
                min_scores=[entry.header.min_score for entry, _ in frames],
                class_ids=[entry.header.class_ids for entry, _ in frames],
            )
        except Exception as failure:
            if len(frames) > 1:  # find the one it was: each alone
                for entry, _ in frames:
                    self._infer([entry])
                return
            entry = frames[0][0]
            log.exception("frame %d of %s", entry.header.frame_seq, entry.stream_id)
            self._counters["errors"] += 1
            detail = f"{type(failure).__name__}: {failure}"
            self._reconnecting(lambda: self._queue.give_up(entry, "error", detail))
            return
        infer_s = time.monotonic() - start_s
        self._count([entry for entry, _ in frames], infer_s)
        for (entry, _), detections in zip(frames, found, strict=True):
            self._deliver(entry, detections, now_ns, infer_s * 1000 / len(frames))

    def _usable(self, entry: QueuedFrame) -> I420Frame | None:
        """The picture, or None after the frame was answered with a gap."""
        header = entry.header
        if header.max_staleness_s is not None:
            age_s = (self._bus.clock.now_ns() - header.arrived_at_ns) / 1e9
            if age_s > header.max_staleness_s:
                detail = f"{age_s:.2f} s old, limit {header.max_staleness_s} s"
                self._reconnecting(lambda: self._queue.give_up(entry, "stale", detail))
                return None
        if entry.pixels is None:
            self._reconnecting(lambda: self._queue.give_up(entry, "corrupt", "the pixels are no longer on the bus"))
            return None
        try:
            return header.frame(entry.pixels)
        except ValueError as error:
            detail = str(error)
            self._reconnecting(lambda: self._queue.give_up(entry, "corrupt", detail))
            return None

    def _deliver(self, entry: QueuedFrame, detections: Detections, start_ns: int, infer_ms: float) -> None:
        queue_ms = max(0.0, (start_ns - entry.header.arrived_at_ns) / 1e6)
        message = FrameDetections.pack(
            entry.header, detections, model=self._engine.spec.name, queue_ms=queue_ms, infer_ms=infer_ms
        )
        self._reconnecting(lambda: self._queue.deliver(entry, message))

    def _count(self, entries: list[QueuedFrame], infer_s: float) -> None:
        self._counters["frames"] += len(entries)
        self._counters["batches"] += 1
        self._counters["mixed_batches"] += len({entry.stream_id for entry in entries}) > 1
        self._counters["infer_s"] += infer_s
