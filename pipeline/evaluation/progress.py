"""How the evaluations report their progress: through a callable that the caller passes in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Shows the progress of one stage."""

    def __call__(self, description: str, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Return a context manager for one stage of `total` steps.

        The callable that it yields is called once per step.
        """
        ...


@contextlib.contextmanager
def no_progress(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A `Progress` that shows nothing."""
    yield lambda: None
