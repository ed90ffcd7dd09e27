"""What every worker process has: signals, a parent that may end, a Redis server that may be away, exit codes."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import redis

from pipeline.backoff import Backoff
from pipeline.bus import LOST_CONNECTION
from pipeline.contract.exit_codes import (
    EXIT_DEFECT,
    EXIT_DISCONNECTED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_FENCED,
    EXIT_MEMORY,
    EXIT_USAGE,
    SUPERVISED,
)
from pipeline.errors import FencedError, JobLostError, MaskStreamError, UsageError
from workers.oom import describe_out_of_memory, is_out_of_memory

WORKER_DRAIN_S = 20.0
"""drain deadline of a worker: maximum time from the request to stop until the process has ended"""
RECONNECT_FIRST_PAUSE_S, RECONNECT_MAX_PAUSE_S = 0.1, 5.0

log = logging.getLogger("maskstream")
T = TypeVar("T")


class Life:
    """Whether the worker is to stop. Signals only set an event; the worker's loops look at it and act."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._leave_by_s = float("inf")

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to finish the work that it has begun, and to end."""
        return self._stop.is_set()

    @property
    def drain_left_s(self) -> float:
        """Seconds until the drain deadline; infinite while the worker was not asked to stop."""
        return self._leave_by_s - time.monotonic()

    def stop(self) -> None:
        """Ask the worker to stop. The drain deadline counts from the first call."""
        if not self._stop.is_set():
            self._leave_by_s = time.monotonic() + WORKER_DRAIN_S
            self._stop.set()

    def sleep(self, seconds: float) -> None:
        """Sleep, or return early if the worker is asked to stop."""
        self._stop.wait(seconds)

    def install_signal_handlers(self) -> None:
        """Stop at the first SIGTERM or SIGINT; end the process at the second, and at the drain deadline.

        A thread receives the signals, because the main thread runs no Python handler while it is inside a C call, such
        as reading a source that has fallen silent. A supervised process ignores SIGINT: Ctrl-C goes to its parent, too.
        """
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        supervised = SUPERVISED in os.environ
        signal.signal(signal.SIGTERM, _only_wake_up)
        signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else _only_wake_up)
        threading.Thread(target=self._obey_signals, args=(read_end,), daemon=True).start()
        if supervised:
            threading.Thread(target=_leave_with_parent, daemon=True).start()

    def _obey_signals(self, read_end: int) -> None:
        """Act on the signal numbers that arrive in the pipe."""
        os.read(read_end, 1)
        self.stop()
        if select.select([read_end], [], [], WORKER_DRAIN_S)[0]:
            os._exit(128 + os.read(read_end, 1)[0])
        log.error("did not finish within %.0f s after the request to stop, leaving", WORKER_DRAIN_S)
        os._exit(EXIT_FAILED)


def _only_wake_up(number: int, frame: FrameType | None) -> None:
    """A handler has to be installed for the interpreter to write the signal into the wake-up pipe."""


def _leave_with_parent() -> None:
    """End the process when its parent has ended: the kernel then closes the other end of standard input."""
    while os.read(0, 4096):
        pass
    os._exit(EXIT_FAILED)


def set_up_logging(label: str) -> None:
    """Write log lines to standard error as `LEVEL label: text`. The supervisor forwards them by their level."""
    line_format = f"%(levelname)s {label}: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=line_format, force=True)
    if SUPERVISED in os.environ:  # the supervisor reports an outage once for all workers
        logging.getLogger("pipeline.bus.log_cursor").setLevel(logging.ERROR)


def log_outage(text: str, *arguments: object) -> None:
    """Log that Redis is away, or back. Under a supervisor, which reports the same, the line is for --verbose only."""
    log.log(logging.INFO if SUPERVISED in os.environ else logging.WARNING, text, *arguments)


def describe_outage(error: BaseException) -> str:
    """One line for an error of LOST_CONNECTION."""
    if isinstance(error, redis.exceptions.ReadOnlyError):
        return "Redis is a read-only replica, waiting until it accepts writes"
    return f"Redis is away, waiting for it: {error}"


def exit_code_of(work: Callable[[], None], memory_advice: str) -> int:
    """Run a worker and return the exit code of its process.

    An error that MaskStream raises on purpose, and a failed allocation, become one log line; any other exception is a
    defect and is logged with its stack trace. memory_advice says what to do if memory runs out.
    """
    try:
        work()
    except JobLostError as error:
        log_outage("%s", error)
        return EXIT_DISCONNECTED
    except FencedError as error:
        log.warning("%s", error)
        return EXIT_FENCED
    except UsageError as error:
        log.error("%s", error)
        return EXIT_USAGE
    except MaskStreamError as error:
        log.error("%s", error)
        return EXIT_FAILED
    except LOST_CONNECTION as error:
        log_outage("lost the connection to Redis: %s", error)
        return EXIT_DISCONNECTED
    except Exception as error:
        if is_out_of_memory(error):
            log.error("%s; %s", describe_out_of_memory(error), memory_advice)
            return EXIT_MEMORY
        log.exception("unexpected, please report it")
        return EXIT_DEFECT
    return EXIT_DONE


class Reconnecting:
    """Repeats calls on the bus that fail because the server is away, starting, or a read-only replica."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._backoff = Backoff(RECONNECT_FIRST_PAUSE_S, RECONNECT_MAX_PAUSE_S)
        self._lost_since_s = 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        """Make the call until it succeeds and return its result; every call on the bus may be repeated.

        Raises what the call raised if the worker is to stop.
        """
        while True:
            try:
                result = call()
            except LOST_CONNECTION as error:
                self.failed(error)
            else:
                self.succeeded()
                return result

    def failed(self, error: Exception) -> None:
        """Pause after a failed attempt, longer each time until `succeeded`. Raises `error` if the worker is to stop."""
        if self._life.stopping:
            raise error
        if self._backoff.num_failures == 0:
            self._lost_since_s = time.monotonic()
            log_outage("%s", describe_outage(error))
        self._life.sleep(self._backoff.next_s())

    def succeeded(self) -> None:
        """An attempt succeeded: the next pause is the shortest one again."""
        if self._backoff.num_failures:
            log_outage("Redis is back after %.1f s", time.monotonic() - self._lost_since_s)
            self._backoff.reset()
