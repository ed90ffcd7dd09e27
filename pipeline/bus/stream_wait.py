"""Sleeping until something stands in one of many streams, without spinning and without taking anything out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipeline.bus.connection import Client


def wait_for_entries(client: Client, positions: Mapping[str, bytes], timeout_s: float) -> dict[str, bytes]:
    """Key -> id of the first entry behind the given position, for the streams that have one; empty after `timeout_s`.

    positions   key -> id; a key that does not exist (yet) is waited for like an empty one
    """
    if not positions:
        time.sleep(timeout_s)
        return {}
    wanted: dict[Any, Any] = dict(positions)
    reply = client.xread(wanted, count=1, block=max(1, int(timeout_s * 1000)))
    return {key.decode(): entries[0][0] for key, entries in reply or []}
