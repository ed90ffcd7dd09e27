"""`evaluate coco` and `evaluate video` on synthetic pictures with the packaged model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.coco.average_precision import METRIC_NAMES
from pipeline.engine.architectures import build
from pipeline.evaluation.comparison_sheet import CAPTION_PX, GAP_PX, HEADING_PX, TILE_WH
from pipeline.synthetic import SceneConfig
from pipeline.synthetic.coco_data import write_coco_data

WIDTH, HEIGHT = 320, 180
NUM_PICTURES = 3
BOX_MODEL = "fasterrcnn_mobilenet_v3_large_320_fpn"
LABELS = ["person", "bicycle", "car"]
Run = Callable[..., tuple[int, str, str]]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def scene_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with val.json and its pictures."""
    folder = tmp_path_factory.mktemp("data") / "scene"
    write_coco_data(folder, (1, NUM_PICTURES), (WIDTH, HEIGHT), 0)
    return folder


def changed(scene_data: Path, folder: Path, change: Change) -> Path:
    """Write changed annotations to another folder than that of the pictures."""
    content = json.loads((scene_data / "val.json").read_text())
    change(content)
    path = folder / "changed.json"
    path.write_text(json.dumps(content))
    return path


# -- coco -------------------------------------------------------------------------------------------------------------


def test_coco_writes_json_and_files(run: Run, scene_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "report"
    code, out, err = run(
        "evaluate", "coco", "--data", scene_data / "val.json", "--model", "street", "--json", "--output", output
    )
    assert (code, err) == (0, f"files written to {output}\n")
    metrics = json.loads(out)
    assert metrics == json.loads((output / "metrics.json").read_text())
    assert (metrics["model"], metrics["num_pictures"], metrics["left_out_classes"]) == ("street", NUM_PICTURES, [])
    assert list(metrics["classes"]) == LABELS
    assert sum(row["num_objects"] for row in metrics["classes"].values()) == metrics["num_objects"] > 10
    for kind in ("box", "mask"):
        assert list(metrics[kind]) == list(METRIC_NAMES)
        assert 0.02 < metrics[kind]["AP"] < metrics[kind]["AP50"] < 1
    for name in ("iou", "dice"):
        known = [row[name] for row in metrics["classes"].values()]
        assert metrics[f"mean_{name}"] == pytest.approx(sum(known) / len(known), abs=1e-6)
    assert metrics["pictures_per_s"] > 0
    assert metrics["engine_ms"] > 0

    detections = json.loads((output / "detections.json").read_text())
    assert {entry["image_id"] for entry in detections} == {
        image["id"] for image in json.loads((scene_data / "val.json").read_text())["images"]
    }
    assert {entry["category_id"] for entry in detections} <= {1, 2, 3}
    assert detections[0]["segmentation"]["size"] == [HEIGHT, WIDTH]

    band = CAPTION_PX + TILE_WH[0] * HEIGHT // WIDTH + GAP_PX
    for name in ("worst", "best"):
        with Image.open(output / f"{name}.png") as sheet:
            sheet.load()
            assert sheet.size == (2 * TILE_WH[0] + GAP_PX, HEADING_PX + NUM_PICTURES * band)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)],
    ids=["180 degrees", "90 degrees"],
)
def test_exif_orientation_does_not_change_the_metrics(
    run: Run, scene_data: Path, tmp_path: Path, orientation: int, turn: Image.Transpose
) -> None:
    content = json.loads((scene_data / "val.json").read_text())
    exif = Image.Exif()
    exif[0x0112] = orientation
    for folder, is_turned in (("plain", False), ("turned", True)):
        for image in content["images"]:
            picture = Image.open(scene_data / image["file_name"]).convert("RGB")
            path = (tmp_path / folder / image["file_name"]).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            (picture.transpose(turn) if is_turned else picture).save(path, exif=exif.tobytes() if is_turned else b"")
    for image in content["images"]:
        image["file_name"] = str(Path(image["file_name"]).with_suffix(".png"))
    data = tmp_path / "val.json"
    data.write_text(json.dumps(content))
    metrics_by_folder = []
    for folder in ("plain", "turned"):
        arguments = ("evaluate", "coco", "--data", data, "--images", tmp_path / folder, "--model", "street", "--json")
        code, out, _ = run(*arguments)
        assert code == 0
        metrics_by_folder.append({kind: json.loads(out)[kind] for kind in ("box", "mask")})
    assert metrics_by_folder[0] == metrics_by_folder[1]
    assert metrics_by_folder[0]["box"]["AP"] > 0.02


def test_coco_prints_a_table_and_names_classes_that_the_model_lacks(
    run: Run, scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    data = changed(
        scene_data,
        tmp_path,
        lambda content: (
            content["categories"].append({"id": 90, "name": "tree"}),
            content["annotations"].append({**content["annotations"][0], "id": 999, "category_id": 90}),
            [entry.pop("area", None) for entry in content["annotations"]],
        ),
    )
    code, out, err = run("evaluate", "coco", "--data", data, "--images", scene_data, "--model", "street", "--num", 1)
    assert (code, err) == (0, "")
    assert out.startswith("street (")
    assert " on 1 picture of " in out
    assert "Classes that street does not know are left out: tree." in out
    for word in (*METRIC_NAMES, *LABELS, "IoU", "Dice", "pictures/s"):
        assert word in out, word
    assert max(map(len, out.splitlines()[1:])) <= 120


def test_data_without_masks_give_box_metrics_only(run: Run, scene_data: Path, tmp_path: Path) -> None:
    data = changed(
        scene_data, tmp_path, lambda content: [entry.pop("segmentation") for entry in content["annotations"]]
    )
    arguments = ("evaluate", "coco", "--data", data, "--images", scene_data, "--model", "street", "--num", 1)
    code, out, _ = run(*arguments, "--json", "--output", tmp_path / "report")
    metrics = json.loads(out)
    assert (code, metrics["mask"], metrics["mean_iou"]) == (0, None, None)
    assert metrics["no_masks"] == "annotations in changed.json have no segmentation"
    assert metrics["box"]["AP"] is not None
    assert "segmentation" not in json.loads((tmp_path / "report" / "detections.json").read_text())[0]


@pytest.fixture(scope="module")
def box_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network that classifies everything as a person."""
    torch.manual_seed(0)
    network = build(BOX_MODEL, 91)
    with torch.no_grad():
        network.roi_heads.box_predictor.cls_score.bias[1] = 4
    path = tmp_path_factory.mktemp("weights") / "boxes.pth"
    torch.save(network.state_dict(), path)
    return path


def test_a_model_of_boxes_gives_box_metrics_only(run: Run, scene_data: Path, tmp_path: Path, box_weights: Path) -> None:
    arguments = ("--data", scene_data / "val.json", "--model", BOX_MODEL, "--weights", box_weights, "--num", 1)
    code, out, _ = run("evaluate", "coco", *arguments, "--json", "--output", tmp_path / "report")
    metrics = json.loads(out)
    assert (code, metrics["mask"], metrics["mean_iou"]) == (0, None, None)
    assert metrics["no_masks"] == f"model {BOX_MODEL} finds boxes alone"
    assert metrics["box"]["AP"] is not None
    detections = json.loads((tmp_path / "report" / "detections.json").read_text())
    assert {entry["category_id"] for entry in detections} == {1}
    with Image.open(tmp_path / "report" / "worst.png") as sheet:
        assert np.any(np.all(np.asarray(sheet) == (255, 45, 45), axis=2)), "no false positive is outlined in red"
    code, out, _ = run("evaluate", "coco", *arguments)
    assert (code, f"No mask metrics: model {BOX_MODEL} finds boxes alone." in out) == (0, True)


def test_annotations_without_area_are_skipped_and_counted(run: Run, scene_data: Path, tmp_path: Path) -> None:
    """Two boxes of height 0, as in COCO's instances_train2017.json."""

    def add_empty_boxes(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        for number in (900, 901):
            polygon = [296.65, 338.33, 297.68, 338.33, 297.68, 338.33, 296.65, 338.33]
            empty = {"bbox": [96.65, 38.33, 1.03, 0.0], "area": 0.0, "segmentation": [polygon]}
            content["annotations"].append({**first, "id": number, **empty})

    data = changed(scene_data, tmp_path, add_empty_boxes)
    arguments = ("--images", scene_data, "--model", "street", "--num", 1, "--json")
    code, out, err = run("evaluate", "coco", "--data", data, *arguments)
    assert code == 0
    assert err == (
        f"maskstream: warning: data {data}: 2 annotations without area skipped: 2 with an empty box (ids 900, 901)\n"
    )
    code, expected, err = run("evaluate", "coco", "--data", scene_data / "val.json", *arguments)
    assert (code, err) == (0, "")
    for name in ("box", "mask", "num_objects", "classes", "mean_iou", "mean_quality"):
        assert json.loads(out)[name] == json.loads(expected)[name], name


def test_a_damaged_picture_is_skipped_and_named(run: Run, scene_data: Path, tmp_path: Path) -> None:
    """The header of the picture is valid, so that only decoding detects the damage."""
    folder = tmp_path / "scene"
    shutil.copytree(scene_data, folder)
    picture = folder / json.loads((folder / "val.json").read_text())["images"][1]["file_name"]
    picture.write_bytes(picture.read_bytes()[:2000])
    code, out, err = run("evaluate", "coco", "--data", folder / "val.json", "--model", "street", "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith(f"maskstream: warning: picture {picture}: cannot be read: ")
    assert err.endswith("; the picture is left out\n")
    metrics = json.loads(out)
    assert (metrics["num_pictures"], metrics["num_damaged_pictures"]) == (NUM_PICTURES - 1, 1)


def no_engine(*arguments: object, **options: object) -> NoReturn:
    raise AssertionError("the model must not be loaded before its inputs have been checked")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read: not in a known picture format"),
        (b"not a picture", "cannot be read: not in a known picture format"),
        (None, "is 7 x 5 pixels, its annotations say 320 x 180"),
    ],
    ids=["empty", "text", "other size"],
)
def test_invalid_pictures_raise_before_the_model_is_loaded(
    run: Run, scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, words: str
) -> None:
    monkeypatch.setattr("pipeline.engine.engine.load_engine", no_engine)
    folder = tmp_path / "scene"
    shutil.copytree(scene_data, folder)
    picture = folder / json.loads((folder / "val.json").read_text())["images"][-1]["file_name"]
    if content is None:
        Image.new("RGB", (7, 5)).save(picture)
    else:
        picture.write_bytes(content)
    code, out, err = run("evaluate", "coco", "--data", folder / "val.json", "--model", "street")
    assert (code, out, err) == (1, "", f"maskstream: error: picture {picture}: {words}\n")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.pth", b"", "it is empty"),
        ("text.pth", b"weights", "it is not a torch file"),
        ("text.safetensors", b"these are no weights at all", "its header is damaged"),
        ("short.pth", b"PK\x03\x04" + bytes(100), "its end is missing"),
    ],
)
def test_invalid_weights_raise_before_the_model_is_loaded(
    run: Run,
    scene_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    words: str,
) -> None:
    monkeypatch.setattr("pipeline.engine.engine.load_engine", no_engine)
    path = tmp_path / name
    path.write_bytes(content)
    data = scene_data / "val.json"
    code, out, err = run("evaluate", "coco", "--data", data, "--model", "street", "--weights", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"weights {path}: cannot be read ({words})" in err


INVALID_DATA: dict[str, tuple[Change, str]] = {
    "not-coco": (lambda content: content.pop("images"), "not COCO JSON"),
    "no-annotations": (lambda content: content["annotations"].clear(), "expected annotations of person, bicycle, car"),
    "other-classes": (
        lambda content: [entry.update(name=entry["name"] + " of wood") for entry in content["categories"]],
        "model street knows none of its categories (person of wood,",
    ),
    "no-picture": (lambda content: content["images"][1].update(file_name="none.jpg"), "none.jpg is missing"),
}


@pytest.mark.parametrize("name", INVALID_DATA)
def test_invalid_data_give_one_error_line(run: Run, scene_data: Path, tmp_path: Path, name: str) -> None:
    change, words = INVALID_DATA[name]
    data = changed(scene_data, tmp_path, change)
    code, out, err = run("evaluate", "coco", "--data", data, "--images", scene_data, "--model", "street")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert str(data) in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["coco"], "--data"),
        (["coco", "--data", "none.json"], "none.json: there is no such file"),
        (["coco", "--data", "VAL", "--images", "nowhere"], "--images nowhere: there is no such folder"),
        (["coco", "--data", "VAL", "--model", "keypointrcnn_resnet50_fpn"], "finds keypoints, which are not evaluated"),
        (["coco", "--data", "VAL", "--conf", "2"], "--conf"),
        (["coco", "--data", "VAL", "--num", "0"], "--num"),
        (["coco", "--data", "VAL", "--model", "street", "--weights", "none.pth"], "none.pth: there is no such file"),
        (["video", "--size", "large"], "--size: expected two numbers of pixels such as 960x540"),
        (["video", "--size", "321x180"], "width must be even"),
        (["video", "--seconds", "0"], "--seconds: expected a number above 0, got 0"),
        (["video", "--fps", "0"], "fps must be above 0"),
        (["video", "--seed", "-1"], "seed must not be negative"),
        (["video", "--model", "keypointrcnn_resnet50_fpn"], "finds keypoints, which are not evaluated"),
        (["nothing"], "nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_give_one_error_line(
    run: Run, scene_data: Path, tmp_path: Path, arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(scene_data / "val.json") if argument == "VAL" else argument for argument in arguments]
    code, out, err = run("evaluate", *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_folder_that_cannot_be_created_gives_one_error_line(run: Run, scene_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "report"
    code, out, err = run("evaluate", "coco", "--data", scene_data / "val.json", "--model", "street", "--output", output)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"cannot write {output}" in err


# -- video ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_video_through_the_pipeline(run: Run, tmp_path: Path, redis_binary: object) -> None:
    """The demo scene with a quarter of its pixels and half of its frames."""
    output, (width, height) = tmp_path / "report", (480, 270)
    code, out, err = run(
        "evaluate", "video", "--size", f"{width}x{height}", "--fps", "12.5", "--model", "street",
        "--json", "--output", output,
    )  # fmt: skip
    assert (code, err) == (0, f"files written to {output}\n")
    metrics = json.loads(out)
    assert metrics == json.loads((output / "metrics.json").read_text())
    seed = SceneConfig().seed
    assert metrics["scene"] == {"width": width, "height": height, "fps": 12.5, "num_frames": 125, "seed": seed}
    assert sum(row["num_objects"] for row in metrics["classes"].values()) == metrics["num_objects"] > 25
    pipeline, engine_alone = metrics["pipeline"], metrics["engine_alone"]
    for side in (pipeline, engine_alone):
        assert side["num_objects"] == metrics["num_objects"]
        assert side["mask"]["AP50"] >= 0.7
        assert side["mota"] >= 0.8
        num_errors = side["num_missed"] + side["num_false"] + side["num_switches"]
        assert side["mota"] == pytest.approx(1 - num_errors / side["num_objects"], abs=1e-6)
    # wrong frame numbers or a wrong scale would lower the AP to nearly 0
    assert pipeline["mask"]["AP50"] > 0.9 * engine_alone["mask"]["AP50"]
    assert (output / "scene.mp4").stat().st_size > 1000
    for name in ("worst", "best"):
        with Image.open(output / f"{name}.png") as sheet:
            sheet.load()
            band = CAPTION_PX + TILE_WH[0] * height // width + GAP_PX
            assert sheet.height == HEADING_PX + 6 * band
