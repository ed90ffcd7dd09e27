"""Importing this module sets the cache folders, and imports torchvision without torch's compiler, which takes longer to
import than torchvision.

`torchvision.ops.roi_align` imports one function of `torch._dynamo.utils`, which it calls only for CUDA tensors in
deterministic mode. While torchvision is imported, a stand-in takes the place of that module
(docs/decisions.md, "The engine starts without torch's compiler").
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from ops.cache import set_cache_folders

_COMPILER_UTILS = "torch._dynamo.utils"


class _StandIn(ModuleType):
    """A module whose attributes are those of the real module, which is imported when the first of them is used."""

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        """Call the function of the real module."""
        return importlib.import_module(_COMPILER_UTILS).is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        sys.modules.pop(_COMPILER_UTILS, None)
        return getattr(importlib.import_module(_COMPILER_UTILS), name)


set_cache_folders()
if _COMPILER_UTILS not in sys.modules:
    _stand_in = sys.modules[_COMPILER_UTILS] = _StandIn(_COMPILER_UTILS)
    try:
        importlib.import_module("torchvision")
    finally:
        if sys.modules.get(_COMPILER_UTILS) is _stand_in:
            del sys.modules[_COMPILER_UTILS]
