"""`python -m workers WHAT`: one worker, as the supervisor starts it.

Its task, the JSON of one of `workers.tasks`, is the first line of standard input: a Redis URL holds a password, and the
arguments of a process can be read by everybody. WHAT is for the eyes of whoever lists processes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

from pipeline.bus import Bus
from pipeline.bus.allocator import keep_large_blocks
from pipeline.contract.path_json import decode_with_paths
from workers.base import Life, Reconnecting, exit_code_of, set_up_logging
from workers.tasks import Task, describe


def run_task(task: Task) -> int:
    """Run one worker in this process; its exit code."""
    # OpenMP's threads spin while they wait, and read this when torch is loaded; decode, sink and Redis need the cores:
    # on two cores with others at work, 12 frames a second instead of 4
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_large_blocks()
    life = Life()
    life.install_signal_handlers()
    set_up_logging(describe(task))
    role = importlib.import_module(f"workers.{task.__struct_config__.tag}")

    def work() -> None:
        with contextlib.closing(Bus(task.redis_url)) as bus:
            Reconnecting(bus, life).wait()
        role.run(task, life)

    return exit_code_of(work)


def _main() -> int:
    encoded = os.fdopen(os.dup(0), "rb").readline()
    if sys.argv[1:] == ["job"]:
        from workers.job import run_encoded_job

        return run_encoded_job(encoded)
    task: Task = decode_with_paths(encoded, Task)
    return run_task(task)


if __name__ == "__main__":
    code = _main()
    sys.stderr.flush()
    os._exit(code)  # everything is closed; taking torch's modules down in order would hold up the end by 1.4 s
