"""The folders in which numba and torch keep compiled kernels between runs."""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

_log = logging.getLogger("maskstream")

_PRODUCT = "maskstream"


def set_cache_folders() -> None:
    """Set NUMBA_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR for this process and its children, unless the user has set them.

    numba compares only the file of the function that it loads with the cache, not the files of the functions it calls.
    A change of a helper would leave its callers with the old code, so the name of numba's folder contains a hash of all
    sources in ops/. torchvision creates torch's folder when it is imported, by default under /tmp, where it would stay.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "torch"))
    given = os.environ.get("NUMBA_CACHE_DIR")
    if given and Path(given).parent.name != _PRODUCT:
        return
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    folder = str(cache_folder() / f"numba-{digest.hexdigest()[:12]}")
    os.environ["NUMBA_CACHE_DIR"] = folder
    numba: Any = sys.modules.get("numba")
    if numba is not None:  # it has already read the variable
        numba.config.CACHE_DIR = folder


def cache_folder() -> Path:
    """The existing, writable folder for the caches of this package: $XDG_CACHE_HOME/maskstream or ~/.cache/maskstream.

    If that folder cannot be created or written, the environment of this process is directed to a private temporary
    folder, which child processes inherit and which is removed at exit, and one warning is logged.
    """
    try:
        folder = _user_cache() / _PRODUCT
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reason = f"{folder} is not writable"
    except RuntimeError:  # of Path.home()
        reason = "this user has no home folder"
    except OSError as error:
        reason = f"{error.filename} cannot be created ({str(error.strerror).lower()})"
    return _use_temporary_cache(reason) / _PRODUCT


def _user_cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    return Path(given) if given else Path.home() / ".cache"


def _use_temporary_cache(reason: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="maskstream-cache-"))
    (folder / _PRODUCT).mkdir()
    atexit.register(_remove, folder, os.getpid())
    try:
        # downloaded weights that are already there stay in use
        os.environ.setdefault("TORCH_HOME", str(_user_cache() / "torch"))
    except RuntimeError:
        os.environ["HOME"] = str(folder)  # libraries that look for the home folder fail without one
    os.environ["XDG_CACHE_HOME"] = str(folder)
    _log.warning(
        "maskstream: warning: %s: compiled kernels go to a temporary folder and are compiled again in the next run; "
        "set XDG_CACHE_HOME to a writable folder to keep them",
        reason,
    )
    return folder


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child
        shutil.rmtree(folder, ignore_errors=True)
