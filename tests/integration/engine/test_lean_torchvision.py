"""The engine works without importing torch's compiler, and the compiler can be imported afterwards."""

from __future__ import annotations

import subprocess
import sys

from support.paths import ROOT

SCRIPT = """
import sys
from pipeline.engine import load_engine
load_engine("street", device="cpu").warm_up([(144, 256)])
assert not {"torch._dynamo", "sympy"} & sys.modules.keys()

answer = sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
from torch._dynamo.utils import is_compile_supported
assert answer == is_compile_supported("cpu")

import torch
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""


def test_the_compiler_is_imported_by_its_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
