"""Array kernels, each with a slow and plainly correct form in `ops.reference`, and the tracker's step, made of them.

Compiled kernels are cached on disk. numba looks only at the file of the function it loads, not at the ones it calls, so
an edited helper would leave its callers running the old code: the cache folder is therefore named by all sources here.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numba


def _cache_folder() -> Path:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return user_cache / "maskstream" / f"numba-{digest.hexdigest()[:12]}"


_config: Any = numba.config
if not _config.CACHE_DIR:
    _config.CACHE_DIR = str(_cache_folder())
