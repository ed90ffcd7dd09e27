"""Benchmarks: `python -m benchmarks.NAME` checks parity, then prints figures beside peers timed in the same run."""

import os

# As in the workers: waiting OpenMP threads of torch would otherwise spin on the cores that numba's threads need. OpenMP
# reads the variable when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
