"""When a batch is run: as soon as it is full, or when its first frame has waited long enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Batcher(Generic[T]):
    """Collects items up to `most`. Holds no clock: the caller says what time it is (any monotonic seconds)."""

    def __init__(self, most: int, timeout_s: float) -> None:
        self._most = most
        self._timeout_s = timeout_s
        self._items: list[T] = []
        self._due_at_s = float("inf")

    @property
    def room(self) -> int:
        """Items that still fit."""
        return self._most - len(self._items)

    def add(self, items: Iterable[T], now_s: float) -> None:
        """Put items in; the first into an empty batch starts its clock. Raises ValueError when they do not fit."""
        items = list(items)
        if len(items) > self.room:
            raise ValueError(f"expected at most {self.room} items, got {len(items)}")
        if items and not self._items:
            self._due_at_s = now_s + self._timeout_s
        self._items += items

    def wait_s(self, now_s: float) -> float:
        """Seconds until the batch has to be run: 0 when it is full or due, infinite while it is empty."""
        if self.room == 0:
            return 0.0
        return max(0.0, self._due_at_s - now_s)

    def take(self) -> list[T]:
        """The batch; an empty one begins."""
        items, self._items, self._due_at_s = self._items, [], float("inf")
        return items
