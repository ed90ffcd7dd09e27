"""The compiled functions as plain Python, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys

from support.paths import ROOT


def test_small_cases_pass_with_the_compiler_disabled() -> None:
    """The functions as plain Python, where an index out of range raises and unwritten memory is noticed."""
    chosen = (
        "known_values or centroid or without_area or fair_pairs or 8x8 or confirmation or cross or weak or copy "
        "or part or restored or class or rider or doubt or thinned"
    )
    kernels = ("iou", "mask_overlap", "assignment", "kalman")
    files = [f"tests/unit/ops/test_{name}.py" for name in kernels]
    files += [
        f"tests/unit/tracking/test_{name}.py"
        for name in ("tracker", "trackers", "tracker_properties", "tracker_checkpoint")
    ]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "PYTHONPATH": ""}  # these tests do need SciPy
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
