"""The choice of the precision on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline.engine.device import choose_dtype, cpu_has_bf16
from pipeline.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True, "avx2": True}, "fp32"),
        ({"architecture": "aarch64", "num_logical_cores": 4}, "fp32"),
    ],
    ids=["avx512_bf16", "amx", "avx512_without_bf16", "arm"],
)
def test_auto_is_bf16_where_the_cpu_has_instructions_for_it(
    capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    name, dtype = choose_dtype("auto", CPU)
    assert (name, dtype) == (expected, {"bf16": torch.bfloat16, "fp32": torch.float32}[expected])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/cpuinfo exists on Linux only")
def test_torch_reports_the_instructions_that_the_kernel_lists() -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    assert cpu_has_bf16() == bool({"avx512_bf16", "amx_bf16"} & set(flags))


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match="precision fp16 needs CUDA"):
        choose_dtype("fp16", CPU)
