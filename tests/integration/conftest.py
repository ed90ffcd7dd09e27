"""Fixtures of the tests that need a bus."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.bus_parts import Clock

from pipeline.bus import Bus


@pytest.fixture
def bus(redis_url: str) -> Iterator[Bus]:
    """A bus on the empty server of the session."""
    bus = Bus(redis_url)
    yield bus
    bus.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of leases, of claims and of a job that waits for a lease, which only the test advances."""
    clock = Clock()
    for module in ("lease", "bus", "frame_queue"):
        monkeypatch.setattr(f"pipeline.bus.{module}.time", clock)
    return clock
