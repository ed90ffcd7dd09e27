"""Loading of weights files into networks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.engine.architectures import Network
from pipeline.errors import ModelError
from pipeline.models.registry import ModelSpec, weights_path


def load_weights(network: Network, spec: ModelSpec, override: str | None) -> None:
    """Load the weights of `spec`, or the file `override`, into `network`. torchvision's weights are downloaded if they
    are not cached. Files are read as tensors only: pickled code is never run.

    Raises ModelError for weights that are missing, damaged, of another architecture or for other categories.
    """
    path = weights_path(spec, override)
    if override is None and spec.weights_url is not None and not path.is_file():
        _download(spec, spec.weights_url, path)
    if not path.is_file():
        raise ModelError(f"weights {path}: there is no such file; expected weights of architecture {spec.architecture}")
    if override is None and spec.weights_url is None:
        _check_sha256(path, spec.sha256)
    state = _read(path, spec)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        complaints = [line.strip() for line in str(error).splitlines()[1:]]
        raise ModelError(
            f"weights {path}: not of architecture {spec.architecture} with {len(spec.head_class_ids)} classes: "
            f"{_shortened(complaints[0] if complaints else str(error))}"
        ) from None


def _read(path: Path, spec: ModelSpec) -> dict[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                _check_categories(path, spec, file.metadata() or {})
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ModelError(
            f"weights {path}: cannot be read ({_shortened(str(error))}); "
            f"expected safetensors or a torch state dict of architecture {spec.architecture}"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(
            f"weights {path}: expected a state dict of architecture {spec.architecture}, "
            "a dict that maps names to tensors"
        )
    return state


def _check_categories(path: Path, spec: ModelSpec, metadata: dict[str, Any]) -> None:
    """Raise ModelError if the file's metadata lists other classes than the model has: equal shapes do not imply equal
    classes. A file whose metadata lists no classes passes.
    """
    if "categories" not in metadata:
        return
    stored = {int(class_id): label for class_id, label in dict(json.loads(metadata["categories"])).items()}
    if stored != spec.labels:
        raise ModelError(
            f"weights {path}: made for the classes {', '.join(map(str, stored.values()))}; "
            f"model {spec.name} has {', '.join(spec.labels.values())}"
        )


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise ModelError(
            f"weights {path}: damaged (sha256 {found[:12]}…, expected {expected[:12]}…); reinstall maskstream"
        )


def _download(spec: ModelSpec, url: str, path: Path) -> None:
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch.hub announces the download on standard output
            torch.hub.load_state_dict_from_url(
                url,
                model_dir=str(path.parent),
                map_location="cpu",
                progress=True,
                check_hash=True,
                weights_only=True,
            )
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash is a RuntimeError
        raise ModelError(
            f"weights of {spec.name}: {url} cannot be downloaded ({_shortened(str(error))}); "
            f"put the file {spec.weights_file} into {path.parent}, or use --model street"
        ) from None


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else f"{line[:157]}..."
