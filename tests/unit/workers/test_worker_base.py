"""Exit codes of workers."""

from __future__ import annotations

import errno

import pytest
import redis

from pipeline.contract.exit_codes import (
    EXIT_DEFECT,
    EXIT_DISCONNECTED,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_FENCED,
    EXIT_MEMORY,
    EXIT_USAGE,
)
from pipeline.errors import BusError, FencedError, JobLostError, ModelError, OutputError
from workers.base import exit_code_of
from workers.child import FINAL_CODES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, EXIT_DONE),
        (OutputError("disk full"), EXIT_FAILED),
        (BusError("too old"), EXIT_FAILED),
        (ModelError("no such model"), EXIT_USAGE),
        (FencedError("another process took over"), EXIT_FENCED),
        (JobLostError("the data is gone"), EXIT_DISCONNECTED),
        (redis.ConnectionError("gone"), EXIT_DISCONNECTED),
        (MemoryError(), EXIT_MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"), EXIT_MEMORY),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), EXIT_MEMORY),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), EXIT_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), EXIT_MEMORY),
        (ZeroDivisionError("a defect"), EXIT_DEFECT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_kind_of_end_has_its_exit_code(error: Exception | None, code: int) -> None:
    def work() -> None:
        if error is not None:
            raise error

    assert exit_code_of(work, "use less") == code


def test_only_exit_codes_that_a_worker_chose_are_final() -> None:
    assert set(FINAL_CODES) == {EXIT_DONE, EXIT_FAILED, EXIT_USAGE}
