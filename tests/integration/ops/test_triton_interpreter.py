"""The Triton kernels without a GPU: the kernel tests of tests/gpu in Triton's interpreter, in a process of their
own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

KERNEL_CASES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "gpu").glob("test_gpu_kernel_*.py"))


@pytest.mark.timeout(600)
def test_interpreted_kernels_pass_the_cases_of_the_gpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *KERNEL_CASES],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    for path in KERNEL_CASES:
        assert re.search(rf"^PASSED {path}::", done.stdout, re.MULTILINE), f"no test of {path} passed: {done.stdout}"
