"""How child processes find this installation."""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


def python_path() -> str:
    """The value of PYTHONPATH with which a child process imports this installation."""
    inherited = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(_ROOT), *([inherited] if inherited else [])])
