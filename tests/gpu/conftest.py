"""Fixtures of the tests on CUDA: `REQUIRE_CUDA=1 pytest tests/gpu`.

Kernel tests use the fixture `device`: the CUDA device, or the CPU if TRITON_INTERPRET=1 runs Triton kernels in the
interpreter (as tests/integration/ops/test_triton_interpreter.py does in a process of its own). Tests that need a CUDA
device use `cuda`. Without CUDA they skip; with REQUIRE_CUDA=1 they fail.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The CUDA device. Skip the test without one, or fail if REQUIRE_CUDA=1."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    reason = f"torch {torch.__version__} finds no CUDA device"
    if os.environ.get("REQUIRE_CUDA") == "1":
        pytest.fail(f"REQUIRE_CUDA=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that Triton kernels run on."""
    if INTERPRETED:
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("cuda")
    return found


@pytest.fixture(autouse=INTERPRETED)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use larger tiles than on a GPU, because the interpreter takes equal time for a small tile and for a large one.

    The pictures and the boxes of the tests still need several tiles.
    """
    monkeypatch.setattr("ops.preprocess_triton._TILE_ROWS", 16)
    monkeypatch.setattr("ops.nms_triton._STEP", 32)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill new tensors with NaN or the largest integer, so that an element that is never written fails a test."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poisoning(getattr(torch, name)))


def _poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        fresh = allocate(*args, **options)
        if fresh.dtype == torch.bool:
            return fresh.fill_(True)
        return fresh.fill_(math.nan if fresh.is_floating_point() else torch.iinfo(fresh.dtype).max)

    return poisoned
