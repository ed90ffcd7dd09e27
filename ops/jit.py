"""`njit` of numba, which keeps compiled kernels in this package's cache folder. Kernels import it from here."""

from __future__ import annotations

from numba import njit

from ops.cache import set_cache_folders

__all__ = ["njit"]

set_cache_folders()
