"""The role `sink`: writes the results of one stream to files. One worker per stream, if a job saves anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from workers.roles.role import Role, Statuses, WorkerPosition
from workers.tasks import StreamTask

if TYPE_CHECKING:
    import typer

    from pipeline.bus import Bus
    from pipeline.contract.config import JobConfig
    from pipeline.job.build import Job
    from pipeline.terminal import options as cli

SINK_NAME = "output"
"""name of the sink as a required reader of the result log"""


@dataclass(frozen=True, kw_only=True)
class SinkTask(StreamTask):
    """Write one stream's results to files."""

    role: Literal["sink"] = "sink"
    output: str
    """folder of the files"""
    save: list[str]
    """names of exports"""
    overwrite: bool = False
    """whether the files may replace the results of an earlier run"""


def tasks(job: Job, redis_url: str) -> Sequence[SinkTask]:
    """One sink per stream; none if the job saves nothing."""
    if not job.save:
        return []
    return [
        SinkTask(
            redis_url=redis_url,
            stream_id=stream.stream_id,
            output=str(job.output),
            save=list(job.save),
            overwrite=True,  # build_job has refused the results of earlier runs, unless the user gave --overwrite
        )
        for stream in job.streams
    ]


def position(task: SinkTask, statuses: Statuses) -> WorkerPosition:
    """The number of the last result that is safe in the files."""
    status = statuses[task.stream_id]
    written = status.sinks.get(SINK_NAME, 0)
    return WorkerPosition((written,), has_work=status.seq > written or status.is_over)


def command(
    config: JobConfig,
    bus: Bus,
    *,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="id of the stream")],
    output: Annotated[str, cli.option("--output", "folder for the result files", "DIR", cli.RESULT_PANEL)],
    save: cli.SaveFlag = None,
    overwrite: cli.OverwriteFlag = None,
) -> SinkTask:
    """Write the results of one stream to files. A restarted worker continues at the end of its files."""
    from pipeline.job.build import make_output_folder

    bus.check()
    return SinkTask(
        redis_url=bus.url,
        stream_id=stream,
        output=str(make_output_folder(output, [stream])),
        save=list(config.save),
        overwrite=config.overwrite,
    )


ROLE = Role(
    task=SinkTask,
    module="workers.sink",
    tasks=tasks,
    position=position,
    on_repeated_crashes="outputs",
    command=command,
    example="maskstream worker sink door --output out",
    is_awaited=True,
    reader=SINK_NAME,
)
