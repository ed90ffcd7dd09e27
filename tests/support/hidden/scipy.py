"""Hides SciPy from the programs under test: it is a dependency of the tests, so users need not have it.

numba imports it, if it can, in every process that loads a kernel.
"""

raise ImportError("SciPy is hidden from the programs under test")
