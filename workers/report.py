"""What a job tells the user: log lines, the state of streams and workers, summary.json."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

import msgspec

from pipeline.bus import Bus, StreamStatus, WorkerStatus
from pipeline.contract.exports import EXPORTS, SUMMARY_NAME, has_content
from pipeline.exports.summary import StreamSummary, write_summary
from pipeline.job.build import Job
from pipeline.redaction import redact_url


class JobObserver(Protocol):
    """Receives the progress of a job."""

    def update(self, statuses: list[StreamStatus], workers: list[WorkerStatus]) -> None:
        """Called several times per second with the state of every stream and worker."""

    def message(self, level: str, text: str) -> None:
        """Called with a line for the user; `level` is debug, info, warning or error."""


class JobReport:
    """Collects what the workers and the supervisor report, and gives it to the observer in the main thread."""

    def __init__(self, job: Job, bus: Bus, observer: JobObserver) -> None:
        self._job = job
        self._bus = bus
        self._observer = observer
        self._lines: deque[tuple[str, str]] = deque()
        self.statuses: dict[str, StreamStatus] = {}
        """stream id -> the latest status"""

    def tell(self, level: str, text: str) -> None:
        """Report a line; may be called in any thread."""
        self._lines.append((level, text))

    def show_lines(self) -> None:
        """Give the lines to the observer."""
        while self._lines:
            self._observer.message(*self._lines.popleft())

    def refresh(self) -> None:
        """Read the state of streams and workers, and give it to the observer. Raises LOST_CONNECTION."""
        self.show_lines()
        self.statuses = {
            stream.stream_id: self._bus.stream_status(stream.stream_id, stream) for stream in self._job.streams
        }
        self._observer.update(list(self.statuses.values()), self._bus.worker_statuses())

    def is_over(self, stream_id: str) -> bool:
        """Whether the result log of the stream has its end message."""
        return stream_id in self.statuses and self.statuses[stream_id].is_over

    def report_incomplete_files(self, stream_ids: Iterable[str]) -> None:
        """Report which result files of these streams have no end message."""
        paths = [
            EXPORTS["jsonl"].path(self._job.output, stream)
            for stream in self._job.streams
            if stream.stream_id in set(stream_ids) and "jsonl" in self._job.save
        ]
        if found := [str(path) for path in paths if has_content(path)]:
            self.tell("warning", f"no end message in {', '.join(found)}: the job ended before its streams")

    def report_unpublished(self) -> None:
        """Report results that are in the log but not on the channel; Redis before 7.0 cannot tell it at the start."""
        for status in self.statuses.values():
            if warning := status.unpublished_warning:
                self.tell("warning", warning)

    def write_summary(self, *, interrupted: bool) -> None:
        """Write summary.json from what the sinks stored. Raises OutputError, LOST_CONNECTION."""
        summaries = {}
        for stream in self._job.streams:
            payload = self._bus.stream_summary(stream.stream_id)
            if payload:
                summary = msgspec.json.decode(payload, type=StreamSummary)
            elif interrupted:
                summary = StreamSummary(stream_id=stream.stream_id, reason="stopped")
            else:
                continue
            summary.source = redact_url(stream.source)
            summaries[stream.stream_id] = summary
        write_summary(self._job.output / SUMMARY_NAME, summaries)
