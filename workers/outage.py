"""What a job does when its Redis server is away, or comes back without the job."""

from __future__ import annotations

import time

from pipeline.bus import LOST_CONNECTION, Bus, EmbeddedRedis
from pipeline.errors import BusError, JobLostError
from pipeline.redaction import redact_url
from workers.base import describe_outage
from workers.child import LineListener

POLL_S = 0.5


class RedisWatch:
    """Reports an outage once, and its end once, for all workers of a job. A context manager around calls on the bus."""

    def __init__(self, bus: Bus, server: EmbeddedRedis | None, tell: LineListener) -> None:
        """server   the job's private server, which does not come back once it has ended"""
        self._bus = bus
        self._server = server
        self._tell = tell
        self._lost_since_s: float | None = None

    @property
    def is_unreachable(self) -> bool:
        """Whether the latest block of calls on the bus found Redis unreachable."""
        return self._lost_since_s is not None

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        """After an error of LOST_CONNECTION: pause, then suppress it.

        Raises BusError instead if the private server has ended.
        """
        if error is None:
            if self._lost_since_s is not None:
                self._tell("warning", f"Redis is back after {time.monotonic() - self._lost_since_s:.1f} s")
                self._lost_since_s = None
            return False
        if not isinstance(error, LOST_CONNECTION):
            return False
        if self._server is not None and not self._server.alive:
            raise BusError("the private Redis server has ended; its memory may be too small for this host") from None
        if self._lost_since_s is None:
            self._lost_since_s = time.monotonic()
            self._tell("warning", describe_outage(error))
        time.sleep(POLL_S)
        return True

    def check_jobs(self) -> None:
        """Raises JobLostError if the server lost the job of a stream, BusError if another job took the stream id."""
        lost = self._bus.lost_jobs()
        server = f"Redis at {redact_url(self._bus.url)}"
        if gone := [stream_id for stream_id, log_id in lost.items() if log_id is None]:
            raise JobLostError(
                f"{server} lost the data of {', '.join(gone)}: it was restarted without its data, or the data was "
                "deleted; start the command again, or use a server with AOF (appendonly yes), which keeps the data"
            )
        if lost:
            raise BusError(
                f"another job took the stream id of {', '.join(lost)} on {server}: start this job again with other "
                "stream ids"
            )
