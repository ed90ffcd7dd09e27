"""Private folders for segments inside the output folder, and file locks that the kernel frees with their process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.errors import OutputError

PREFIX = ".maskstream-live-"
UNLOCKED_SUFFIX = ".new"
"""suffix of a folder whose lock is not taken yet"""
OWNER_LOCK, READER_LOCK = "owner.lock", "reader.lock"


@contextlib.contextmanager
def segment_folders(output: Path, stream_ids: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Create a folder for the segments of each stream in `output`, readable by this user only; removed at the end.

    Folders that a killed job left in `output` are removed first. Yields stream id -> folder. Raises OutputError.
    """
    _remove_abandoned(output)
    with ExitStack() as stack:
        try:
            yield {stream_id: stack.enter_context(_folder(output, stream_id)) for stream_id in stream_ids}
        finally:
            stack.close()


def try_lock(path: Path) -> int | None:
    """Lock the file at `path`, which is created if missing, and return a descriptor that holds the lock until closed.

    Returns None if another process holds the lock. The kernel frees the lock when the process ends for any reason.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


@contextlib.contextmanager
def _folder(output: Path, stream_id: str) -> Iterator[Path]:
    try:
        unlocked = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{stream_id}-", suffix=UNLOCKED_SUFFIX, dir=output.resolve()))
        lock = try_lock(unlocked / OWNER_LOCK)
        # renamed after it is locked, so that another job never removes the folder as abandoned
        folder = unlocked.rename(unlocked.with_name(unlocked.name.removesuffix(UNLOCKED_SUFFIX)))
    except OSError as error:
        reason = str(error.strerror).lower()
        raise OutputError(f"output: cannot make a folder in {output}: {reason}; give another --output") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_abandoned(output: Path) -> None:
    for folder in output.glob(f"{PREFIX}*"):
        if folder.name.endswith(UNLOCKED_SUFFIX) or not folder.is_dir():
            continue
        with contextlib.suppress(OSError):  # the folder is being removed, or belongs to another user
            lock = try_lock(folder / OWNER_LOCK)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
