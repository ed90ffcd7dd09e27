"""The engine with the packaged weights and torchvision's networks, compared with torchvision's own forward pass."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from support.engine_cases import SCORE_TOLERANCE, assert_same, found_on, frame_of, street_pictures
from torchvision.models.detection import MaskRCNN

from ops.mask_format import rle_area
from ops.masks import encode_rle
from ops.preprocess import preprocess_batch
from pipeline.api import segment
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.engine import Engine, load_engine
from pipeline.engine.architectures import build, fold_batch_norm
from pipeline.engine.device import choose_dtype
from pipeline.engine.weights import load_weights
from pipeline.errors import ModelError, SourceError, UsageError
from pipeline.models.registry import MODELS, weights_path

STREET = MODELS["street"]
BUNDLED = weights_path(STREET)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    num_threads = torch.get_num_threads()
    yield load_engine("street", device="cpu", precision="fp32", threads=2)
    torch.set_num_threads(num_threads)  # a setting of the process, which later tests compare with other processes


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return street_pictures()


def by_torchvision(network: MaskRCNN, frame: I420Frame) -> Detections:
    """Return the detections of torchvision's forward pass on the frame, converted to float RGB."""
    hw = (frame.height, frame.width)
    rgb = preprocess_batch([frame], [hw], hw, (0, 0, 0), (1, 1, 1))[0]
    with torch.inference_mode():
        (result,) = network([torch.from_numpy(rgb).permute(2, 0, 1)])
    class_ids = np.array([0, *STREET.head_class_ids], np.int32)[result["labels"].numpy()]
    masks = result["masks"][:, 0].numpy() > 0.5
    found = Detections(
        result["boxes"].numpy(), result["scores"].numpy(), class_ids, None, [], frame.width, frame.height
    )
    found.rle_counts = [encode_rle(mask) for mask in masks]
    return found


def test_detections_equal_torchvisions(engine: Engine, pictures: list[NDArray[np.uint8]]) -> None:
    network = build("street", 7)
    load_weights(network, STREET, None)
    network.transform.min_size, network.transform.max_size = (STREET.min_size,), STREET.max_size
    network.transform.image_mean, network.transform.image_std = STREET.mean, STREET.std
    for picture in pictures:
        frame = frame_of(picture)
        (found,) = found_on(engine, frame)
        assert len(found) > 10
        assert_same(found, by_torchvision(network, frame))


def test_a_frame_does_not_depend_on_its_neighbours(engine: Engine, pictures: list[NDArray[np.uint8]]) -> None:
    frames = [
        frame_of(pictures[0]),
        frame_of(pictures[1][:, :320].copy()),
        frame_of(pictures[2]),
        frame_of(pictures[1][:160]),
    ]
    together = found_on(engine, *frames)
    for frame, found in zip(frames, together, strict=True):
        (alone,) = found_on(engine, frame)
        assert len(alone) > 0
        assert_same(found, alone)


def test_detections_are_in_pixels_of_the_source(engine: Engine, pictures: list[NDArray[np.uint8]]) -> None:
    (same,) = found_on(engine, frame_of(pictures[0]))
    (large,) = found_on(engine, frame_of(pictures[0], source_wh=(2046, 1536)))
    assert (large.width, large.height) == (2046, 1536)
    np.testing.assert_array_equal(large.scores, same.scores)
    np.testing.assert_array_equal(large.mask_bits, same.mask_bits)
    np.testing.assert_allclose(large.boxes_xyxy, same.boxes_xyxy * [3, 4, 3, 4], rtol=1e-6)
    areas = [[rle_area(counts) for counts in found.rle_counts] for found in (same, large)]
    big = np.array(areas[0]) > 400
    # rounding of boxes and outlines to pixels has a larger effect in the small picture
    np.testing.assert_allclose(np.array(areas[1])[big], 12 * np.array(areas[0])[big], rtol=0.15)


def test_arrays_have_the_documented_shapes(engine: Engine, pictures: list[NDArray[np.uint8]]) -> None:
    (found,) = found_on(engine, frame_of(pictures[0]))
    num = len(found)
    assert (found.boxes_xyxy.shape, found.boxes_xyxy.dtype) == ((num, 4), np.float32)
    assert (found.scores.shape, found.scores.dtype) == ((num,), np.float32)
    assert (found.class_ids.shape, found.class_ids.dtype) == ((num,), np.int32)
    assert found.mask_bits is not None
    assert (found.mask_bits.shape, found.mask_bits.dtype) == ((num, 98), np.uint8)
    assert found.masks().shape == (num, 384, 682)
    assert set(found.class_ids.tolist()) <= set(STREET.labels)
    assert (np.diff(found.scores) <= 0).all()
    assert (found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all()
    assert found.boxes_xyxy.min() >= 0
    assert (found.boxes_xyxy[:, 2:] <= [682, 384]).all()


def test_masks_lie_in_their_boxes_and_agree_with_the_packed_bits(
    engine: Engine, pictures: list[NDArray[np.uint8]]
) -> None:
    (found,) = found_on(engine, frame_of(pictures[0]))
    filled = np.unpackbits(found.mask_bits, axis=1).mean(axis=1)
    for box_xyxy, share, mask in zip(found.boxes_xyxy, filled, found.masks(), strict=True):
        x1, y1, x2, y2 = box_xyxy
        inside = mask[max(int(y1) - 2, 0) : int(y2) + 3, max(int(x1) - 2, 0) : int(x2) + 3].sum()
        assert inside == mask.sum()
        if min(x2 - x1, y2 - y1) > 30:  # pasting adds up to one pixel on each side
            assert mask.sum() / ((x2 - x1) * (y2 - y1)) == pytest.approx(share, abs=0.07)


def test_each_frame_has_its_own_filters(engine: Engine, pictures: list[NDArray[np.uint8]]) -> None:
    frames = [frame_of(pictures[0])] * 4
    found = engine.infer(frames, min_scores=[0.05, 0.5, 0.05, 0.05], class_ids=[None, None, {3}, []])
    everything = found[0]
    for filtered, keep in (
        (found[1], everything.scores >= 0.5),
        (found[2], everything.class_ids == 3),
        (found[3], np.zeros(len(everything), bool)),
    ):
        np.testing.assert_allclose(filtered.scores, everything.scores[keep], atol=SCORE_TOLERANCE)
        np.testing.assert_array_equal(filtered.class_ids, everything.class_ids[keep])
    assert 0 < len(found[1]) < len(everything)
    assert 0 < len(found[2]) < len(everything)


def test_no_frames_give_no_detections(engine: Engine) -> None:
    assert engine.infer([], min_scores=[], class_ids=[]) == []


def test_every_frame_needs_its_filters(engine: Engine, pictures: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(ValueError, match="1 frames, 2 scores, 1 sets"):
        engine.infer([frame_of(pictures[0])], min_scores=[0.5, 0.5], class_ids=[None])


@pytest.mark.parametrize("hw", [(2, 2), (2, 640), (320, 2), (34, 62)], ids=str)
def test_small_and_narrow_frames_are_accepted(engine: Engine, hw: tuple[int, int]) -> None:
    engine.warm_up([hw])
    (found,) = found_on(engine, frame_of(np.full((*hw, 3), 90, np.uint8)))
    assert (found.height, found.width) == hw


def test_bf16_detects_high_scoring_objects(engine: Engine, pictures: list[NDArray[np.uint8]]) -> None:
    low = load_engine("street", device="cpu", precision="bf16")
    assert low.precision == "bf16"
    frame = frame_of(pictures[0])
    (exact,), (found,) = (e.infer([frame], min_scores=[0.7], class_ids=[None]) for e in (engine, low))
    # bf16 has 8 bits of precision: scores change by a few hundredths, so detections near the threshold may differ
    assert abs(len(exact) - len(found)) <= 2
    assert found.scores[0] == pytest.approx(exact.scores[0], abs=0.05)


@pytest.mark.parametrize("architecture", ["street", "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_folding_batch_norms_changes_no_output(architecture: str) -> None:
    torch.manual_seed(5)
    network = build(architecture, 7)
    norms = [module for module in network.modules() if hasattr(module, "running_mean")]
    for norm in norms:
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.1)
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    picture, rois = torch.randn(1, 3, 64, 96), torch.randn(3, 128 if architecture == "street" else 256, 14, 14)
    with torch.inference_mode():
        before = [*network.backbone(picture).values(), network.roi_heads.mask_head(rois)]
        fold_batch_norm(network)
        after = [*network.backbone(picture).values(), network.roi_heads.mask_head(rois)]
    assert not [module for module in network.modules() if hasattr(module, "running_mean")]
    for expected, found in zip(before, after, strict=True):
        # float32 sums in another order, over about 50 layers
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"])
def test_torchvisions_networks_run(name: str, pictures: list[NDArray[np.uint8]]) -> None:
    torch.manual_seed(5)
    spec = dataclasses.replace(MODELS[name], min_size=64, max_size=128)
    engine = Engine(build(spec.architecture, 91), spec, torch.device("cpu"), "fp32")
    engine.warm_up([(64, 112)])
    (found,) = found_on(engine, frame_of(pictures[0][:64, :112]))
    assert set(found.class_ids.tolist()) <= set(spec.labels)


def test_weights_from_a_file_equal_the_packaged_weights(
    tmp_path: Path, engine: Engine, pictures: list[NDArray[np.uint8]]
) -> None:
    state = load_file(BUNDLED)
    torch.save(state, tmp_path / "mine.pth")
    save_file(state, tmp_path / "mine.safetensors")
    frame = frame_of(pictures[0])
    for file in ("mine.pth", "mine.safetensors"):
        other = load_engine("street", weights=str(tmp_path / file), device="cpu", precision="fp32")
        assert_same(*found_on(other, frame), *found_on(engine, frame))


def truncated(path: Path) -> None:
    path.write_bytes(BUNDLED.read_bytes()[:100_000])


def truncated_torch(path: Path) -> None:
    torch.save(load_file(BUNDLED), path)
    path.write_bytes(path.read_bytes()[:100_000])


def empty(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("not weights")


def other_architecture(path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3)}, path)


def other_class_count(path: Path) -> None:
    state = load_file(BUNDLED)
    state["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(91, 512)
    torch.save(state, path)


def other_categories(path: Path) -> None:
    save_file(load_file(BUNDLED), path, {"categories": json.dumps([[i, f"thing {i}"] for i in range(1, 7)])})


def not_a_state_dict(path: Path) -> None:
    torch.save([1, 2], path)


def pickled_code(path: Path) -> None:
    torch.save({"weights": Path("x")}, path)


@pytest.mark.parametrize(
    ("damage", "suffix", "message"),
    [
        (truncated, ".safetensors", "cannot be read"),
        (truncated_torch, ".pth", "cannot be read"),
        (empty, ".safetensors", "cannot be read"),
        (empty, ".pth", "cannot be read"),
        (text, ".safetensors", "cannot be read"),
        (text, ".pth", "cannot be read"),
        (pickled_code, ".pth", "cannot be read"),
        (not_a_state_dict, ".pth", "expected a state dict"),
        (other_architecture, ".safetensors", "not of architecture street with 6 classes: Missing key"),
        (other_class_count, ".pth", "size mismatch for roi_heads.box_predictor.cls_score.weight"),
        (other_categories, ".safetensors", "made for the classes thing 1, "),
        (lambda path: None, ".pth", "there is no such file"),
        (lambda path: path.mkdir(), ".pth", "there is no such file"),
    ],
)
def test_wrong_weights_give_one_error_line(tmp_path: Path, damage, suffix: str, message: str) -> None:
    path = tmp_path / f"mine{suffix}"
    damage(path)
    with pytest.raises(ModelError) as raised:
        load_weights(build("street", 7), STREET, str(path))
    line = str(raised.value)
    assert line.startswith(f"weights {path}: ")
    assert message in line
    assert "street" in line
    assert "\n" not in line
    assert len(line) < 500


def test_damaged_packaged_weights_are_detected() -> None:
    with pytest.raises(ModelError, match=r"street.safetensors: damaged \(sha256 .* reinstall"):
        load_weights(build("street", 7), dataclasses.replace(STREET, sha256="0" * 64), None)


def test_weights_that_cannot_be_downloaded_give_one_error_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = MODELS["maskrcnn_resnet50_fpn"]
    unreachable = dataclasses.replace(spec, weights_url=f"https://127.0.0.1:9/{spec.weights_file}")
    with pytest.raises(ModelError) as raised:
        load_weights(build("street", 7), unreachable, None)
    line = str(raised.value)
    assert f"put the file {spec.weights_file} into {tmp_path}/hub/checkpoints, or use --model street" in line
    assert "\n" not in line


def test_cached_weights_need_no_network_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state dict has the form of torchvision's file: old names, and frozen batch norms without counters."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    spec = MODELS["maskrcnn_resnet50_fpn"]
    state = {name: tensor for name, tensor in build(spec.architecture, 91).state_dict().items() if "num_b" not in name}
    state = {re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0", r"\1.\2", name): tensor for name, tensor in state.items()}
    state = {name.replace("rpn.head.conv.0.0", "rpn.head.conv"): tensor for name, tensor in state.items()}
    for index in range(4):
        for kind in ("weight", "bias"):
            tensor = state.pop(f"roi_heads.mask_head.{index}.0.{kind}")
            state[f"roi_heads.mask_head.mask_fcn{index + 1}.{kind}"] = tensor
    weights_path(spec).parent.mkdir(parents=True)
    torch.save(state, weights_path(spec))
    assert load_engine(spec.name, device="cpu", precision="bf16").spec is spec


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_cuda_device_gives_one_error_line() -> None:
    with pytest.raises(UsageError, match=r"^device cuda:1: torch .* finds no CUDA device here; use --device cpu$"):
        load_engine("street", device="cuda:1")


def test_fp16_on_the_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match="fp16 needs CUDA"):
        choose_dtype("fp16", torch.device("cpu"))


def test_segment_takes_arrays_pictures_and_paths(tmp_path: Path, pictures: list[NDArray[np.uint8]]) -> None:
    image = Image.fromarray(pictures[0])
    path = tmp_path / "street.png"
    image.save(path)
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF orientation: rotate clockwise by 90 degrees
    image.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    options = {"model": "street", "device": "cpu", "precision": "fp32", "conf": 0.3}
    (expected,) = segment(pictures[0], **options)
    assert len(expected) > 3
    for found in segment([image, str(path), turned], batch=2, **options):
        assert_same(found, expected)


def test_segment_returns_pixels_of_the_picture(pictures: list[NDArray[np.uint8]]) -> None:
    large = np.asarray(Image.fromarray(pictures[0]).resize((1001, 563)))
    (found,) = segment(large, model="street", device="cpu", classes=["car"], conf=0.3)
    assert (found.width, found.height) == (1001, 563)
    assert set(found.class_ids.tolist()) == {3}
    assert found.masks().shape[1:] == (563, 1001)


def test_segment_raises_for_invalid_input(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SourceError, match=r"broken.png: cannot be read"):
        segment(tmp_path / "broken.png", model="street", device="cpu")
    with pytest.raises(SourceError, match=r"nowhere.png: cannot be read"):
        segment("nowhere.png", model="street", device="cpu")
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB, got \(4, 4\)"):
        segment(np.zeros((4, 4), np.uint8), model="street", device="cpu")
    with pytest.raises(UsageError, match="'tram' is unknown"):
        segment(np.zeros((4, 4, 3), np.uint8), model="street", device="cpu", classes=["tram"])
