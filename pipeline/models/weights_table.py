"""Metadata of weights files: classes and input size. Nothing here imports torch."""

from __future__ import annotations

import json
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.contract.config import ModelOverrides, StreamConfig
from pipeline.errors import ModelError
from pipeline.models.registry import ModelSpec, get_model

SEPARATOR = "@"
"""separates the name of the registered model from that of the weights file whose metadata changed it"""

# A safetensors file begins with the length of its JSON header as 8 bytes, little-endian, and the header.
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000

# torch.save writes a zip archive; before torch 1.6 it wrote pickles of protocol 2
_ZIP_START = b"PK\x03\x04"
_PICKLE_START = b"\x80\x02"


def spec_of_weights(base: ModelSpec, weights: str | Path | None) -> ModelSpec:
    """`base` with the classes and the input size from the metadata of a safetensors file.

    Returns `base` itself if the metadata is absent or equal; otherwise the name of the result is `base@file`. The
    weights are not read. Raises ModelError for metadata that names another architecture or is malformed.
    """
    if weights is None:
        return base
    path = Path(os.path.expanduser(weights))
    metadata = _metadata(path)
    architecture = metadata.get("architecture", base.architecture)
    if architecture != base.architecture:
        raise ModelError(
            f"weights {path}: of architecture {architecture}; model {base.name} has {base.architecture}, "
            f"use a --model of that architecture"
        )
    try:
        given = json.loads(metadata["categories"]) if "categories" in metadata else base.categories
        categories = tuple((int(class_id), str(label)) for class_id, label in dict(given).items())
        head = json.loads(metadata["head_class_ids"]) if "head_class_ids" in metadata else dict(categories)
        found = replace(
            base,
            categories=tuple(sorted(categories)),
            head_class_ids=base.head_class_ids if "categories" not in metadata else tuple(map(int, head)),
            min_size=int(metadata.get("min_size", base.min_size)),
            max_size=int(metadata.get("max_size", base.max_size)),
        )
    except (ValueError, TypeError, AttributeError):
        raise ModelError(
            f"weights {path}: its metadata cannot be understood; expected categories as id and name"
        ) from None
    if not set(found.labels) <= set(found.head_class_ids) or not 32 <= found.min_size <= found.max_size:
        raise ModelError(f"weights {path}: its metadata contradicts itself")
    if (
        set(found.categories) == set(base.categories)
        and found.min_size == base.min_size
        and found.max_size == base.max_size
    ):
        return base
    return replace(found, name=f"{base.name}{SEPARATOR}{path.stem}")


def check_weights_file(spec: ModelSpec, weights: str | Path) -> None:
    """Check that a file is a complete safetensors file or a torch file, without reading its tensors.

    Raises ModelError if the file is missing, cannot be read, is cut short or has another format.
    """
    path = Path(os.path.expanduser(weights))
    expected = f"expected safetensors or a torch state dict of architecture {spec.architecture}"
    if not path.is_file():
        raise ModelError(f"weights {path}: there is no such file; {expected}")
    try:
        reason = _safetensors_fault(path) if path.suffix == ".safetensors" else _torch_file_fault(path)
    except (OSError, ValueError, struct.error, AttributeError, TypeError, KeyError) as error:
        reason = str(error) or type(error).__name__
    if reason:
        raise ModelError(f"weights {path}: cannot be read ({reason}); {expected}")


def overridden_properties(spec: ModelSpec) -> ModelOverrides | None:
    """The properties that the weights file of `spec` overrides; None for a registered model."""
    if SEPARATOR not in spec.name:
        return None
    return ModelOverrides(list(spec.categories), spec.min_size, spec.max_size)


def spec_of_stream(stream: StreamConfig) -> ModelSpec:
    """The model of a stream, with the stream's overrides. Raises ModelError for an unknown name."""
    overrides = stream.model_overrides
    if overrides is None:
        return get_model(stream.model)
    return replace(
        get_model(stream.model.partition(SEPARATOR)[0]),
        name=stream.model,
        categories=tuple(overrides.categories),
        head_class_ids=tuple(class_id for class_id, _ in overrides.categories),
        min_size=overrides.min_size,
        max_size=overrides.max_size,
    )


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file; empty for any other file, which `load_weights` checks."""
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if path.suffix != ".safetensors" or length > _MAX_HEADER_BYTES:
                return {}
            metadata = json.loads(file.read(length)).get("__metadata__", {})
    except (OSError, ValueError, struct.error, AttributeError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _safetensors_fault(path: Path) -> str:
    """Why a file is not a complete safetensors file; empty if it is one."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > min(_MAX_HEADER_BYTES, size_bytes):
            return "its header is damaged"
        header = json.loads(file.read(length))
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    stated_bytes = _LENGTH.size + length + max(ends, default=0)
    return "" if size_bytes == stated_bytes else f"it has {size_bytes} of {stated_bytes} bytes"


def _torch_file_fault(path: Path) -> str:
    """Why a file is neither a zip archive nor a pickle, torch's two formats; empty if it may be one of them."""
    with path.open("rb") as file:
        start = file.read(len(_ZIP_START))
    if start == _ZIP_START:
        return "" if zipfile.is_zipfile(path) else "its end is missing"
    return "" if start.startswith(_PICKLE_START) else "it is empty" if not start else "it is not a torch file"
