"""Helpers of the writers: the error line for a file that cannot be written, and atomic replacement of a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pipeline.errors import OutputError

_ADVICE = {
    errno.ENOSPC: "free some space there or give another --output",
    errno.EDQUOT: "free some space there or give another --output",
    errno.EACCES: "give a folder that may be written with --output",
    errno.EROFS: "give a folder that may be written with --output",
    errno.ENOENT: "the folder is gone; create it again or give another --output",
}


def output_error(path: Path, error: Exception) -> OutputError:
    """An error of the system or of FFmpeg as one line with the file, the reason and what to do."""
    reason = getattr(error, "strerror", None) or str(error)
    advice = _ADVICE.get(getattr(error, "errno", None) or 0, "give another --output")
    return OutputError(f"cannot write {path}: {reason.lower()}; {advice}")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at `path` by `content`; a reader sees the old file or the new one. Raises OutputError."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise output_error(path, error) from None
