"""Blocking until one of many Redis streams has an entry, without consuming it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from pipeline.bus.connection import Client


def wait_for_entries(client: Client, positions: Mapping[str, bytes], timeout_s: float) -> dict[str, bytes]:
    """Block until a stream has an entry after its position, at most `timeout_s`.

    positions   key -> id of an entry; a key that does not exist counts as an empty stream
    returns     key -> id of the first entry after the position, for the streams that have one; empty after the timeout
    """
    if not positions:
        time.sleep(timeout_s)
        return {}
    wanted: dict[Any, Any] = dict(positions)
    reply = client.xread(wanted, count=1, block=max(1, int(timeout_s * 1000)))
    return {key.decode(): entries[0][0] for key, entries in reply or []}
