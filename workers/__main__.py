"""`python -m workers LABEL`: one worker process, as the supervisor starts it; `python -m workers job`: a whole job.

The first line of standard input holds the task or the job as JSON. It does not stand in the arguments, which every user
of the host can read, because it may contain passwords. LABEL only names the worker in the list of processes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

import msgspec

from pipeline.bus import Bus
from pipeline.bus.malloc import keep_large_blocks
from pipeline.contract.path_json import decode_with_paths
from workers.base import Life, Reconnecting, exit_code_of, set_up_logging
from workers.roles import ROLES
from workers.tasks import Task


def run_task(task: Task) -> int:
    """Run one worker in this process; returns its exit code."""
    # OpenMP reads this when torch is loaded. Its waiting threads would spin and take the cores from decode, sink and
    # Redis: on two busy cores that gave 4 frames per second instead of 12.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_large_blocks()
    life = Life()
    life.install_signal_handlers()
    set_up_logging(task.label)
    role = ROLES[task.role]

    def work() -> None:
        with contextlib.closing(Bus(task.redis_url)) as bus, bus.explained_errors():
            Reconnecting(life)(bus.client.ping)
            importlib.import_module(role.module).run(task, life)

    return exit_code_of(work, role.memory_advice)


class _RoleOnly(msgspec.Struct):
    role: str


def decode_task(encoded: bytes) -> Task:
    """The task whose JSON is `encoded`. Raises msgspec.DecodeError, or KeyError for an unknown role."""
    role = msgspec.json.decode(encoded, type=_RoleOnly).role
    task: Task = decode_with_paths(encoded, ROLES[role].task)
    return task


def _main() -> int:
    # a file object of its own: what it has read ahead is not missed, since nothing follows the line
    with os.fdopen(os.dup(0), "rb") as file:
        encoded = file.readline()
    if sys.argv[1:] == ["job"]:
        from workers.job import run_encoded_job

        return run_encoded_job(encoded)
    return run_task(decode_task(encoded))


if __name__ == "__main__":
    code = _main()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; the orderly removal of torch's modules would take 1.4 s
