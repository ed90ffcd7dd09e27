"""Growing pauses between attempts."""

from __future__ import annotations

from redis.backoff import ExponentialBackoff

_MAX_DOUBLINGS = 60
"""more would overflow redis-py's float arithmetic, and no cap is that far from its first pause"""


class Backoff:
    """Exponential back-off: each pause is twice the one before, up to a cap, until `reset`."""

    def __init__(self, first_s: float, most_s: float) -> None:
        """first_s, most_s   the first and the longest pause in seconds"""
        self._schedule = ExponentialBackoff(cap=most_s, base=first_s)
        self.num_failures = 0
        """attempts that failed since the last reset"""

    def next_s(self) -> float:
        """Count one more failed attempt; returns the seconds to wait before the next."""
        pause_s = float(self._schedule.compute(min(self.num_failures, _MAX_DOUBLINGS)))
        self.num_failures += 1
        return pause_s

    def reset(self) -> None:
        """An attempt succeeded: the next pause is the first one again."""
        self.num_failures = 0
