"""Consoles for what is printed to people."""

from __future__ import annotations

import os
from typing import TextIO

from rich.console import Console


def make_console(file: TextIO) -> Console:
    """A console that writes control characters to terminals only, and stops writing once the reader closed the pipe."""
    return _Console(file=file, force_terminal=file.isatty(), highlight=False, markup=False, emoji=False)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        # The job continues, since its results go elsewhere. Flushing the buffer at exit must not fail a second time.
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
