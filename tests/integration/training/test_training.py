"""Training at a small size: losses decrease, a resumed run equals an uninterrupted one, errors are one line."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.paths import ROOT

import run_pipeline
from pipeline.api import segment
from pipeline.coco.data import read_coco
from pipeline.errors import MaskStreamError, ModelError, SourceError, UsageError
from pipeline.models.registry import get_model
from pipeline.models.weights_table import spec_of_weights
from pipeline.source.picture_files import read_rgb
from pipeline.synthetic.coco_data import write_coco_data
from pipeline.training.checkpoint import read_checkpoint
from pipeline.training.loss import DetectionLoss, Losses, Sampling
from pipeline.training.model_spec import spec_for_data
from pipeline.training.network import start_network, stored_state
from pipeline.training.reporting import Reporter
from pipeline.training.sample import collate
from pipeline.training.settings import TrainSettings
from pipeline.training.trainer import Trainer

LABELS = {"person": "walker", "bicycle": "bike", "car": "car"}
"""label of the scene -> label in the data; the base model has no class walker or bike"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.json and val.json, whose categories are renamed."""
    folder = tmp_path_factory.mktemp("training") / "scene"
    write_coco_data(folder, (20, 3), (320, 192), seed=5)
    for name in ("train", "val"):
        path = folder / f"{name}.json"
        data = json.loads(path.read_text())
        for category in data["categories"]:
            category["name"] = LABELS[category["name"]]
        path.write_text(json.dumps(data))
    return folder


def settings(scene: Path, output: Path, **changes: object) -> TrainSettings:
    plain = TrainSettings(
        data=scene / "train.json",
        val=None,
        model="street",
        init=None,
        frozen=(),
        output=output,
        epochs=1.0,
        minutes=None,
        batch=2,
        lr=1e-3,
        optimizer="adamw",
        crop_hw=(96, 128),
        device="cpu",
        precision="fp32",
        seed=1,
        synthetic_share=0.0,
        workers=0,
        checkpoint_minutes=10.0,
        resume=False,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def train(given: TrainSettings) -> Trainer:
    reporter = Reporter()
    trainer = Trainer(given, reporter)
    assert trainer.run(lambda: False)
    return trainer


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_with_losses(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Losses, Losses]:
    """The folder of a run, and the losses on unseen samples before its first and after its last step."""
    folder = tmp_path_factory.mktemp("training") / "run"
    trainer = Trainer(settings(scene, folder, epochs=4.0, lr=3e-4, val=scene / "val.json"), Reporter())
    batch = collate([trainer._dataset[position] for position in range(1000, 1016)])

    # Random backgrounds only: the hardest backgrounds differ before and after training.
    random_loss = DetectionLoss(
        trainer._network, trainer.spec.mean, trainer.spec.std, nullcontext(), Sampling(hard_share=0.0)
    )

    def losses() -> Losses:
        torch.manual_seed(0)
        with torch.no_grad():
            return random_loss(batch)

    before = losses()
    assert trainer.run(lambda: False)
    return folder, before, losses()


@pytest.fixture(scope="module")
def trained(run_with_losses: tuple[Path, Losses, Losses]) -> Path:
    return run_with_losses[0]


def test_losses_decrease_and_new_classes_are_learnt(run_with_losses: tuple[Path, Losses, Losses]) -> None:
    trained, before, after = run_with_losses
    assert after.classes < 0.75 * before.classes
    assert after.total < 0.75 * before.total
    assert [line for line in metrics(trained) if "loss" in line]
    validations = [line for line in metrics(trained) if "box_ap" in line]
    assert len(validations) == 4
    # with three pictures the AP is low; people, whose output row was initialised randomly, must be found at all
    assert validations[-1]["ap_per_class"]["walker"] > 0.02
    assert set(validations[-1]["ap_per_class"]) <= set(LABELS.values())
    with Image.open(trained / "loss.png") as picture:
        assert picture.format == "PNG"


def test_trained_weights_carry_their_classes(trained: Path, scene: Path) -> None:
    weights = trained / "weights.safetensors"
    spec = spec_of_weights(get_model("street"), weights)
    assert spec.name == "street@weights"
    assert spec.labels == {1: "walker", 2: "bike", 3: "car"}
    assert {tensor.dtype for name, tensor in load_file(weights).items()} == {torch.float16}
    picture = read_coco(scene / "val.json", need_masks=True).pictures[0].path
    (found,) = segment(
        picture, model="street", weights=str(weights), conf=0.05, classes=["walker", "car"], device="cpu"
    )
    assert len(found)
    assert set(found.class_ids.tolist()) <= {1, 3}
    with pytest.raises(UsageError, match="class 'person' is unknown to model street@weights"):
        segment(picture, model="street", weights=str(weights), classes=["person"])


def test_weights_of_another_architecture_raise(trained: Path) -> None:
    with pytest.raises(ModelError, match="of architecture street; model maskrcnn_resnet50_fpn has"):
        spec_of_weights(get_model("maskrcnn_resnet50_fpn"), trained / "weights.safetensors")


def test_training_starts_from_the_weights_of_a_run(trained: Path, scene: Path, tmp_path: Path) -> None:
    trainer = train(settings(scene, tmp_path / "on", init=trained / "weights.safetensors", epochs=0.25, lr=1e-9))
    assert trainer.spec.name == "street@weights"
    first, second = load_file(trained / "weights.safetensors"), load_file(trainer.weights_path)
    # at this learning rate the weights do not change, so every class keeps its output row
    for name, tensor in first.items():
        torch.testing.assert_close(
            second[name], tensor, rtol=0, atol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_frozen_weights_do_not_change(trained: Path, scene: Path, tmp_path: Path) -> None:
    frozen = ("backbone.body", "roi_heads.box_head.fc6")
    init = trained / "weights.safetensors"
    trainer = train(settings(scene, tmp_path / "few", init=init, frozen=frozen, epochs=0.25))
    after = load_file(trainer.weights_path)
    for name, tensor in load_file(init).items():
        kept = name.startswith(frozen)
        if kept or tensor.ndim > 1:
            assert torch.equal(after[name], tensor) is kept, name


def test_folding_batch_norms_restores_the_packaged_weights() -> None:
    spec = get_model("street")
    before = start_network(spec, spec, None).state_dict()
    stored = stored_state(spec, before)
    assert stored.keys() != before.keys()
    path_state = load_file(ROOT / "pipeline" / "engine" / "weights" / spec.weights_file)
    assert stored.keys() == path_state.keys()
    for name, tensor in path_state.items():
        # packaged norms are biases only; folding multiplies by 1 / sqrt(1 + 1e-5), which differs from 1 by 5e-6
        torch.testing.assert_close(stored[name], tensor.float(), rtol=2e-5, atol=1e-6)


def test_output_rows_of_known_labels_are_copied(scene: Path) -> None:
    base = get_model("street")
    spec = spec_for_data(base, read_coco(scene / "train.json", need_masks=True))
    torch.manual_seed(0)
    network, source = start_network(spec, base, None), start_network(base, base, None)
    new, old = (net.roi_heads.box_predictor for net in (network, source))
    car = 1 + list(base.labels.values()).index("car")
    for row, other in ((0, 0), (3, car)):
        assert torch.equal(new.cls_score.weight[row], old.cls_score.weight[other])
        assert torch.equal(new.bbox_pred.weight[4 * row : 4 * row + 4], old.bbox_pred.weight[4 * other : 4 * other + 4])
    assert not any(torch.equal(new.cls_score.weight[1], row) for row in old.cls_score.weight)
    assert new.cls_score.out_features == 4


# -- stopping and resuming ---------------------------------------------------------------------------------------------


def start(scene: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """Start the run of settings(scene, output) by the command line, with a checkpoint after each step."""
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "train", "--data", str(scene / "train.json")]
    command += ["--output", str(output), "--epochs", "1", "--batch", "2", "--lr", "1e-3", "--crop", "96x128"]
    command += ["--device", "cpu", "--precision", "fp32", "--seed", "1", "--synthetic-share", "0"]
    command += ["--workers", "1", "--checkpoint-minutes", "0", *more]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline_s = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def stop(process: subprocess.Popen[str], number: int) -> str:
    try:
        process.send_signal(number)
        return process.communicate(timeout=60)[1]
    finally:
        process.kill()


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(scene: Path, tmp_path: Path) -> None:
    whole = train(settings(scene, tmp_path / "whole"))
    folder = tmp_path / "parts"
    checkpoint = folder / "checkpoint.pt"

    killed = start(scene, folder)
    wait_for(checkpoint, killed)
    time.sleep(random.uniform(0, 1.5))
    stop(killed, signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    before = checkpoint.stat().st_mtime_ns

    interrupted = start(scene, folder, "--resume")
    deadline_s = time.monotonic() + 90
    while checkpoint.stat().st_mtime_ns == before and time.monotonic() < deadline_s:
        time.sleep(0.02)
    stderr = stop(interrupted, signal.SIGINT)
    assert interrupted.returncode == 130, stderr
    assert "continue with the same command and --resume" in stderr
    assert "Traceback" not in stderr

    finished = train(settings(scene, folder, resume=True))
    assert finished.step == whole.step >= 10
    expected = load_file(whole.weights_path)
    for name, tensor in load_file(finished.weights_path).items():
        assert torch.equal(tensor, expected[name]), name
    steps = [line["step"] for line in metrics(folder) if "loss" in line]
    assert steps == sorted(set(steps))


def test_a_resumed_run_must_have_the_same_settings(scene: Path, tmp_path: Path) -> None:
    given = settings(scene, tmp_path / "run", epochs=0.25)
    train(given)
    with pytest.raises(UsageError, match="already has a run: continue it with --resume"):
        Trainer(given, Reporter())
    for changes, message in (
        ({"lr": 2e-3}, r"made with --lr 0\.001, not 0\.002"),
        ({"batch": 1}, "made with --batch 2, not 1"),
        ({"seed": 2}, "made with --seed 1, not 2"),
        ({"crop_hw": (64, 64)}, "made with --crop"),
        ({"frozen": ("backbone.body",)}, "made with --freeze nothing, not backbone.body"),
        ({"data": scene / "val.json"}, "made with --data with SHA-256"),
    ):
        with pytest.raises(UsageError, match=message):
            Trainer(dataclasses.replace(given, resume=True, **changes), Reporter())
    path = tmp_path / "run" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be read"):
        read_checkpoint(path, {})


def test_a_nan_loss_ends_the_run(scene: Path, tmp_path: Path) -> None:
    trainer = Trainer(settings(scene, tmp_path / "run", lr=1e6, optimizer="sgd", epochs=4.0), Reporter())
    with pytest.raises(MaskStreamError, match=r"NaN or infinite at step .* lower --lr"):
        trainer.run(lambda: False)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_training_with_bf16_and_sgd(scene: Path, tmp_path: Path) -> None:
    trainer = train(settings(scene, tmp_path / "run", precision="bf16", optimizer="sgd", lr=1e-2, epochs=0.5))
    with safe_open(trainer.weights_path, "np") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            assert np.isfinite(file.get_tensor(name)).all(), name


# -- unusable data ----------------------------------------------------------------------------------------------------


def changed_copy(scene: Path, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Copy the scene to `folder`, and return the folder and the content of its train.json."""
    shutil.copytree(scene, folder)
    return folder, json.loads((folder / "train.json").read_text())


def test_annotations_without_area_are_skipped_and_counted(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, content = changed_copy(scene, tmp_path / "scene")
    first = content["annotations"][0]
    content["annotations"] += [{**first, "id": number, "bbox": [9.5, 3.25, 1.03, 0.0]} for number in (900, 901)]
    (folder / "train.json").write_text(json.dumps(content))
    # validation must accept such an annotation, and annotations without `area`, which COCO's tools read
    val = json.loads((folder / "val.json").read_text())
    val["annotations"].append({**val["annotations"][0], "id": 900, "segmentation": [[1, 1, 2, 2]]})
    for entry in val["annotations"]:
        del entry["area"]
    (folder / "val.json").write_text(json.dumps(val))

    train(settings(folder, tmp_path / "run", epochs=0.1, val=folder / "val.json"))
    stderr = capsys.readouterr().err
    assert (
        f"maskstream: warning: data {folder / 'train.json'}: 2 annotations without area skipped: "
        "2 with an empty box (ids 900, 901)\n"
    ) in stderr
    assert (
        f"maskstream: warning: data {folder / 'val.json'}: 1 annotation without area skipped: "
        "1 with fewer than 3 points in its polygon (id 900)\n"
    ) in stderr
    (validation,) = (line for line in metrics(tmp_path / "run") if "box_ap" in line)
    train(settings(scene, tmp_path / "plain", epochs=0.1, val=scene / "val.json"))
    (expected,) = (line for line in metrics(tmp_path / "plain") if "box_ap" in line)
    assert validation == expected


def test_data_without_a_usable_annotation_raise(scene: Path, tmp_path: Path) -> None:
    folder, content = changed_copy(scene, tmp_path / "scene")
    for entry in content["annotations"]:
        entry["bbox"][3] = 0
    (folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="expected at least one annotation that covers part of its picture"):
        Trainer(settings(folder, tmp_path / "run"), Reporter())


def no_network(*arguments: object, **options: object) -> NoReturn:
    raise AssertionError("the model must not be loaded before its inputs have been checked")


@pytest.mark.parametrize("part", ["train", "val"])
def test_invalid_pictures_raise_before_the_model_is_loaded(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr("pipeline.training.trainer.start_network", no_network)
    folder, _ = changed_copy(scene, tmp_path / "scene")
    picture = folder / json.loads((folder / f"{part}.json").read_text())["images"][-1]["file_name"]
    picture.write_bytes(b"not a picture")
    given = settings(folder, tmp_path / "run", val=folder / "val.json")
    with pytest.raises(SourceError, match="cannot be read: not in a known picture format") as raised:
        Trainer(given, Reporter())
    assert str(raised.value).startswith(f"picture {picture}: ")
    assert not (tmp_path / "run").exists()


def test_invalid_weights_raise_before_the_model_is_loaded(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.training.trainer.start_network", no_network)
    for name in ("init.pth", "init.safetensors"):
        path = tmp_path / name
        path.write_text("these are no weights at all")
        with pytest.raises(ModelError, match=f"weights {path}: cannot be read"):
            Trainer(settings(scene, tmp_path / "run", init=path), Reporter())


def test_a_damaged_picture_ends_the_run_with_one_error_line_and_a_checkpoint(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of the picture is valid, so that only decoding detects the damage."""
    folder, _ = changed_copy(scene, tmp_path / "scene")
    given = settings(folder, tmp_path / "run")
    trainer = Trainer(given, Reporter())
    first_position: dict[Path, int] = {}
    with monkeypatch.context() as patch:

        def recorded(path: Path, hw: tuple[int, int]) -> object:
            first_position.setdefault(path, position)
            return read_rgb(path, hw)

        patch.setattr("pipeline.training.dataset.read_rgb", recorded)
        for position in range(trainer._dataset.epoch_length):
            trainer._dataset[position]
    picture = max(first_position, key=lambda path: first_position[path])
    first_step = first_position[picture] // given.batch
    assert first_step > 0
    whole = picture.read_bytes()
    picture.write_bytes(whole[:2000])

    with pytest.raises(SourceError) as raised:
        trainer.run(lambda: False)
    line = str(raised.value)
    assert line.startswith(f"picture {picture}: cannot be read: ")
    assert "\n" not in line
    assert trainer.step == first_step

    # an error in a loader process carries a traceback, which must not be printed
    by_command = start(folder, tmp_path / "by_command")
    stderr = by_command.communicate(timeout=100)[1]
    assert by_command.returncode == 1, stderr
    assert stderr.splitlines()[-1] == f"maskstream: error: {line}"
    assert "Traceback" not in stderr
    assert (tmp_path / "by_command" / "checkpoint.pt").is_file()

    picture.write_bytes(whole)
    assert Trainer(dataclasses.replace(given, resume=True), Reporter()).step == first_step


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)],
    ids=["180 degrees", "90 degrees"],
)
def test_pictures_with_exif_orientation_train_like_upright_ones(
    scene: Path, tmp_path: Path, orientation: int, turn: Image.Transpose
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    samples = []
    for name in ("plain", "turned"):
        folder, content = changed_copy(scene, tmp_path / name)
        for entry in content["images"]:
            picture = Image.open(folder / entry["file_name"]).convert("RGB")
            entry["file_name"] = str(Path(entry["file_name"]).with_suffix(".png"))
            if name == "turned":
                picture.transpose(turn).save(folder / entry["file_name"], exif=exif.tobytes())
            else:
                picture.save(folder / entry["file_name"])
        (folder / "train.json").write_text(json.dumps(content))
        trainer = Trainer(settings(folder, tmp_path / f"run-{name}"), Reporter())
        samples.append([trainer._dataset[position] for position in range(8)])
    for plain, turned in zip(*samples, strict=True):
        assert torch.equal(plain.rgb, turned.rgb)
        assert torch.equal(plain.boxes, turned.boxes)


# -- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "1", "--minutes", "1"], "expected either --epochs N or --minutes T"),
        ([], "expected either --epochs N or --minutes T"),
        (["--epochs", "0"], "--epochs: expected a number above 0, got 0"),
        (["--epochs", "1", "--lr", "-1"], "--lr: expected a number above 0"),
        (["--epochs", "1", "--batch", "0"], "Invalid value for '--batch'"),
        (["--epochs", "1", "--crop", "big"], "--crop: expected two numbers"),
        (["--epochs", "1", "--crop", "100x100"], "--crop: expected multiples of 32"),
        (["--epochs", "1", "--optimizer", "adam"], "--optimizer: expected adamw or sgd"),
        (["--epochs", "1", "--device", "gpu"], "--device: expected auto, cpu"),
        (["--epochs", "1", "--precision", "fp8"], "--precision: expected auto, fp32, bf16 or fp16"),
        (["--epochs", "1", "--precision", "fp16", "--device", "cpu"], "precision fp16 needs CUDA"),
        (["--epochs", "1", "--model", "steet"], "did you mean 'street'?"),
        (["--epochs", "1", "--model", "keypointrcnn_resnet50_fpn"], "finds keypoints, which cannot be trained"),
        (["--epochs", "1", "--init", "nothing.safetensors"], "nothing.safetensors"),
        (["--epochs", "1", "--freeze", "body"], "--freeze body: the network has no such module; at that level it has"),
        (["--epochs", "1", "--freeze", "backbone.head"], "it has backbone.body, backbone.fpn"),
        (["--epochs", "1", "--val", "DATA"], "is the training data"),
    ],
)
def test_invalid_arguments_give_one_error_line(
    scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    data = str(scene / "train.json")
    given = [data if argument == "DATA" else argument for argument in arguments]
    code = run_pipeline.main(["train", "--data", data, "--output", str(tmp_path / "run"), *given])
    stderr = capsys.readouterr().err
    assert code == 2, stderr
    assert stderr.startswith("maskstream: error: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert not os.path.exists(tmp_path / "run" / "checkpoint.pt")


def test_the_synthetic_command_writes_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "scene"
    arguments = ["synthetic", str(folder), "--pictures", "2", "--val-pictures", "1", "--size", "320x192"]
    assert run_pipeline.main(arguments) == 0
    assert len(read_coco(folder / "train.json", need_masks=True).pictures) == 2
    assert run_pipeline.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
