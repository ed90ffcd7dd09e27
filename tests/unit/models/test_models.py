"""The model registry: names, categories, input sizes and paths of weights, without torch."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torchvision.models import get_model as build_torchvision_model
from torchvision.models import get_model_weights

from pipeline.errors import ModelError, UsageError
from pipeline.models.registry import (
    MODELS,
    bus_hw,
    class_ids_of,
    cuda_expected,
    default_model,
    get_model,
    input_hw,
    model_rows,
    weights_path,
)

STREET = MODELS["street"]
RESNET = MODELS["maskrcnn_resnet50_fpn_v2"]
PACKAGED = [name for name, spec in MODELS.items() if spec.weights_url is None]
"""the other models are torchvision's"""
SIDES = st.integers(2, 5000)


def test_the_registry_does_not_import_torch() -> None:
    code = "import sys, pipeline.models.registry, ops.masks, ops.preprocess; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


METRIC_OF_TORCHVISION_NAME = {"box_map": "box_ap", "mask_map": "mask_ap", "kp_map": "keypoint_ap"}


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.weights_url is not None])
def test_specs_of_torchvisions_models_equal_its_metadata(name: str) -> None:
    spec, theirs = MODELS[name], get_model_weights(name).COCO_V1
    metrics = theirs.meta["_metrics"]["COCO-val2017"]
    aps = {metric: getattr(spec, ours) for metric, ours in METRIC_OF_TORCHVISION_NAME.items()}
    assert {metric: pytest.approx(ap * 100) for metric, ap in aps.items() if ap is not None} == metrics
    assert spec.output == ("masks" if "mask_map" in metrics else "keypoints" if "kp_map" in metrics else "boxes")
    categories = theirs.meta["categories"]
    assert [spec.labels.get(index, "N/A") for index in range(1, len(categories))] == categories[1:]
    assert spec.head_class_ids == tuple(range(1, len(categories)))
    assert spec.weights_url == theirs.url
    assert theirs.url.endswith(f"-{spec.sha256}.pth")
    # torchvision's unit is 2^20 bytes
    assert spec.size_mb == pytest.approx(theirs.meta["_file_size"] * 2**20 / 1e6, abs=0.05)


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if spec.weights_url is not None])
def test_input_size_equals_torchvisions(name: str) -> None:
    spec = MODELS[name]
    theirs = build_torchvision_model(name, weights=None, weights_backbone=None).transform
    # torchvision's lists of sizes are for training; inference uses the last one
    assert (spec.min_size, spec.max_size) == (theirs.min_size[-1], theirs.max_size)
    assert (list(spec.mean), list(spec.std)) == (theirs.image_mean, theirs.image_std)


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_weights_have_their_checksum(name: str) -> None:
    spec = MODELS[name]
    path = weights_path(spec)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == spec.sha256
    assert path.stat().st_size / 1e6 == pytest.approx(spec.size_mb, abs=0.05)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata["architecture"] == spec.architecture
    assert {int(class_id): label for class_id, label in json.loads(metadata["categories"]).items()} == spec.labels
    assert (int(metadata["min_size"]), int(metadata["max_size"])) == (spec.min_size, spec.max_size)


def test_the_error_for_an_unknown_model_lists_the_models() -> None:
    with pytest.raises(
        ModelError, match=r"^unknown model 'stret' \(did you mean 'street'\?\): expected one of street, "
    ) as raised:
        get_model("stret")
    assert all(name in str(raised.value) for name in MODELS)


def test_labels_become_class_ids() -> None:
    assert class_ids_of(STREET, ["truck", " person", "truck"]) == [1, 8]
    assert class_ids_of(RESNET, ["traffic light", "toothbrush"]) == [10, 90]


def test_the_error_for_an_unknown_class_lists_the_classes() -> None:
    expected = (
        r"^class 'persn' is unknown to model street \(did you mean 'person'\?\): expected some of person, bicycle"
    )
    with pytest.raises(UsageError, match=expected):
        class_ids_of(STREET, ["car", "persn"])


@pytest.mark.parametrize(
    ("device", "name"), [("cpu", "street"), ("cuda", RESNET.name), ("cuda:1", RESNET.name)], ids=str
)
def test_default_model(device: str, name: str) -> None:
    assert default_model(device) == name


def test_cuda_is_expected_if_torch_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cuda_expected() == torch.cuda.is_available()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not cuda_expected()
    assert default_model("auto") == "street"


@pytest.mark.parametrize(
    ("name", "picture_hw", "expected_hw"),
    [
        ("street", (432, 768), (384, 682)),
        ("street", (768, 432), (682, 384)),
        ("street", (1080, 1920), (384, 682)),
        ("street", (400, 1600), (192, 768)),
        ("street", (200, 320), (384, 614)),
        ("maskrcnn_resnet50_fpn_v2", (480, 640), (800, 1066)),
        ("maskrcnn_resnet50_fpn_v2", (1080, 1920), (748, 1332)),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", (1080, 1920), (320, 568)),
    ],
)
def test_input_size(name: str, picture_hw: tuple[int, int], expected_hw: tuple[int, int]) -> None:
    assert input_hw(MODELS[name], picture_hw) == expected_hw


@given(SIDES, SIDES, st.sampled_from(list(MODELS.values())))
def test_input_sizes_are_even_and_idempotent(height: int, width: int, spec) -> None:
    network, bus = input_hw(spec, (height, width)), bus_hw(spec, (height, width))
    assert not any(side % 2 for side in network + bus)
    assert min(network) <= spec.min_size
    assert max(network) <= spec.max_size
    assert input_hw(spec, network) == network
    assert bus_hw(spec, bus) == bus
    assert bus[0] <= height
    assert bus[1] <= width


@pytest.mark.parametrize(
    "environment",
    [{"TORCH_HOME": "/a/torch"}, {"XDG_CACHE_HOME": "/b"}, {"TORCH_HOME": "~/t", "XDG_CACHE_HOME": "/b"}, {}],
    ids=["torch_home", "xdg", "both", "neither"],
)
def test_torchvisions_weights_are_in_torchs_cache(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    assert weights_path(RESNET) == Path(torch.hub.get_dir()) / "checkpoints" / RESNET.weights_file


def test_a_path_to_weights_is_expanded() -> None:
    assert weights_path(RESNET, "~/mine.pth") == Path.home() / "mine.pth"


def test_the_table_shows_which_weights_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = weights_path(RESNET)
    cached.parent.mkdir(parents=True)
    cached.touch()
    rows = {row.spec.name: (row.present, row.default_for) for row in model_rows()}
    others = {name: (name in PACKAGED, "") for name in MODELS.keys() - {"street", RESNET.name}}
    assert rows == {"street": (True, "cpu"), RESNET.name: (True, "cuda")} | others
