"""How the evaluations report their progress: through a callable that the caller passes in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Starts to show the progress of one stage."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """A context manager that lasts as long as the stage; its value is called once after each of `total` steps."""
        ...


@contextlib.contextmanager
def no_progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A `Progress` that shows nothing."""
    yield lambda: None
