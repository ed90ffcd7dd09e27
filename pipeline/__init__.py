"""The packages between the kernels (ops) and the worker processes (workers); CONTRIBUTING.md lists them."""

__version__ = "0.1.0"
