"""Settings of the C allocator for blocks of the size of a frame.

By default glibc maps each block of more than about 100 KB anew and unmaps it when it is freed, so every frame causes
page faults in the sender and in the receiver. `python -m benchmarks.bus` measures the effect of the settings.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1 << 30, _M_TOP_PAD: 64 << 20}
"""in bytes; 32 MiB is the largest value that glibc accepts for M_MMAP_THRESHOLD"""


def keep_large_blocks() -> None:
    """Make glibc keep freed blocks for the next frame. Does nothing with other C libraries (macOS, musl)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _SETTINGS.items():
            mallopt(option, value)
