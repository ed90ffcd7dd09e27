"""What the command line prints for people: result messages, the state of streams and workers, the models."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from pipeline.bus.status import StreamStatus, WorkerStatus
from pipeline.contract.results import AnyResult, EndResult, EpochResult, EventResult, FrameResult, GapResult
from pipeline.models.registry import model_table
from pipeline.terminal.progress_table import one_line

_ROLES_OF_A_JOB = ("infer", "track")
"""those that have heartbeats; how decoders do is told by their streams"""
_FINDS = {"boxes": "boxes", "masks": "boxes and masks", "keypoints": "boxes and 17 keypoints each"}


def result_line(message: AnyResult) -> str:
    """One message as a line such as `cam1 #42 1.64 s: person 7 0.98, car 9 0.71`."""
    head = f"{message.stream_id} #{message.frame_seq}"
    match message:
        case FrameResult():
            seen = [
                f"{instance.label} {instance.track_id or '?'} {instance.score:.2f}" for instance in message.instances
            ]
            return f"{head} {message.pts_s:.2f} s: {', '.join(seen) or 'nothing'}"
        case GapResult():
            numbers = "" if message.from_seq == message.frame_seq else f" from #{message.from_seq}"
            return f"{head}: no result{numbers}: {message.cause}{_in_brackets(message.detail)}"
        case EventResult():
            what = "appears" if message.event == "track_start" else "is gone"
            return f"{head}: {message.label} {message.track_id} {what}"
        case EpochResult():
            return f"{head}: opened again, epoch {message.stream_epoch}{_in_brackets(message.detail)}"
        case EndResult():
            counts = (
                f"{message.num_frames} frames, {message.num_gap_frames} without result, {message.num_tracks} tracks"
            )
            return f"{head}: {message.reason}: {counts}{_in_brackets(message.detail)}"


def problems_of(streams: Sequence[StreamStatus], workers: Sequence[WorkerStatus]) -> list[str]:
    """What is wrong, a line each; empty when all is well or nothing runs."""
    problems = [
        f"stream {stream.stream_id} is {stream.phase}{_in_brackets(stream.error)}"
        for stream in streams
        if stream.phase in {"failed", "stalled"}
    ]
    if any(stream.phase not in {"failed", "ended"} for stream in streams):
        present = {worker.role for worker in workers}
        problems += [f"no {role} worker" for role in _ROLES_OF_A_JOB if role not in present]
    return problems


def status_lines(streams: Sequence[StreamStatus], workers: Sequence[WorkerStatus]) -> list[str]:
    """Two tables in plain text: streams, workers."""
    rows = [("stream", "state", "epoch", "frames", "behind", "instances", "tracks", "dropped", "corrupt", "source")]
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
    if workers:
        worker_rows = [("worker", "role", "state", "host", "pid", "version", "detail")]
        worker_rows += [
            (worker.name, worker.role, worker.state, worker.host, str(worker.pid), worker.version, worker.detail)
            for worker in workers
        ]
        lines += ["", *_columns(worker_rows)]
    return lines


def model_lines() -> list[str]:
    """A paragraph per model: where its weights are, what it finds, how well and on what, its licence, its classes.

    A list of classes is printed once; later models with the same classes refer to the first.
    """
    lines = []
    first_with: dict[str, str] = {}
    for row in model_table():
        spec = row.spec
        where = row.weights if row.present else f"downloaded when first used, to {row.weights}"
        aps = {"box": spec.box_ap, "mask": spec.mask_ap, "keypoint": spec.keypoint_ap}
        classes = ", ".join(spec.labels.values())
        first = first_with.setdefault(classes, spec.name)
        facts = {
            "weights": f"{where} ({spec.size_mb:g} MB)",
            "finds": _FINDS[spec.output],
            "AP": f"{', '.join(f'{of} {100 * ap:.1f}' for of, ap in aps.items() if ap is not None)}: {spec.ap_source}",
            "licence": spec.licence,
            "classes": classes if first == spec.name else f"those of {first}",
        }
        lines += ["", spec.name + (f"  (default on {row.default_for})" if row.default_for else "")]
        for name, fact in facts.items():
            lines += textwrap.wrap(
                fact, 110, initial_indent=f"  {name:9}", subsequent_indent=" " * 11, break_on_hyphens=False
            )
    return lines[1:]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Cells padded to the width of their column; numbers to the right."""
    columns = [
        [cell.rjust(width) if column[-1].isdecimal() else cell.ljust(width) for cell in column]
        for column in ([one_line(cell) for cell in cells] for cells in zip(*rows, strict=True))
        if (width := max(map(len, column)))
    ]
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]


def _in_brackets(detail: str) -> str:
    return f" ({one_line(detail)})" if detail else ""
