"""Metadata of a weights file overrides the properties of the model, and a stream carries the overrides."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import msgspec
import pytest
from support.bus_parts import stream_config

from pipeline.contract.config import StreamConfig
from pipeline.errors import ModelError
from pipeline.models.registry import get_model
from pipeline.models.weights_table import overridden_properties, spec_of_stream, spec_of_weights

STREET = get_model("street")


def weights(path: Path, **metadata: str) -> Path:
    """A safetensors file without tensors."""
    header = json.dumps({"__metadata__": metadata}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_metadata_override_classes_and_size(tmp_path: Path) -> None:
    path = weights(
        tmp_path / "mine.safetensors",
        architecture="street",
        categories='{"7": "fox", "2": "hen"}',
        head_class_ids="[7, 2]",
        min_size="256",
        max_size="512",
    )
    spec = spec_of_weights(STREET, path)
    assert (spec.name, spec.architecture) == ("street@mine", "street")
    assert spec.labels == {2: "hen", 7: "fox"}
    assert spec.head_class_ids == (7, 2)
    assert (spec.min_size, spec.max_size) == (256, 512)


@pytest.mark.parametrize(
    "metadata",
    [{}, {"architecture": "street"}, {"categories": json.dumps(STREET.categories)}, {"min_size": str(STREET.min_size)}],
)
def test_metadata_equal_to_the_models_changes_nothing(tmp_path: Path, metadata: dict[str, str]) -> None:
    assert spec_of_weights(STREET, weights(tmp_path / "a.safetensors", **metadata)) is STREET


def test_files_without_metadata_give_the_model_itself(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"\x00" * 100)
    (tmp_path / "b.safetensors").write_bytes(b"\xff" * 100)
    for name in ("a.pth", "b.safetensors", "nothing.safetensors"):
        assert spec_of_weights(STREET, tmp_path / name) is STREET
    assert spec_of_weights(STREET, None) is STREET


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"architecture": "maskrcnn_resnet50_fpn"}, "of architecture maskrcnn_resnet50_fpn; model street has street"),
        ({"categories": "fox"}, "cannot be understood"),
        ({"categories": '{"a": "fox"}'}, "cannot be understood"),
        ({"min_size": "small"}, "cannot be understood"),
        ({"categories": '{"1": "fox"}', "head_class_ids": "[2]"}, "contradicts itself"),
        ({"min_size": "900"}, "contradicts itself"),
    ],
)
def test_invalid_metadata_give_one_error_line(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        spec_of_weights(STREET, weights(tmp_path / "a.safetensors", **metadata))


def test_a_stream_carries_the_overrides(tmp_path: Path) -> None:
    spec = spec_of_weights(STREET, weights(tmp_path / "mine.safetensors", categories='{"1": "fox"}', min_size="256"))
    stream = msgspec.structs.replace(stream_config(), model=spec.name, model_overrides=overridden_properties(spec))
    travelled = msgspec.json.decode(msgspec.json.encode(stream), type=StreamConfig)
    assert spec_of_stream(travelled) == spec
    plain = msgspec.structs.replace(stream_config(), model="street", model_overrides=overridden_properties(STREET))
    assert plain.model_overrides is None
    assert spec_of_stream(plain) is STREET
