"""Entry point of the command line: `maskstream` and `python run_pipeline.py` run `main`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.terminal.app import CommandLine
from pipeline.terminal.run import Workers
from workers.commands import worker_app
from workers.roles import ROLES

if TYPE_CHECKING:
    from pipeline.job.build import Job
    from pipeline.terminal.progress import Display


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return COMMAND_LINE.main(arguments)


def _run_job(job: Job, display: Display) -> int:
    from workers.job import run_job  # not needed for --help

    return run_job(job, display)


_REQUIRED_ROLES = [role.name for role in ROLES.values() if role.is_required]
COMMAND_LINE = CommandLine(Workers(_run_job, _REQUIRED_ROLES), [worker_app])

if __name__ == "__main__":
    sys.exit(main())
