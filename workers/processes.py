"""The worker processes of one job, by role."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from pipeline.bus.status import StreamStatus
from pipeline.job.build import Job
from workers.child import Child, LineListener
from workers.roles import ROLES
from workers.roles.role import Role
from workers.tasks import NamedTask, StreamTask


class Processes:
    """Creates a child for each task of a job, without starting it."""

    def __init__(self, job: Job, redis_url: str, listener: LineListener) -> None:
        self._children = [Child(role, task, listener) for role in ROLES.values() for task in role.tasks(job, redis_url)]

    def __iter__(self) -> Iterator[Child]:
        return iter(self._children)

    def where(self, condition: Callable[[Role], bool]) -> list[Child]:
        """The children whose role fulfils the condition."""
        return [child for child in self._children if condition(child.role)]

    @property
    def sources(self) -> dict[str, Child]:
        """Stream id -> the child that produces its frames."""
        found = ((child.task, child) for child in self.where(lambda role: role.is_source))
        return {task.stream_id: child for task, child in found if isinstance(task, StreamTask)}

    @property
    def heartbeats(self) -> list[tuple[str, str]]:
        """(role, name) of every heartbeat that must say `running` before the sources start."""
        found = ((child.task, child) for child in self.where(lambda role: role.is_required))
        return [(child.role.name, task.name) for task, child in found if isinstance(task, NamedTask)]

    @property
    def readers(self) -> list[str]:
        """Names of the job's workers as required readers of the result logs."""
        return list(dict.fromkeys(child.role.reader for child in self._children if child.role.reader))

    def take_positions(self, statuses: Mapping[str, StreamStatus]) -> None:
        """Tell each child how far its worker has got."""
        for child in self._children:
            child.take_position(child.role.position(child.task, statuses))

    def stop(self, timeout_s: float) -> None:
        """Ask every worker to end, the sources first; kill those that still run after `timeout_s`."""
        children = sorted(self._children, key=lambda child: not child.role.is_source)
        for child in children:
            child.terminate()
        until_s = time.monotonic() + timeout_s
        for child in children:
            if not child.wait(max(0.0, until_s - time.monotonic())):
                child.kill()
