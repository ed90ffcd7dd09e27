"""Text output of the command line: result messages, the state of streams and workers, the models."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from msgspec import structs

from pipeline.bus.status import StreamStatus, WorkerStatus
from pipeline.contract.results import AnyResult, EndResult, EpochResult, EventResult, FrameResult, GapResult
from pipeline.models.registry import model_rows
from pipeline.terminal.progress_table import one_line

_DETECTS = {"boxes": "boxes", "masks": "boxes and masks", "keypoints": "boxes and 17 keypoints"}


MAX_GAP_SPAN_NS = 10_000_000_000
"""a run of gaps that lasts longer is printed in parts, so that a reader sees that the stream has no results"""


class ResultLines:
    """Turns result messages into lines. A run of gaps of one stream with the same cause becomes one line.

    A gap is held back until a message that does not continue the run; `rest` returns the lines that are held back.
    """

    def __init__(self) -> None:
        self._runs: dict[str, GapResult] = {}
        """stream id -> its gaps since the last line, as one gap"""

    def add(self, message: AnyResult) -> list[str]:
        """The lines that can be printed after `message` has arrived."""
        run = self._runs.get(message.stream_id)
        if isinstance(message, GapResult):
            if run is not None and _continues(run, message):
                self._runs[message.stream_id] = structs.replace(run, frame_seq=message.frame_seq)
                return []
            self._runs[message.stream_id] = message
            return [] if run is None else [result_line(run)]
        self._runs.pop(message.stream_id, None)
        return [*([] if run is None else [result_line(run)]), result_line(message)]

    def rest(self) -> list[str]:
        """The lines that were held back until now."""
        lines = [result_line(run) for run in self._runs.values()]
        self._runs.clear()
        return lines


def _continues(run: GapResult, gap: GapResult) -> bool:
    same = (run.log_id, run.stream_epoch, run.cause, run.detail) == (
        gap.log_id,
        gap.stream_epoch,
        gap.cause,
        gap.detail,
    )
    lasted_ns = gap.published_at_ns - run.published_at_ns
    return same and gap.from_seq == run.frame_seq + 1 and lasted_ns <= MAX_GAP_SPAN_NS


def result_line(message: AnyResult) -> str:
    """One message as a line such as `cam1 #42 1.64 s: person 7 0.98, car 9 0.71` (label, track id, score)."""
    head = f"{message.stream_id} #{message.frame_seq}"
    match message:
        case FrameResult():
            seen = [
                f"{instance.label} {instance.track_id or '?'} {instance.score:.2f}" for instance in message.instances
            ]
            return f"{head} {message.pts_s:.2f} s: {', '.join(seen) or 'nothing'}"
        case GapResult():
            num_frames = message.frame_seq - message.from_seq + 1
            span = f"from #{message.from_seq} ({num_frames} frames)" if num_frames > 1 else "(1 frame)"
            return f"{head}: no result {span}: {message.cause}{_in_brackets(message.detail)}"
        case EventResult():
            verb = "starts" if message.event == "track_start" else "ends"
            return f"{head}: track {message.track_id} ({message.label}) {verb}"
        case EpochResult():
            return f"{head}: source reopened, epoch {message.stream_epoch}{_in_brackets(message.detail)}"
        case EndResult():
            counts = f"{message.num_frames} frames, {message.num_gap_frames} dropped, {message.num_tracks} tracks"
            return f"{head}: {message.reason}: {counts}{_in_brackets(message.detail)}"


def problems_of(
    streams: Sequence[StreamStatus], workers: Sequence[WorkerStatus], required_roles: Sequence[str]
) -> list[str]:
    """One line per problem of the streams and workers; an empty list if there is none, or nothing runs.

    required_roles   roles of which a running stream needs a worker with a heartbeat
    """
    problems = [
        f"stream {stream.stream_id} is {stream.phase}{_in_brackets(stream.error)}"
        for stream in streams
        if stream.phase in {"failed", "truncated", "stalled"}
    ]
    if not all(stream.is_over for stream in streams):
        present = {worker.role for worker in workers}
        problems += [f"no {role} worker" for role in required_roles if role not in present]
    return problems


def status_lines(streams: Sequence[StreamStatus], workers: Sequence[WorkerStatus]) -> list[str]:
    """Two tables in plain text: the streams and the workers."""
    rows = [("stream", "state", "epoch", "frames", "queued", "instances", "tracks", "dropped", "corrupt", "source")]
    rows += [
        (
            stream.stream_id,
            stream.phase,
            str(stream.stream_epoch),
            str(stream.num_frames),
            str(stream.last_seq - stream.seq),
            str(stream.num_instances),
            str(stream.num_tracks),
            str(sum(stream.gaps.values())),
            str(stream.num_corrupt),
            stream.source,
        )
        for stream in streams
    ]
    lines = _columns(rows) if streams else ["no streams"]
    lines += [warning for stream in streams if (warning := stream.unpublished_warning)]
    if workers:
        worker_rows = [("worker", "role", "state", "host", "pid", "version", "detail")]
        worker_rows += [
            (worker.name, worker.role, worker.state, worker.host, str(worker.pid), worker.version, worker.detail)
            for worker in workers
        ]
        lines += ["", *_columns(worker_rows)]
    return lines


def model_lines() -> list[str]:
    """One paragraph per model: its weights, what it detects, its average precision, its licence, its classes.

    A list of classes is printed once; further models with the same classes refer to the first.
    """
    lines = []
    first_with: dict[str, str] = {}
    for row in model_rows():
        spec = row.spec
        where = row.weights if row.present else f"will be downloaded on first use to {row.weights}"
        aps = {"box": spec.box_ap, "mask": spec.mask_ap, "keypoint": spec.keypoint_ap}
        classes = ", ".join(spec.labels.values())
        first = first_with.setdefault(classes, spec.name)
        facts = {
            "weights": f"{where} ({spec.size_mb:g} MB)",
            "detects": _DETECTS[spec.output],
            "AP": f"{', '.join(f'{of} {100 * ap:.1f}' for of, ap in aps.items() if ap is not None)}: {spec.ap_source}",
            "licence": spec.licence,
            "classes": classes if first == spec.name else f"the same as {first}",
        }
        lines += ["", spec.name + (f"  (default on {row.default_for})" if row.default_for else "")]
        for name, fact in facts.items():
            lines += textwrap.wrap(
                fact, 110, initial_indent=f"  {name:9}", subsequent_indent=" " * 11, break_on_hyphens=False
            )
    return lines[1:]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines in which each cell is padded to the width of its column; numbers are right-aligned."""
    columns = [
        [cell.rjust(width) if column[-1].isdecimal() else cell.ljust(width) for cell in column]
        for column in ([one_line(cell) for cell in cells] for cells in zip(*rows, strict=True))
        if (width := max(map(len, column)))
    ]
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def _in_brackets(detail: str) -> str:
    return f" ({one_line(detail)})" if detail else ""
