"""python -m benchmarks.NAME: parity first, then figures against peers in the same run."""
