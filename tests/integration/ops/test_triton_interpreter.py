"""The Triton kernels without a GPU: the kernel tests of tests/gpu in Triton's interpreter, in a process of their
own."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from support.paths import ROOT

KERNEL_CASES = sorted(path.name for path in (ROOT / "tests" / "gpu").glob("test_gpu_kernel_*.py"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_interpreted_kernels_pass_the_cases_of_the_gpu(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/gpu/{name}"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout), done.stdout[-1000:]
