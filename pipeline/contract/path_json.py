"""JSON for structs that hold file names.

A file name is any sequence of bytes. Python represents bytes that are not UTF-8 as lone surrogates, which the JSON of
msgspec cannot hold. The JSON of this module is ASCII and writes a lone surrogate as an escape such as `\\udce9`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec


def encode_with_paths(value: Any) -> bytes:
    """Encode a struct or a dataclass as JSON on one line, in ASCII. A Path becomes text."""
    return json.dumps(msgspec.to_builtins(value, enc_hook=str)).encode("ascii")


def decode_with_paths(payload: bytes, kind: Any) -> Any:
    """Decode the JSON of `encode_with_paths` to the type `kind`. Raises ValueError for anything else."""
    return msgspec.convert(json.loads(payload), kind, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    if kind is not Path:
        raise NotImplementedError(f"{kind} cannot be decoded")
    return Path(value)
