"""The life of a worker process: signals, the parent that may go, a Redis that may go, exit codes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from pipeline.bus import LOST_CONNECTION, Bus
from pipeline.contract.exit_codes import (
    EXIT_AWAY,
    EXIT_DEFECT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_FENCED,
    EXIT_USAGE,
    SUPERVISED,
)
from pipeline.errors import FencedError, MaskStreamError, UsageError

RECONNECT_FIRST_S = 0.1
RECONNECT_MOST_S = 5.0

log = logging.getLogger("maskstream")
T = TypeVar("T")


class Life:
    """Whether to go on. A signal only sets the event; the loops look at it and decide."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to finish what it holds and leave."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Ask it to."""
        self._stop.set()

    def sleep(self, seconds: float) -> None:
        """Sleep, but not past the request to stop."""
        self._stop.wait(seconds)

    def install_signal_handlers(self) -> None:
        """SIGTERM and SIGINT: stop; a second one: leave at once. Under a supervisor Ctrl-C is left to it."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self._stop.is_set():
                os._exit(128 + number)
            self._stop.set()

        supervised = SUPERVISED in os.environ
        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, signal.SIG_IGN if supervised else handle)
        if supervised:
            threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """End the process when the supervisor is gone: the kernel closes its end of the pipe however it went."""
    while os.read(0, 4096):
        pass
    os._exit(EXIT_FAILED)


def set_up_logging(who: str) -> None:
    """Log lines on standard error: level, worker, text. The supervisor passes them on by level."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(levelname)s {who}: %(message)s".replace("%%", "%"), force=True
    )


def exit_code_of(work: Callable[[], None]) -> int:
    """Run a worker; its exit code. An error raised on purpose is one line; anything else is a defect with a trace."""
    try:
        work()
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
        log.warning("Redis went away: %s", error)
        return EXIT_AWAY
    except Exception:
        log.exception("unexpected, please report it")
        return EXIT_DEFECT
    return EXIT_DONE


class Reconnecting:
    """Repeats calls over a lost connection, with growing pauses, until Redis is back or the worker is stopped."""

    def __init__(self, bus: Bus, life: Life) -> None:
        self._bus = bus
        self._life = life

    def __call__(self, call: Callable[[], T]) -> T:
        """The call's result; every call on the bus may be repeated. Raises LOST_CONNECTION when asked to stop."""
        try:
            return call()
        except LOST_CONNECTION:
            self.wait()
            return self(call)

    def wait(self) -> None:
        """Return when Redis answers again. Raises the connection's error when the worker is to stop."""
        pause_s, since_s = RECONNECT_FIRST_S, time.monotonic()
        while True:
            try:
                self._bus.client.ping()
            except LOST_CONNECTION as error:
                if self._life.stopping:
                    raise
                if pause_s == RECONNECT_FIRST_S:
                    log.warning("Redis is away, waiting for it: %s", error)
                self._life.sleep(pause_s)
                pause_s = min(pause_s * 2, RECONNECT_MOST_S)
            else:
                if pause_s > RECONNECT_FIRST_S:
                    log.warning("Redis is back after %.1f s", time.monotonic() - since_s)
                return
