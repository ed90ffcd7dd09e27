"""What the supervisor and the command line need to know of a worker role."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from workers.tasks import Task

if TYPE_CHECKING:
    from pipeline.bus.status import StreamStatus
    from pipeline.job.build import Job

Statuses: TypeAlias = "Mapping[str, StreamStatus]"
"""stream id -> status, for every stream of the job"""


class WorkerPosition(NamedTuple):
    """How far a worker has got."""

    values: tuple[int, ...]
    """the worker makes progress when one of these exceeds its highest value so far"""
    has_work: bool
    """whether the worker has something to do: one without work cannot make progress"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One row of the table of roles.

    A worker that crashes is restarted after a pause that grows with each crash. When it has crashed repeatedly without
    progress in between, the supervisor leaves out the frame on which it crashes (`step_over`) or gives up on the worker
    (`on_repeated_crashes`).
    """

    task: type[Task]
    """the default of its field `role` is the name of the role"""
    module: str
    """import path of the module with `run(task, life)`, which does the work; loaded in the worker process only"""
    tasks: Callable[[Job, str], Sequence[Task]]
    """the tasks of one job on the Redis server with this URL: one worker process for each"""
    position: Callable[[Any, Statuses], WorkerPosition]
    """how far the worker with this task has got"""
    on_repeated_crashes: Literal["job", "stream", "outputs"]
    """what happens when a worker crashes repeatedly without progress, or ends with an error:

    job      the job ends with an error
    stream   the stream of the worker ends as failed, unless `step_over` helps; the worker of a live stream that
             crashes is restarted without a limit
    outputs  an output cannot be written: the job finishes the frames in flight, then ends
    """
    step_over: Callable[[Any, tuple[int, ...], StreamStatus], Task | None] | None = None
    """`step_over(task, best, status)`: the task that leaves out the frame on which the worker of one stream crashes
    again and again; None if there is no such frame, or if leaving out more of them would be too much"""
    command: Callable[..., Task]
    """the verb `maskstream worker NAME`: `command(config, bus, **flags)` checks the flags, calls `bus.check` and
    returns the task. Its docstring is the help text; its flags are declared like those of the other verbs"""
    example: str
    """a command line for the help text"""
    memory_advice: str = "free memory on this host"
    """what to do if the worker runs out of memory"""
    is_required: bool = False
    """whether every stream needs a worker of this role. Such a worker writes a heartbeat (`Bus.beat`): the sources
    start when the heartbeats of all required workers say `running`, and `maskstream status` reports a missing one"""
    is_source: bool = False
    """whether the worker produces frames: it starts after all others, and is the first to stop"""
    is_awaited: bool = False
    """whether the job waits for the worker to end by itself after its stream has ended"""
    reader: str | None = None
    """name of the worker as a required reader of the result log, which keeps results until the worker has read them;
    None for a role that reads no results"""
    is_multithreaded: bool = False
    """whether the worker may use all cores; the libraries of other workers are limited to one thread"""

    @property
    def name(self) -> str:
        """Name of the role."""
        return str(next(field.default for field in fields(self.task) if field.name == "role"))
