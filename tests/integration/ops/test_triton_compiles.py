"""Every Triton kernel compiles to CUDA machine code, which needs no GPU, with the arguments of its launches.

The interpreter only executes Python; these tests run Triton's launcher, type checks and compiler, and check the
register and memory use that ptxas reports.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import JITFunction

from ops.nms_triton import nms
from ops.preprocess import NUM_PARAMS
from ops.preprocess_triton import preprocess
from ops.roi_align_triton import roi_align

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for CUDA on Linux only")

MAX_SHARED_BYTES = 48 * 1024
"""shared memory that every GPU provides without opt-in"""


class Compiler:
    """Replaces the driver of a GPU with this compute capability, and compiles kernels instead of launching them."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.kernels: dict[str, Any] = {}

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton caches kernels per device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def launcher(self, function: JITFunction, grid: object) -> Callable[..., None]:
        def compile_instead(*arguments: object, **options: object) -> None:
            kernel = function.run(*arguments, grid=grid, warmup=True, **options)
            self.kernels[function.__name__] = kernel

        return compile_instead

    def spilled_bytes(self, kernel: Any, folder: Path) -> int:
        """Return the number of bytes that ptxas spilled from registers to memory."""
        (folder / "kernel.ptx").write_text(kernel.asm["ptx"])
        target = ["-v", f"--gpu-name=sm_{self.capability}{'a' if self.capability >= 90 else ''}"]
        command = [
            get_ptxas(self.capability).path,
            *target,
            str(folder / "kernel.ptx"),
            "-o",
            str(folder / "kernel.cubin"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        (line,) = (line for line in done.stderr.splitlines() if "spill stores" in line)
        return int(line.split(" bytes spill stores")[0].split(",")[-1])


@pytest.fixture(params=[80, 90], ids=["sm_80", "sm_90"])
def compiler(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    compiler = Compiler(request.param)
    monkeypatch.setattr(JITFunction, "__getitem__", lambda function, grid: compiler.launcher(function, grid))
    monkeypatch.setattr(triton.runtime.driver, "_active", compiler)
    return compiler


def assert_compiled(compiler: Compiler, names: set[str], folder: Path) -> None:
    assert compiler.kernels.keys() == names
    for kernel in compiler.kernels.values():
        assert kernel.metadata.target.arch == compiler.capability
        assert len(kernel.asm["cubin"]) > 1000
        assert kernel.metadata.shared <= MAX_SHARED_BYTES
        assert compiler.spilled_bytes(kernel, folder) == 0


@pytest.mark.parametrize("classes", [None, torch.zeros(2, 4096, dtype=torch.int64)], ids=["one class", "classes"])
def test_nms(classes: Tensor | None, compiler: Compiler, tmp_path: Path) -> None:
    nms(torch.zeros(2, 4096, 4), torch.ones(2, 4096, dtype=torch.bool), 0.5, 100, classes)
    assert_compiled(compiler, {"_compare_kernel", "_choose_kernel"}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_preprocess(dtype: torch.dtype, compiler: Compiler, tmp_path: Path) -> None:
    planes, params = torch.zeros(2, 64 * 96 * 3 // 2, dtype=torch.uint8), torch.zeros(2, NUM_PARAMS)
    preprocess(planes, params, (64, 96), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), dtype)
    assert_compiled(compiler, {"_preprocess_kernel"}, tmp_path)


@pytest.mark.parametrize("sampling_ratio", [2, 0], ids=["2 samples", "adaptive"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_roi_align(dtype: torch.dtype, sampling_ratio: int, compiler: Compiler, tmp_path: Path) -> None:
    sides = (64, 32, 16, 8)
    levels = [torch.zeros(2, 256, side, side, dtype=dtype).to(memory_format=torch.channels_last) for side in sides]
    boxes, image_idx, num_valid = torch.zeros(20, 4), torch.zeros(20, dtype=torch.int64), torch.tensor([5, 5])
    scales = [side / 256 for side in sides]
    for output_hw in ((7, 7), (14, 14)):
        roi_align(levels, scales, boxes, image_idx, output_hw, sampling_ratio=sampling_ratio, num_valid=num_valid)
        assert_compiled(compiler, {"_align_kernel"}, tmp_path)
