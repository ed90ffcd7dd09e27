"""Checkpoints of a training run, and weights files. Both are replaced atomically."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from pipeline.errors import OutputError, UsageError

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a run after `step` steps and `elapsed_s` seconds.

    identity    arguments and SHA-256 sums that must be the same when the run is resumed
    network     state dict with folded batch norms
    average     moving average of the trained parameters
    optimizer, scaler   state dicts
    """

    step: int
    elapsed_s: float
    identity: dict[str, str]
    network: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint. Raises OutputError."""
    fields = {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}
    _replace(path, lambda part: torch.save({"format": _FORMAT, **fields}, part))


def read_checkpoint(path: Path, identity: Mapping[str, str]) -> Checkpoint:
    """Reads a checkpoint. Raises UsageError for a damaged file, or for a run with another identity."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content.pop("format") != _FORMAT:
            raise ValueError("another format version")
        checkpoint = Checkpoint(**content)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"checkpoint {path}: cannot be read; remove it and start anew without --resume") from None
    for name, value in identity.items():
        before = checkpoint.identity.get(name)
        if before != value:
            raise UsageError(
                f"checkpoint {path}: made with {name} {before}, not {value}; resume with the arguments and data of the "
                "first run, or choose another --output"
            )
    return checkpoint


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes safetensors, with floating-point tensors in fp16. Raises OutputError."""
    halves = {name: (t.half() if t.is_floating_point() else t).contiguous() for name, t in state.items()}
    _replace(path, lambda part: part.write_bytes(save(halves, dict(metadata))))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error}") from None
