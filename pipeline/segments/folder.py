"""Private folders for segments inside the folder of the results, and locks that end with their process."""

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
"""of a folder whose lock is not held yet"""
OWNER_LOCK, READER_LOCK = "owner.lock", "reader.lock"


@contextlib.contextmanager
def segment_folders(output: Path, stream_ids: Sequence[str]) -> Iterator[dict[str, Path]]:
    """A folder for the segments of each stream, in `output`, that only this user may read; removed at the end.

    What a job that was killed left in `output` is removed first. Raises OutputError.
    """
    _remove_abandoned(output)
    with ExitStack() as stack:
        try:
            yield {stream_id: stack.enter_context(_folder(output, stream_id)) for stream_id in stream_ids}
        finally:
            stack.close()


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file, made if need be, until it is closed; None: another one holds it.

    The kernel frees the lock when its process ends, however it does.
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
        # a name that others look at appears when the lock is held: nobody takes the folder for an abandoned one
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
        with contextlib.suppress(OSError):  # it is being removed, or somebody else's
            lock = try_lock(folder / OWNER_LOCK)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
