"""Keeping the memory of frames in the process.

glibc maps every block of some 100 KB and more anew and gives it back when freed, so that each frame is paid for in page
faults on both sides of the bus. `python -m benchmarks.bus` measures what the setting below is worth.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 1 << 30, _M_TOP_PAD: 64 << 20}
"""32 MiB is the most that glibc accepts for the first"""


def keep_large_blocks() -> None:
    """Have glibc keep freed memory for the next frame. Elsewhere (macOS, musl) it does nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _SETTINGS.items():
            mallopt(option, value)
