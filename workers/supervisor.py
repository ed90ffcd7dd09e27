"""The phases of a job: start the workers, wait until they are ready, work, drain, leave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from types import FrameType

from pipeline.bus import LOST_CONNECTION, Bus, EmbeddedRedis
from pipeline.contract.config import StreamConfig
from pipeline.contract.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from pipeline.errors import MaskStreamError, OutputError, UsageError
from pipeline.job.build import Job
from pipeline.redaction import redact_url
from workers.child import Child
from workers.outage import RedisWatch
from workers.processes import Processes
from workers.report import JobObserver, JobReport
from workers.source_probe import SourceProbe
from workers.stream_ender import StreamEnder

TICK_S = 0.1
JOB_DRAIN_S = 60.0
"""drain deadline of a job: maximum time from the request to stop until its frames in flight are finished"""
STOP_S = 5.0
"""maximum time for the workers to end at the end of the job"""
HARD_EXIT_S = 3.0
"""the process ends this long after the second signal, even if a call on Redis does not return"""
MAX_CRASHES = 4
"""number of crashes without progress in between after which `on_repeated_crashes` of the role says what happens; the
decoder of a live source is restarted without a limit"""


class Supervisor:
    """The parent of one job's workers."""

    def __init__(self, job: Job, bus: Bus, server: EmbeddedRedis | None, observer: JobObserver) -> None:
        """server   the job's private server; None if the server outlives the job"""
        self._job = job
        self._bus = bus
        self._server = server
        self._report = JobReport(job, bus, observer)
        self._watch = RedisWatch(bus, server, self._report.tell)
        self._processes = Processes(job, bus.url, self._report.tell)
        self._stream_ender = StreamEnder(bus)
        self._is_ready = False
        """whether the sources may start; before that, the bus holds no frames"""
        self._num_signals = 0
        self._drain_until_s: float | None = None
        self._output_failed = False
        self._begun: list[str] = []

    def run(self) -> int:
        """Run the job to its end and return the exit code. Raises MaskStreamError if the job cannot continue."""
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for stream in self._job.streams:
                self._bus.begin_job(stream, [*self._processes.readers, *self._job.readers])
                self._begun.append(stream.stream_id)
            self._wait_until_ready()
            if self._is_ready:
                self._work()
            with self._watch:
                self._report.refresh()
                self._report.report_unpublished()
            return self._exit_code()
        finally:
            try:
                self._leave()
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)

    # -- the phases ---------------------------------------------------------------------------------------------------

    def _wait_until_ready(self) -> None:
        """Start every worker but the sources.

        Wait until the required workers are ready, the job is over, an output has failed or a stop is requested.
        """
        needed = set(self._processes.heartbeats)
        with contextlib.closing(SourceProbe(self._job.streams)) as probe:
            while not (self._num_signals or self._output_failed or self._is_over()):
                with self._watch:
                    self._end_unreadable_streams(probe)
                    self._tend(self._processes.where(lambda role: not role.is_source))
                    if needed <= {
                        (beat.role, beat.name) for beat in self._bus.worker_statuses() if beat.state == "running"
                    }:
                        self._is_ready = True
                        return
                time.sleep(TICK_S)

    def _end_unreadable_streams(self, probe: SourceProbe) -> None:
        """Report the sources that cannot be read, and end their streams without starting their decoders."""
        streams = {stream.stream_id: stream for stream in self._job.streams}
        for stream_id, problem in probe.take_failures():
            child = self._processes.sources[stream_id]
            self._report.tell("error", f"{child.name}: {problem}")
            child.terminate()
            self._bus.set_status(stream_id, source=redact_url(streams[stream_id].source))
            self._stream_ender.add(streams[stream_id], "failed", problem)
        self._stream_ender.write_ends()

    def _work(self) -> None:
        """Run until every stream is over and its outputs are written.

        Return early when the drain deadline has passed or a second signal arrives.
        """
        while not self._is_over():
            with self._watch:
                self._tend(list(self._processes))
                self._end_abandoned_streams()
            if self._num_signals > 0 or self._output_failed:
                self._drain()
            if self._num_signals > 1 or time.monotonic() > (self._drain_until_s or float("inf")):
                return
            time.sleep(TICK_S)

    def _is_over(self) -> bool:
        awaited = self._processes.where(lambda role: role.is_awaited)
        return all(self._report.is_over(stream.stream_id) for stream in self._job.streams) and all(
            child.final_code is not None for child in awaited
        )

    def _drain(self) -> None:
        """Stop the sources; frames that are on the bus are still inferred, tracked and written."""
        if self._drain_until_s is None:
            self._drain_until_s = time.monotonic() + JOB_DRAIN_S
            if self._num_signals:
                self._report.tell("warning", "finishing the frames in flight; press Ctrl-C again to leave at once")
            for child in self._processes.sources.values():
                child.terminate()

    def _leave(self) -> None:
        self._processes.stop(STOP_S if self._is_ready and self._num_signals < 2 else 0.0)
        self._report_incomplete_files()
        self._report.show_lines()
        if self._watch.is_unreachable:
            return
        with contextlib.suppress(*LOST_CONNECTION):
            try:
                self._write_summary()
            finally:
                self._clean_up()

    def _clean_up(self) -> None:
        """Remove the job from a server that outlives it, except for the result logs, which expire later."""
        if self._server is not None:
            return
        for stream_id in self._begun:
            self._bus.finish_job(stream_id, self._job.result_ttl_s)
        for role, name in self._processes.heartbeats:
            self._bus.forget_worker(role, name)

    # -- restarts -----------------------------------------------------------------------------------------------------

    def _tend(self, children: list[Child]) -> None:
        """Start the children, restart crashed ones, and act on those that crash repeatedly without progress.

        Also refreshes the report and takes the positions of the workers from it. Raises JobLostError if
        Redis lost the job, BusError if another job took its stream id, and UsageError or MaskStreamError if a worker
        that the job needs cannot be kept running.
        """
        self._watch.check_jobs()
        for child in children:
            child.reap()
        self._report.refresh()
        self._processes.take_positions(self._report.statuses)
        for child in children:
            # Results of the worker's last frames may be committed during the pause before a restart. They count as
            # progress, so the decision waits for the end of the pause.
            if child.is_due and child.num_crashes >= MAX_CRASHES:
                self._handle_repeated_crashes(child)
            self._check_end(child)
            child.start_if_due()

    def _handle_repeated_crashes(self, child: Child) -> None:
        """Act on a worker that crashed MAX_CRASHES times without progress, as its role says (`on_repeated_crashes`)."""
        problem = f"{child.name} cannot be kept running: {child.num_crashes} crashes without progress; {child.last_end}"
        if child.last_end == "SIGKILL":
            problem += f" (the kernel sends it when memory runs out; {child.role.memory_advice})"
        if child.role.on_repeated_crashes == "job":
            raise MaskStreamError(problem)
        if child.role.on_repeated_crashes == "outputs":
            self._report.tell("error", problem)
            child.kill()
        elif (stream := self._stream_of(child)) is not None and not stream.live:
            self._step_over_or_end(child, stream, problem)

    def _step_over_or_end(self, child: Child, stream: StreamConfig, problem: str) -> None:
        """Leave out the frame on which the worker crashes. End the stream if that is not possible or did not help."""
        status = self._report.statuses[stream.stream_id]
        task = child.role.step_over(child.task, child.best, status) if child.role.step_over else None
        if task is None:
            child.kill()
            self._stream_ender.add(stream, "failed", problem)
        else:
            self._report.tell("warning", f"{child.name} keeps crashing without progress; leaving out the next frame")
            child.retry_with(task)

    def _check_end(self, child: Child) -> None:
        """Act on a worker that ended for good."""
        if child.final_code is None:
            return
        if child.role.on_repeated_crashes == "job":
            if child.final_code == EXIT_USAGE:
                raise UsageError(child.last_error)
            raise MaskStreamError(f"{child.name} cannot be kept running: {child.last_error or child.last_end}")
        if child.role.on_repeated_crashes == "outputs" and child.final_code != EXIT_DONE:
            self._output_failed = True

    def _end_abandoned_streams(self) -> None:
        """Act on source workers that exited without writing the end of the source: end the stream while draining, else
        restart the worker.
        """
        for stream in self._job.streams:
            stream_id, child = stream.stream_id, self._processes.sources[stream.stream_id]
            if child.final_code is None or stream_id in self._stream_ender or self._report.is_over(stream_id):
                continue
            if self._bus.source_ended(stream_id):
                continue
            if self._drain_until_s is not None:
                self._stream_ender.add(stream, "stopped", "")
            else:  # the server lost its latest writes, among them the end of the source
                child.revive()
        self._stream_ender.write_ends()

    def _stream_of(self, child: Child) -> StreamConfig | None:
        sources = self._processes.sources
        return next((stream for stream in self._job.streams if sources.get(stream.stream_id) is child), None)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _exit_code(self) -> int:
        if self._num_signals:
            return EXIT_INTERRUPTED
        failed = [status for status in self._report.statuses.values() if status.phase in ("failed", "truncated")]
        return EXIT_FAILED if failed or self._output_failed else EXIT_DONE

    def _report_incomplete_files(self) -> None:
        writers = self._processes.where(lambda role: role.on_repeated_crashes == "outputs")
        cut_short = [child for child in writers if not child.completed and child.final_code == EXIT_DONE]
        self._report.report_incomplete_files(
            stream_id for child in cut_short if (stream_id := getattr(child.task, "stream_id", None)) is not None
        )

    def _write_summary(self) -> None:
        if not self._job.save:
            return
        try:
            self._report.write_summary(interrupted=self._num_signals > 0)
        except OutputError:
            if not self._output_failed:  # else another file in the same folder was reported
                raise

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._num_signals += 1
        if self._num_signals == 2:
            timer = threading.Timer(HARD_EXIT_S, self._hard_exit)
            timer.daemon = True
            timer.start()

    def _hard_exit(self) -> None:
        for child in self._processes:
            child.kill_now()
        os._exit(EXIT_INTERRUPTED)
