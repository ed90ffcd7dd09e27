"""The role `infer`: runs one model on the frames of all streams. `--workers` sets their number."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from workers.roles.decode import num_cores
from workers.roles.role import Role, Statuses, WorkerPosition
from workers.tasks import NamedTask

if TYPE_CHECKING:
    from pipeline.bus import Bus
    from pipeline.contract.config import JobConfig
    from pipeline.job.build import Job
    from pipeline.terminal import options as cli


@dataclass(frozen=True, kw_only=True)
class InferTask(NamedTask):
    """Run one model on the frames of all streams that use it."""

    role: Literal["infer"] = "infer"
    model: str
    weights: str | None
    device: str
    precision: str
    batch: int
    """maximum number of frames in one forward pass"""
    batch_timeout_ms: float
    num_threads: int | None = None
    """threads of torch on the CPU; None for all cores"""


def tasks(job: Job, redis_url: str) -> Sequence[InferTask]:
    """`job.workers` infer workers that share the cores."""
    prefix = f"infer-{socket.gethostname()}-{os.getpid()}"
    return [
        InferTask(
            redis_url=redis_url,
            name=f"{prefix}-{index}",
            model=job.model,
            weights=str(job.weights) if job.weights else None,
            device=job.device,
            precision=job.precision,
            batch=job.batch,
            batch_timeout_ms=job.batch_timeout_ms,
            num_threads=max(1, num_cores() // job.workers),
        )
        for index in range(1, job.workers + 1)
    ]


def position(task: InferTask, statuses: Statuses) -> WorkerPosition:
    """The number of frames with a result, summed over the streams. Gaps do not count, because a frame that
    repeatedly crashes the worker also becomes a gap.
    """
    num_frames = sum(status.num_frames for status in statuses.values())
    return WorkerPosition((num_frames,), has_work=any(status.last_seq > status.seq for status in statuses.values()))


def command(
    config: JobConfig,
    bus: Bus,
    *,
    model: cli.RequiredModelFlag,
    weights: cli.WeightsFlag = None,
    device: cli.DeviceFlag = None,
    precision: cli.PrecisionFlag = None,
    batch: cli.BatchFlag = None,
    batch_timeout_ms: cli.BatchTimeoutFlag = None,
    name: cli.WorkerNameFlag = None,
) -> InferTask:
    """Run a model on the frames of all streams that use this model."""
    from pipeline.models.registry import get_model

    spec = get_model(model)
    bus.check()
    return InferTask(
        redis_url=bus.url,
        name=name or f"infer-{socket.gethostname()}-{os.getpid()}",
        model=spec.name,
        weights=config.weights,
        device=config.device,
        precision=config.precision,
        batch=config.batch,
        batch_timeout_ms=config.batch_timeout_ms,
    )


ROLE = Role(
    task=InferTask,
    module="workers.infer",
    tasks=tasks,
    position=position,
    on_repeated_crashes="job",
    command=command,
    example="maskstream worker infer --model street --device cuda",
    memory_advice="lower --batch or --workers, or use a smaller model",
    is_required=True,
    is_multithreaded=True,
)
