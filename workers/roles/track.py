"""The role `track`: puts the detections of each stream in order, tracks them and commits the results."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from workers.roles.role import Role, Statuses, WorkerPosition
from workers.tasks import NamedTask

if TYPE_CHECKING:
    from pipeline.bus import Bus
    from pipeline.contract.config import JobConfig
    from pipeline.job.build import Job
    from pipeline.terminal import options as cli


@dataclass(frozen=True, kw_only=True)
class TrackTask(NamedTask):
    """Track every stream that no other worker tracks."""

    role: Literal["track"] = "track"


def tasks(job: Job, redis_url: str) -> Sequence[TrackTask]:
    """One worker for all streams."""
    return [TrackTask(redis_url=redis_url, name=_default_name())]


def position(task: TrackTask, statuses: Statuses) -> WorkerPosition:
    """The number of the last result, summed over the streams."""
    return WorkerPosition(
        (sum(status.seq for status in statuses.values()),),
        has_work=any(status.last_seq > status.seq for status in statuses.values()),
    )


def command(config: JobConfig, bus: Bus, *, name: cli.WorkerNameFlag = None) -> TrackTask:
    """Track the detections of every stream that has no tracker yet, and commit the results in order."""
    bus.check()
    return TrackTask(redis_url=bus.url, name=name or _default_name())


def _default_name() -> str:
    return f"track-{socket.gethostname()}-{os.getpid()}"


ROLE = Role(
    task=TrackTask,
    module="workers.track",
    tasks=tasks,
    position=position,
    on_repeated_crashes="job",
    command=command,
    example="maskstream worker track",
    is_required=True,
)
