"""A worker as a process on a real bus, without a supervisor."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from support.paths import ROOT

from pipeline.contract.path_json import encode_with_paths
from workers.tasks import Task


class WorkerProcess:
    """A worker process. The lines of its standard error are appended to `lines`."""

    def __init__(self, task: Task, preexec: Callable[[], None] | None, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workers", *task.label.split()],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=preexec,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(encode_with_paths(task).decode() + "\n")
        self.process.stdin.flush()
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(line.rstrip("\n") for line in self.process.stderr)

    def wait(self, timeout_s: float) -> int:
        """Wait for the end and return the exit code. Fail with the lines so far if it takes longer."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s: {self.lines}") from None
        self._reader.join(10)
        return code

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait for a line that contains the text."""
        deadline_s = time.monotonic() + timeout_s
        while not any(text in line for line in self.lines):
            assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.lines}"
            assert time.monotonic() < deadline_s, f"no line with {text!r} after {timeout_s} s: {self.lines}"
            time.sleep(0.05)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def worker_process(
    task: Task, preexec: Callable[[], None] | None = None, **environment: str
) -> Iterator[WorkerProcess]:
    """Run the worker of this task. If the worker still runs at the end of the block, it is killed.

    preexec   called in the process before the worker starts, for example to set a limit
    """
    worker = WorkerProcess(task, preexec, environment)
    try:
        yield worker
    finally:
        worker.close()
