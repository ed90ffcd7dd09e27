"""A worker process as its parent sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from pipeline.contract.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, SUPERVISED
from pipeline.contract.path_json import encode_with_paths
from workers.tasks import InferTask, Task, TrackTask, describe

RESTART_FIRST_S = 0.25
RESTART_MOST_S = 15.0
STEADY_S = 30.0
"""a worker that lived so long has proved itself: its deaths are counted anew"""

FINAL_CODES = (EXIT_DONE, EXIT_FAILED, EXIT_USAGE)
"""a worker that chose one of these will choose it again; any other end is a crash, or a role held by somebody else"""

_ROOT = Path(__file__).resolve().parent.parent

Listener = Callable[[str, str], None]
"""called with a level (debug, warning, error) and a line of text, from a thread of its own"""


class Child:
    """Starts one worker, starts it again with growing pauses when it crashes, passes on what it says."""

    def __init__(self, task: Task, listener: Listener) -> None:
        self.task = task
        self.name = describe(task)
        self.num_crashes = 0
        """since the last steady time"""
        self.last_error = ""
        """the last line it wrote as an error"""
        self._last_words = ""
        """the same while nothing follows it: it may be what the parent ends with, and be told there"""
        self.final_code: int | None = None
        """its exit code once it is over for good"""
        self._leaving = False
        self._listener = listener
        self._start_at_s = 0.0
        self._started_at_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    def tend(self) -> None:
        """Notice that it ended, start it when it is time. To be called in a loop."""
        if self._process is not None and (code := self._process.poll()) is not None:
            self._bury(code)
        if self._process is None and self.final_code is None and time.monotonic() >= self._start_at_s:
            self._start()

    def terminate(self) -> None:
        """Ask it to finish what it holds and leave; it is not started again."""
        self._leaving = True
        if self._process is None:
            self.final_code = self.final_code if self.final_code is not None else EXIT_DONE
        else:
            self._process.terminate()

    def revive(self) -> None:
        """What it did was lost after it had ended: start it again, as after a crash."""
        self.final_code = None
        self._count_crash("its work was lost")

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close(self._process)
            self._process = None
        self.final_code = self.final_code if self.final_code is not None else EXIT_FAILED

    def wait(self, timeout_s: float) -> bool:
        """Whether it was over within the time."""
        if self._process is not None:
            try:
                self._bury(self._process.wait(timeout_s))
            except subprocess.TimeoutExpired:
                return False
        return True

    def _start(self) -> None:
        environment = {**os.environ, SUPERVISED: "1", "PYTHONPATH": _python_path(), "PYTHONUNBUFFERED": "1"}
        if not isinstance(self.task, InferTask):  # these keep one core busy; pools of threads would only fight over it
            environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self._started_at_s = time.monotonic()
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
        self._reader = threading.Thread(target=self._pass_on, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def _bury(self, code: int) -> None:
        process, self._process = self._process, None
        if process is not None:
            self._close(process)
        over = code in FINAL_CODES or self._leaving
        words, self._last_words = self._last_words, ""
        if words and not (over and isinstance(self.task, InferTask | TrackTask)):  # a job ends with those of these
            self._listener("error", words)
        if over:
            self.final_code = code
        else:
            self._count_crash(f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}")

    def _count_crash(self, end: str) -> None:
        lived_s = time.monotonic() - self._started_at_s
        self.num_crashes = 1 if lived_s >= STEADY_S else self.num_crashes + 1
        pause_s = min(RESTART_FIRST_S * 2 ** (self.num_crashes - 1), RESTART_MOST_S)
        self._start_at_s = time.monotonic() + pause_s
        self._listener("warning", f"{self.name} ended: {end}; starting it again in {pause_s:.2g} s")

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
        if self._reader is not None:
            self._reader.join(timeout=2.0)
        if process.stderr is not None:
            process.stderr.close()

    def _pass_on(self, lines: BinaryIO) -> None:
        """Lines with a level go to the listener; the rest (a trace, a library's words) belongs to the line before.

        An error that nothing follows is kept as the last words.
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
            if self._last_words:
                self._listener("error", self._last_words)
                self._last_words = ""
            if head in ("ERROR", "CRITICAL"):
                self.last_error = line.partition(": ")[2]
                self._last_words = line
            else:
                self._listener(level, line)


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_ROOT), *([inherited] if inherited else [])])
