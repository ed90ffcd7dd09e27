"""Recognizes that a worker ran out of memory, and says so in one line."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

_SIGNS = re.compile(
    r"out of memory|not enough memory|can(?:no|')t allocate memory|unable to allocate|bad_alloc"
    r"|failed to map segment from shared object",
    re.IGNORECASE,
)
_WANTED = re.compile(r"(?:tried to allocate|unable to allocate) ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)
"""the size in the messages of torch on the CPU (bytes), of torch on CUDA and of NumPy (KiB, MiB, GiB)"""
_MIB = {"bytes": 1 / 1024**2, "kib": 1 / 1024, "mib": 1.0, "gib": 1024.0, "tib": 1024.0**2}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. torch, NumPy, the dynamic loader and FFmpeg raise different types for this."""
    return isinstance(error, MemoryError) or _SIGNS.search(str(error)) is not None


def describe_out_of_memory(error: BaseException | str) -> str:
    """`out of memory`, with the size of the failed allocation if the error states it."""
    match = _WANTED.search(str(error))
    if match is None:
        return "out of memory"
    return f"out of memory: cannot allocate {float(match[1]) * _MIB[match[2].lower()]:.0f} MB more"


def num_oom_kills() -> int:
    """Processes that the kernel of this host has killed since it started, because memory ran out; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
