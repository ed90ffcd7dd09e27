"""The infer worker: runs one model on the frames of all streams, in batches."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.bus import LOST_CONNECTION, Bus, FrameQueue, QueuedFrame
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.contract.wire import FrameDetections
from pipeline.engine import Engine, Pending, load_engine
from pipeline.engine.batching import Batcher
from pipeline.models.registry import bus_hw
from workers.base import Life, Reconnecting, log
from workers.oom import describe_out_of_memory, is_out_of_memory
from workers.roles.infer import InferTask

TYPICAL_SOURCE_HW = (1080, 1920)
"""the warm-up uses the input size of such sources; the first frame of another size takes a little longer"""
IDLE_WAIT_S = 0.5
"""maximum time of one wait for frames; a request to stop is noticed after it"""
STREAMS_REFRESH_S = 1.0
BEAT_INTERVAL_S = 1.0


def run(task: InferTask, life: Life) -> None:
    """Run the worker until it is asked to stop. Raises ModelError or UsageError if the model cannot be run."""
    bus = Bus(task.redis_url)
    bus.beat("infer", task.name, "starting", detail=f"loading {task.model}")
    engine = load_engine(
        task.model, weights=task.weights, device=task.device, precision=task.precision, threads=task.num_threads
    )
    engine.warm_up([bus_hw(engine.spec, TYPICAL_SOURCE_HW)], task.batch)
    try:
        InferWorker(task, bus, engine, life).run()
    finally:
        bus.forget_worker("infer", task.name)


@dataclass(slots=True)
class RunningBatch:
    """A batch that the engine computes."""

    entries: list[QueuedFrame]
    start_ns: int
    """start of the computation on the clock of the bus, in nanoseconds"""
    start_s: float
    """start of the computation on the monotonic clock, in seconds"""
    pending: Pending | None = None
    """the detections, once they are computed; None if the engine refused the batch"""


class InferWorker:
    """Reads frames from the queue, runs the engine on them, and delivers their detections."""

    def __init__(self, task: InferTask, bus: Bus, engine: Engine, life: Life) -> None:
        self._task = task
        self._bus = bus
        self._engine = engine
        self._life = life
        self._queue: FrameQueue = bus.frame_queue(task.name)
        self._reconnecting = Reconnecting(life)
        self._batcher: Batcher[QueuedFrame] = Batcher(task.batch, task.batch_timeout_ms / 1000)
        self._running: RunningBatch | None = None
        self._detail = f"{engine.spec.name} on {engine.device_name}, {engine.precision}"
        self._counters = {"frames": 0.0, "batches": 0.0, "mixed_batches": 0.0, "errors": 0.0, "infer_s": 0.0}
        self._warned_of_memory = False
        self._refresh_at_s = 0.0
        self._beat_at_s = 0.0

    def run(self) -> None:
        """Work until asked to stop, then finish the frames that were read."""
        log.info("ready: %s", self._detail)
        while not self._life.stopping:
            try:
                self._step()
            except LOST_CONNECTION as error:
                self._reconnecting.failed(error)
                self._queue.reread_pending()
            else:
                self._reconnecting.succeeded()
        self._infer(self._batcher.take())
        self._finish()

    def _step(self) -> None:
        """Read frames, and start or finish a batch. Raises LOST_CONNECTION."""
        now_s = time.monotonic()
        if now_s >= self._refresh_at_s:
            streams = self._bus.streams().items()
            self._queue.set_streams(
                stream_id for stream_id, stream in streams if stream.model == self._engine.spec.name
            )
            self._refresh_at_s = now_s + STREAMS_REFRESH_S
        if now_s >= self._beat_at_s:
            self._bus.beat("infer", self._task.name, "running", detail=self._detail, counters=self._counters)
            self._beat_at_s = now_s + BEAT_INTERVAL_S
        if (pending := self._queue.read_pending()) is not None:  # alone: it may be the frame that crashed a worker
            self._finish()
            self._infer([pending])
            self._finish()
            return
        self._batcher.add(self._queue.read(self._batcher.room), time.monotonic())
        wait_s = self._batcher.wait_s(time.monotonic())
        if wait_s == 0.0:
            self._infer(self._batcher.take())
        elif self._running is not None:
            self._finish()
        else:
            self._queue.wait(min(wait_s, IDLE_WAIT_S))

    def _infer(self, queued: list[QueuedFrame]) -> None:
        """Start a batch. If the engine computes asynchronously, the previous batch is delivered in the meantime."""
        entries = [(entry, frame) for entry in queued if (frame := self._frame_of(entry)) is not None]
        if not entries:
            return
        batch = RunningBatch([entry for entry, _ in entries], self._bus.clock.now_ns(), time.monotonic())
        try:
            batch.pending = self._engine.submit(
                [frame for _, frame in entries],
                min_scores=[entry.header.min_score for entry in batch.entries],
                class_ids=[entry.header.class_ids for entry in batch.entries],
            )
        except Exception as failure:
            self._isolate_failure(batch, failure)
            return
        self._finish()
        self._running = batch
        if not self._engine.overlaps:
            self._finish()

    def _finish(self) -> None:
        """Wait for the running batch, if there is one, and deliver its detections."""
        batch, self._running = self._running, None
        if batch is None or batch.pending is None:
            return
        try:
            found = batch.pending.result()
        except Exception as failure:
            self._isolate_failure(batch, failure)
            return
        infer_s = time.monotonic() - batch.start_s
        self._count(batch.entries, infer_s)
        for entry, detections in zip(batch.entries, found, strict=True):
            self._deliver(entry, detections, batch.start_ns, infer_s * 1000 / len(batch.entries))

    def _isolate_failure(self, batch: RunningBatch, failure: Exception) -> None:
        """Infer each frame of a failed batch by itself. A frame that fails by itself becomes a gap with cause `error`.

        Raises `failure` if memory runs out for a single frame: every other frame would need as much.
        """
        if len(batch.entries) > 1:
            if is_out_of_memory(failure) and not self._warned_of_memory:
                self._warned_of_memory = True
                log.warning(
                    "%s for a batch of %d frames, inferring them one by one; lower --batch",
                    describe_out_of_memory(failure),
                    len(batch.entries),
                )
            for entry in batch.entries:
                self._infer([entry])
                self._finish()
            return
        if is_out_of_memory(failure):
            raise failure
        entry = batch.entries[0]
        log.exception("frame %d of %s", entry.header.frame_seq, entry.stream_id, exc_info=failure)
        self._counters["errors"] += 1
        detail = f"{type(failure).__name__}: {failure}"
        self._reconnecting(lambda: self._queue.give_up(entry, "error", detail))

    def _frame_of(self, entry: QueuedFrame) -> I420Frame | None:
        """The pixels of a queued frame; None for a frame that is too old or damaged, which becomes a gap."""
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
