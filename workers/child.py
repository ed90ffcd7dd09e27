"""A worker process as its parent sees it: start, restart after a crash, log lines, end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from pipeline.backoff import Backoff
from pipeline.child_path import python_path
from pipeline.contract.exit_codes import EXIT_DISCONNECTED, EXIT_DONE, EXIT_FAILED, EXIT_MEMORY, EXIT_USAGE, SUPERVISED
from pipeline.contract.path_json import encode_with_paths
from workers.oom import num_oom_kills
from workers.roles.role import Role, WorkerPosition
from workers.tasks import Task

RESTART_FIRST_PAUSE_S = 0.25
RESTART_MAX_PAUSE_S = 15.0
STEADY_S = 30.0
"""a worker without work that has run this long was healthy: its earlier crashes no longer count"""

FINAL_CODES = (EXIT_DONE, EXIT_FAILED, EXIT_USAGE)
"""exit codes by which a worker says that starting it again would not help; any other end is a crash"""

LineListener = Callable[[str, str], None]
"""called with a level (debug, warning or error) and a line of text, also from other threads than the main one"""


class Child:
    """Starts one worker, starts it again after a crash, and forwards its log lines."""

    def __init__(self, role: Role, task: Task, listener: LineListener) -> None:
        self.role = role
        self.task = task
        """the task of the worker from its next start on"""
        self.name = task.label
        self.num_crashes = 0
        """crashes since the last progress"""
        self.best: tuple[int, ...] = ()
        """the highest value so far of each element of the worker's position"""
        self.last_error = ""
        """the last line that the worker logged as an error"""
        self.last_end = ""
        """how the process ended most recently, in words"""
        self.final_code: int | None = None
        """exit code of a worker that is not started again"""
        self.completed = False
        """whether the worker ended by itself, with its work done"""
        self._unreported_error = ""
        """`last_error` until it is given to the listener; a parent that raises it reports it itself"""
        self._has_work = False
        self._leaving = False
        self._listener = listener
        self._backoff = Backoff(RESTART_FIRST_PAUSE_S, RESTART_MAX_PAUSE_S)
        self._start_at_s = 0.0
        self._started_at_s = 0.0
        self._oom_kills_before = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def is_due(self) -> bool:
        """Whether the process is to be started: it does not run, and the pause since its last end is over."""
        return self._process is None and self.final_code is None and time.monotonic() >= self._start_at_s

    def reap(self) -> None:
        """Notice the end of the process."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._handle_exit(code)

    def start_if_due(self) -> None:
        """Start the process if it is to be started."""
        if self.is_due:
            self._start()

    def take_position(self, position: WorkerPosition) -> None:
        """Compare the worker's position with its best. After progress, earlier crashes no longer count."""
        best = self.best or tuple(-1 for _ in position.values)
        if any(value > highest for value, highest in zip(position.values, best, strict=True)):
            self.forget_crashes()
        self.best = tuple(map(max, position.values, best))
        self._has_work = position.has_work

    def forget_crashes(self) -> None:
        """Count crashes from 0 again, and restart after the shortest pause."""
        self.num_crashes = 0
        self._backoff.reset()

    def retry_with(self, task: Task) -> None:
        """Start the worker once more with another task, without a pause.

        One more crash without progress reaches MAX_CRASHES again.
        """
        self.task = task
        self.num_crashes -= 1
        self._backoff.reset()

    def terminate(self) -> None:
        """Ask the worker to finish the work that it has begun, and to end; it is not started again."""
        self._leaving = True
        if self._process is None:
            self.final_code = self.final_code if self.final_code is not None else EXIT_DONE
        else:
            self._process.terminate()

    def revive(self) -> None:
        """Start a worker again that had ended, because its work was lost on the server; this counts as a crash."""
        self.final_code = None
        self._crashed("its work was lost")

    def kill(self) -> None:
        """End the process by SIGKILL; it is not started again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close(self._process)
            self._process = None
        self.final_code = self.final_code if self.final_code is not None else EXIT_FAILED

    def kill_now(self) -> None:
        """Send SIGKILL and do not wait; for a parent that ends at once."""
        if self._process is not None:
            self._process.kill()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the process has ended; returns False if it still runs after `timeout_s`."""
        if self._process is not None:
            try:
                self._handle_exit(self._process.wait(timeout_s))
            except subprocess.TimeoutExpired:
                return False
        return True

    def _start(self) -> None:
        environment = {**os.environ, SUPERVISED: "1", "PYTHONPATH": python_path(), "PYTHONUNBUFFERED": "1"}
        if not self.role.is_multithreaded:
            environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self._started_at_s = time.monotonic()
        self._oom_kills_before = num_oom_kills()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers", *self.name.split()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(encode_with_paths(self.task) + b"\n")
                self._process.stdin.flush()
        self._reader = threading.Thread(target=self._forward, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _handle_exit(self, code: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._close(process)
        is_final = code in FINAL_CODES or self._leaving
        error, self._unreported_error = self._unreported_error, ""
        if is_final:
            self.final_code, self.completed = code, code == EXIT_DONE and not self._leaving
            if error and self.role.on_repeated_crashes != "job":  # else the job ends with this error
                self._listener("error", error)
        elif code == EXIT_DISCONNECTED:  # no crash: the supervisor reports outages of Redis itself
            self._restart_later(f"{self.name} lost Redis", "debug")
        elif code == EXIT_MEMORY:
            self._crashed(self.last_error)
        else:
            if error:
                self._listener("error", error)
            self._crashed(self._describe_end(code))

    def _describe_end(self, code: int) -> str:
        if code >= 0:
            return f"exit code {code}"
        name = signal.Signals(-code).name
        if code == -signal.SIGKILL and num_oom_kills() > self._oom_kills_before:
            return f"{name}, from the kernel because memory ran out; {self.role.memory_advice}"
        return name

    def _crashed(self, end: str) -> None:
        if not self._has_work and time.monotonic() - self._started_at_s >= STEADY_S:
            self.forget_crashes()
        self.num_crashes += 1
        self.last_end = end
        self._restart_later(f"{self.name} ended: {end}", "warning")

    def _restart_later(self, reason: str, level: str) -> None:
        pause_s = self._backoff.next_s()
        self._start_at_s = time.monotonic() + pause_s
        self._listener(level, f"{reason}; starting it again in {pause_s:.2g} s")

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        if self._reader is not None:
            self._reader.join(timeout=2.0)
        if process.stderr is not None:
            process.stderr.close()

    def _forward(self, lines: BinaryIO) -> None:
        """Give the process's lines to the listener. A line without a level, as of a stack trace, has that of the line
        before it. An error that no other line follows is kept back, see `_unreported_error`.
        """
        level = "debug"
        for raw in lines:
            line = raw.decode(errors="replace").rstrip()
            head, _, rest = line.partition(" ")
            if head in ("INFO", "WARNING", "ERROR", "CRITICAL"):
                level = {"INFO": "debug", "WARNING": "warning"}.get(head, "error")
                line = rest
            if not line:
                continue
            if self._unreported_error:
                self._listener("error", self._unreported_error)
                self._unreported_error = ""
            if head in ("ERROR", "CRITICAL"):
                self.last_error = line.partition(": ")[2]
                self._unreported_error = line
            else:
                self._listener(level, line)
