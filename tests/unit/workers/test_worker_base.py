"""How a worker's end is told to its parent."""

from __future__ import annotations

import pytest

from pipeline.contract.exit_codes import EXIT_DEFECT, EXIT_DONE, EXIT_FAILED, EXIT_FENCED, EXIT_USAGE
from pipeline.errors import BusError, FencedError, ModelError, OutputError
from workers.base import exit_code_of
from workers.child import FINAL_CODES


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, EXIT_DONE),
        (OutputError("disk full"), EXIT_FAILED),
        (BusError("too old"), EXIT_FAILED),
        (ModelError("no such model"), EXIT_USAGE),
        (FencedError("another one has it"), EXIT_FENCED),
        (ZeroDivisionError("nobody foresaw this"), EXIT_DEFECT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_each_kind_of_end_has_its_exit_code(error: Exception | None, code: int) -> None:
    def work() -> None:
        if error is not None:
            raise error

    assert exit_code_of(work) == code


def test_only_what_a_worker_chose_is_final() -> None:
    assert set(FINAL_CODES) == {EXIT_DONE, EXIT_FAILED, EXIT_USAGE}
