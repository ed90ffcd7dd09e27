"""python -m benchmarks.NAME: parity first, then figures against peers in the same run."""

import os

# As the workers do: OpenMP's threads spin while they wait, torch's on the core that numba's are about to need, and read
# this when they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
