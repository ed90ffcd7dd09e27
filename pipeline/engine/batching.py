"""Batching: a batch is due when it is full, or when its first item has waited for the batch timeout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batcher(Generic[T]):
    """Collects up to `max_items` items. It has no clock: the caller passes the time in seconds of a monotonic clock."""

    def __init__(self, max_items: int, timeout_s: float) -> None:
        self._max_items = max_items
        self._timeout_s = timeout_s
        self._items: list[T] = []
        self._due_at_s = float("inf")

    @property
    def room(self) -> int:
        """Number of items that still fit."""
        return self._max_items - len(self._items)

    def add(self, items: Iterable[T], now_s: float) -> None:
        """Add items. The first item of a batch starts its timeout. Raises ValueError if the items do not fit."""
        items = list(items)
        if len(items) > self.room:
            raise ValueError(f"expected at most {self.room} items, got {len(items)}")
        if items and not self._items:
            self._due_at_s = now_s + self._timeout_s
        self._items += items

    def wait_s(self, now_s: float) -> float:
        """Seconds until the batch is due: 0 if it is full or overdue, infinity if it is empty."""
        if self.room == 0:
            return 0.0
        return max(0.0, self._due_at_s - now_s)

    def take(self) -> list[T]:
        """Return the batch and begin an empty one."""
        items, self._items, self._due_at_s = self._items, [], float("inf")
        return items
