"""One host, one command: Redis if none is given, the workers, their restarts, the orderly end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import Protocol

import msgspec

from pipeline.bus import (
    LOST_CONNECTION,
    Bus,
    EmbeddedRedis,
    FrameWriter,
    StreamStatus,
    WorkerStatus,
)
from pipeline.contract.config import StreamConfig
from pipeline.contract.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from pipeline.contract.exports import SUMMARY_NAME
from pipeline.contract.results import EndReason
from pipeline.contract.wire import SourceEnd
from pipeline.errors import BusError, FencedError, MaskStreamError, OutputError, PositionMovedError, UsageError
from pipeline.exports.summary import StreamSummary, write_summary
from pipeline.job.build import Job
from pipeline.source import redact
from workers.child import Child
from workers.tasks import SINK_NAME, DecodeTask, InferTask, SinkTask, TrackTask

TICK_S = 0.1
DRAIN_S = 60.0
"""what is in flight when the job is interrupted is finished within this time"""
STOP_S = 5.0
MAX_CRASHES = 4
"""a worker that crashes so often without a steady time in between is given up; a camera's decoder never is"""


class JobObserver(Protocol):
    """Receives the progress of a job."""

    def update(self, statuses: list[StreamStatus], workers: list[WorkerStatus]) -> None:
        """Called several times per second with the state of every stream and worker."""

    def message(self, level: str, text: str) -> None:
        """Called with a line for the user; `level` is debug, info, warning or error."""


class Supervisor:
    """The parent of one job's workers."""

    def __init__(self, job: Job, bus: Bus, server: EmbeddedRedis | None, observer: JobObserver) -> None:
        self._job = job
        self._bus = bus
        self._server = server
        self._observer = observer
        self._lines: deque[tuple[str, str]] = deque()
        self._num_signals = 0
        self._draining_until_s: float | None = None
        self._output_failed = False
        self._begun: list[str] = []
        self._given_up: dict[str, FrameWriter] = {}
        self._statuses: dict[str, StreamStatus] = {}
        prefix = f"{socket.gethostname()}-{os.getpid()}"
        self._infer = [self._child(self._infer_task(f"infer-{prefix}-{index}")) for index in range(1, job.workers + 1)]
        self._track = self._child(TrackTask(redis_url=bus.url, name=f"track-{prefix}"))
        self._decode = {stream.stream_id: self._child(self._decode_task(stream)) for stream in job.streams}
        self._sinks = {}
        if job.save:
            self._sinks = {stream.stream_id: self._child(self._sink_task(stream)) for stream in job.streams}

    def run(self) -> int:
        """The whole life of the job; the exit code. Raises MaskStreamError when it cannot go on."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            sinks = [*([SINK_NAME] if self._sinks else []), *self._job.readers]
            for stream in self._job.streams:
                self._bus.begin_job(stream, sinks)
                self._begun.append(stream.stream_id)
            if self._wait_until_ready():
                self._work()
            self._show()
            return self._exit_code()
        finally:
            try:
                self._leave()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    # -- the phases ---------------------------------------------------------------------------------------------------

    def _wait_until_ready(self) -> bool:
        """Start everything but the decoders and wait until it can work. False when there is no use in it."""
        names = {child.name for child in [*self._infer, self._track]}
        while self._num_signals == 0 and not self._output_failed:
            self._tend([*self._infer, self._track, *self._sinks.values()])
            running = {worker.name for worker in self._bus.worker_statuses() if worker.state == "running"}
            if names <= running:
                return True
            self._show()
            time.sleep(TICK_S)
        return False

    def _work(self) -> None:
        """Until every stream is over and written, or the time to drain is."""
        while not self._over():
            try:
                if lost := self._bus.lost_jobs():
                    raise BusError(
                        f"Redis forgot the job of {', '.join(lost)}: it was restarted without its memory, or another "
                        "job took the stream id; start this one again"
                    )
                self._tend([*self._infer, self._track, *self._sinks.values(), *self._decode.values()])
                self._bury_streams()
                self._show()
            except LOST_CONNECTION as error:
                if self._server is not None and not self._server.alive:
                    raise BusError(
                        "the private Redis server ended; its memory may be too small for this host"
                    ) from None
                self._observer.message("warning", f"Redis is away, waiting for it: {error}")
                time.sleep(1.0)
            if self._num_signals > 0 or self._output_failed:
                self._drain()
            if self._num_signals > 1 or (self._draining_until_s or float("inf")) < time.monotonic():
                return
            time.sleep(TICK_S)

    def _drain(self) -> None:
        """Stop the sources; what they gave is still inferred, tracked and written."""
        if self._draining_until_s is None:
            self._draining_until_s = time.monotonic() + DRAIN_S
            if self._num_signals:
                self._observer.message("warning", "finishing what is in flight; press Ctrl-C again to leave at once")
            for child in self._decode.values():
                child.terminate()

    def _over(self) -> bool:
        ended = all(self._ended(stream.stream_id) for stream in self._job.streams)
        return ended and all(child.final_code is not None for child in self._sinks.values())

    def _ended(self, stream_id: str) -> bool:
        return stream_id in self._statuses and self._statuses[stream_id].is_over

    def _leave(self) -> None:
        self._stop_workers()
        self._tell()
        with contextlib.suppress(*LOST_CONNECTION):
            try:
                self._write_summary()
            finally:
                self._clean_up()

    def _stop_workers(self) -> None:
        """Everybody leaves: asked first, then made to."""
        workers = [*self._decode.values(), *self._infer, self._track, *self._sinks.values()]
        for child in workers:
            child.terminate()
        begun = any(status.phase != "waiting" for status in self._statuses.values())  # else nobody holds anything
        until_s = time.monotonic() + (STOP_S if begun and self._num_signals < 2 else 0.0)
        for child in workers:
            if not child.wait(max(0.0, until_s - time.monotonic())):
                child.kill()

    def _clean_up(self) -> None:
        """On a server that outlives us only the result logs stay, for a while."""
        if self._server is not None:
            return
        for stream_id in self._begun:
            self._bus.finish_job(stream_id, self._job.result_ttl_s)
        for child in self._infer:
            if isinstance(child.task, InferTask):
                self._bus.forget_worker("infer", child.task.name)
        if isinstance(self._track.task, TrackTask):
            self._bus.forget_worker("track", self._track.task.name)

    # -- what can go wrong --------------------------------------------------------------------------------------------

    def _tend(self, children: list[Child]) -> None:
        for child in children:
            child.tend()
        for child in [*self._infer, self._track]:
            if child.final_code == EXIT_USAGE:
                raise UsageError(child.last_error)
            if child.num_crashes >= MAX_CRASHES or child.final_code is not None:
                raise MaskStreamError(
                    f"{child.name} cannot be kept running: {child.last_error or 'it crashed too often'}"
                )
        for child in self._sinks.values():
            if child.num_crashes >= MAX_CRASHES:
                child.kill()
            if child.final_code not in (None, EXIT_DONE):
                self._output_failed = True

    def _bury_streams(self) -> None:
        """Where a decoder left without having said the end, it goes on, or the end is written in its place."""
        for stream in self._job.streams:
            stream_id, child = stream.stream_id, self._decode[stream.stream_id]
            hopeless = child.num_crashes >= MAX_CRASHES and not stream.live
            if hopeless and child.final_code is None:
                child.kill()
            if child.final_code is None or stream_id in self._given_up or self._ended(stream_id):
                continue
            if self._bus.source_ended(stream_id):
                continue
            if hopeless or self._draining_until_s is not None:
                self._given_up[stream_id] = self._bus.frame_writer(stream)
            else:  # the server went back in time behind its end
                child.revive()
        for stream_id, writer in list(self._given_up.items()):
            if writer.lease.try_take():
                if self._decode[stream_id].num_crashes >= MAX_CRASHES:
                    self._write_end(writer, "failed", f"the decoder crashed {MAX_CRASHES} times on this source")
                else:
                    self._write_end(writer, "stopped", "")
                del self._given_up[stream_id]

    def _write_end(self, writer: FrameWriter, reason: EndReason, detail: str) -> None:
        with contextlib.suppress(PositionMovedError, FencedError):
            opened = writer.open()
            self._bus.set_status(writer.stream_id, error=detail)
            writer.end(
                SourceEnd(
                    session=writer.session,
                    stream_epoch=opened.epoch,
                    last_seq=opened.last,
                    reason=reason,
                    detail=detail,
                    num_corrupt=0,
                )
            )
            writer.lease.release()

    # -- telling ------------------------------------------------------------------------------------------------------

    def _show(self) -> None:
        self._tell()
        streams = {stream.stream_id: stream for stream in self._job.streams}
        self._statuses = {name: self._bus.stream_status(name, stream) for name, stream in streams.items()}
        self._observer.update(list(self._statuses.values()), self._bus.worker_statuses())

    def _tell(self) -> None:
        while self._lines:
            self._observer.message(*self._lines.popleft())

    def _exit_code(self) -> int:
        if self._num_signals:
            return EXIT_INTERRUPTED
        failed = [status for status in self._statuses.values() if status.phase == "failed"]
        return EXIT_FAILED if failed or self._output_failed else EXIT_DONE

    def _write_summary(self) -> None:
        if not self._sinks:
            return
        found = {stream.stream_id: self._bus.stream_summary(stream.stream_id) for stream in self._job.streams}
        summaries = {
            name: msgspec.json.decode(payload, type=StreamSummary) for name, payload in found.items() if payload
        }
        for stream in self._job.streams:
            if stream.stream_id in summaries:
                summaries[stream.stream_id].source = redact(stream.source)
        try:
            write_summary(Path(self._job.output) / SUMMARY_NAME, summaries)
        except OutputError:
            if not self._output_failed:  # else it was told of another file there
                raise

    def _listen(self, level: str, text: str) -> None:
        self._lines.append((level, text))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _child(self, task: DecodeTask | InferTask | TrackTask | SinkTask) -> Child:
        return Child(task, self._listen)

    def _infer_task(self, name: str) -> InferTask:
        job = self._job
        return InferTask(
            redis_url=self._bus.url,
            name=name,
            model=job.model,
            weights=str(job.weights) if job.weights else None,
            device=job.device,
            precision=job.precision,
            batch=job.batch,
            batch_timeout_ms=job.batch_timeout_ms,
            num_threads=max(1, num_cores() // job.workers),
        )

    def _decode_task(self, stream: StreamConfig) -> DecodeTask:
        num_threads = max(1, min(4, num_cores() // len(self._job.streams)))
        return DecodeTask(redis_url=self._bus.url, stream_id=stream.stream_id, num_threads=num_threads)

    def _sink_task(self, stream: StreamConfig) -> SinkTask:
        return SinkTask(
            redis_url=self._bus.url,
            stream_id=stream.stream_id,
            output=str(self._job.output),
            save=list(self._job.save),
            overwrite=True,  # build_job has refused the results of earlier runs, unless the user gave --overwrite
        )


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
