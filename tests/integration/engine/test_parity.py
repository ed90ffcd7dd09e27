"""The parity benchmark on the synthetic scene, on real pictures if available, and on engines with deliberate errors."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from benchmarks import judge, parity
from benchmarks.judge import Torchvision, agreement, average_precision, model_frame, partners, rgb_of
from ops import reference
from ops.mask_format import decode_rle
from ops.masks import encode_rle
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.engine import Engine, load_engine
from pipeline.engine.architectures import build
from pipeline.engine.weights import load_weights
from pipeline.models.registry import MODELS
from pipeline.synthetic import Scene, SceneConfig

STREET = MODELS["street"]

NUM_PICTURES = 4


@pytest.fixture(scope="module")
def torchvision() -> Torchvision:
    return Torchvision.load(STREET)


@pytest.fixture(scope="module")
def scene_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the scene, larger than the model's input, with ground truth in COCO format."""
    folder = tmp_path_factory.mktemp("scene")
    (folder / "images").mkdir()
    scene = Scene(SceneConfig(width=852, height=480, num_frames=100, num_people=8, num_cars=4))
    data = {"images": [], "annotations": [], "categories": [{"id": i, "name": name} for i, name in STREET.categories]}
    for image_id in range(1, NUM_PICTURES + 1):
        frame = scene.render(image_id * 20)
        name = f"{image_id}.png"
        Image.fromarray(frame.image).save(folder / "images" / name)
        data["images"].append({"id": image_id, "file_name": name, "width": 852, "height": 480})
        for item in frame.objects:
            x1, y1, x2, y2 = item.box_xyxy
            counts = encode_rle(frame.mask(item.object_id)).decode()
            entry = {"id": len(data["annotations"]) + 1, "image_id": image_id, "category_id": item.class_id}
            entry |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": item.area_px, "iscrowd": 0}
            data["annotations"].append(entry | {"segmentation": {"size": [480, 852], "counts": counts}})
    path = folder / "truth.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module")
def frames(scene_data: Path) -> list[I420Frame]:
    truth = parity.read_truth(scene_data)
    return [model_frame(picture, STREET) for _, picture in parity.pictures(truth, scene_data.parent / "images", None)]


@pytest.fixture(scope="module")
def expected(torchvision: Torchvision, frames: list[I420Frame]) -> list[Detections]:
    return [torchvision.on_frame(frame) for frame in frames]


def found_on(engine: Engine, frames: list[I420Frame]) -> list[Detections]:
    return [engine.infer([frame], min_scores=[0.0], class_ids=[None])[0] for frame in frames]


def fails(founds: list[Detections], expecteds: list[Detections]) -> bool:
    """Return whether the detections miss a goal of fp32."""
    agreed = agreement(founds, expecteds)
    return agreed.share < parity.MIN_SHARE or agreed.least_iou < parity.MIN_MASK_IOU


def detections(boxes: list[tuple[float, ...]], scores: list[float], class_ids: list[int], **rest: object) -> Detections:
    found = Detections.empty(100, 80, with_masks=False)
    return dataclasses.replace(
        found,
        boxes_xyxy=np.array(boxes, np.float32),
        scores=np.array(scores, np.float32),
        class_ids=np.array(class_ids, np.int32),
        **rest,
    )


# -- the comparison with torchvision


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("matrix", list(ColourMatrix))
def test_torchvision_gets_the_reference_conversion(matrix: ColourMatrix, full_range: bool) -> None:
    data = np.random.default_rng(0).integers(0, 256, 12 * 10 * 3 // 2, np.uint8)
    frame = I420Frame(data, 12, 10, 12, 10, matrix, full_range)
    shares = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}[matrix]
    expected = reference.i420_to_rgb(*frame.planes(), *shares, full_range=full_range)
    np.testing.assert_allclose(rgb_of(frame).permute(1, 2, 0).numpy(), expected, atol=2**-24)  # rounded to float32


@pytest.mark.parametrize("hw", [(320, 568), (300, 640), (426, 320), (96, 64)], ids=str)
def test_the_comparison_uses_torchvisions_forward_pass_without_a_resize(
    torchvision: Torchvision, hw: tuple[int, int]
) -> None:
    """For a source of the input size, the result is bit-identical to a call of the network."""
    picture = Scene(SceneConfig(width=hw[1], height=hw[0], num_frames=30)).render(20).image
    frame = I420Frame(judge.rgb_to_i420(picture), hw[1], hw[0], hw[1], hw[0], ColourMatrix.BT601, full_range=True)
    found = torchvision.on_frame(frame)
    seen: list[torch.Tensor] = []
    handle = torchvision.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        (result,) = torchvision.network([rgb_of(frame)])
    handle.remove()
    normalised = (rgb_of(frame) - 0.5) / 0.5
    assert torch.equal(seen[0][0, :, : hw[0], : hw[1]], normalised)
    np.testing.assert_array_equal(found.boxes_xyxy, result["boxes"])
    np.testing.assert_array_equal(found.scores, result["scores"])
    np.testing.assert_array_equal(found.masks(), result["masks"][:, 0].numpy() > 0.5)


def test_the_picture_itself_is_resized_by_torchvision(torchvision: Torchvision) -> None:
    picture = Image.fromarray(Scene(SceneConfig(width=852, height=480, num_frames=30)).render(20).image)
    seen: list[torch.Tensor] = []
    handle = torchvision.network.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = torchvision.on_picture(picture)
    handle.remove()
    assert seen[0].shape == (1, 3, 384, 704)
    assert (found.width, found.height) == (852, 480)
    assert found.boxes_xyxy[:, 2].max() > 640


def test_matches_have_equal_class_position_and_score() -> None:
    box = (10.0, 10.0, 60.0, 60.0)
    expected = detections([box], [0.5], [1])
    for found, num in (
        (detections([box], [0.5009], [1]), 1),
        (detections([box], [0.5011], [1]), 0),
        (detections([box], [0.5], [2]), 0),
        (detections([(10, 10, 60, 60.4)], [0.5], [1]), 1),  # IoU 0.992
        (detections([(10, 10, 60, 60.6)], [0.5], [1]), 0),  # 0.988
        (detections([box, box], [0.5, 0.5], [1, 1]), 1),
        (Detections.empty(100, 80, with_masks=False), 0),
    ):
        assert len(partners(found, expected)) == num
    assert len(partners(expected, Detections.empty(100, 80, with_masks=False))) == 0


def test_the_number_of_matches_is_maximal() -> None:
    """The first detection matches both expected ones, the second only the first."""
    box = (10.0, 10.0, 60.0, 60.0)
    found = detections([box, box], [0.5, 0.4992], [1, 1])
    expected = detections([box, box], [0.4998, 0.5008], [1, 1])
    assert sorted(map(tuple, partners(found, expected).tolist())) == [(0, 1), (1, 0)]


def test_the_share_counts_expected_detections_and_masks_are_compared_by_pixel() -> None:
    box, other = (10.0, 10.0, 60.0, 60.0), (70.0, 10.0, 90.0, 60.0)
    mask = np.zeros((80, 100), bool)
    mask[10:60, 10:60] = True
    shifted = np.roll(mask, 1, axis=1)
    empty = np.zeros_like(mask)
    expected = detections([box, other], [0.5, 0.4], [1, 1], rle_counts=[encode_rle(mask), encode_rle(empty)])
    found = detections([box, box], [0.5, 0.9], [1, 1], rle_counts=[encode_rle(shifted), encode_rle(mask)])
    agreed = agreement([found, expected], [expected, expected])
    assert agreed.num_expected == 4
    assert agreed.share == 0.75
    np.testing.assert_allclose(sorted(agreed.mask_ious), [49 / 51, 1, 1])


def test_masks_with_ambiguous_pasting_are_counted_separately() -> None:
    """The box of 14 px, widened by 30/28, grows by half a pixel on each side, from half-pixel edges to whole pixels."""
    mask = np.zeros((80, 100), bool)
    mask[20:34, 20:34] = True
    rles = [encode_rle(mask)], [encode_rle(np.roll(mask, 1, axis=0))]
    for edge, num_compared in ((20.5, 0), (20.5 + 5e-5, 0), (20.5 - 5e-5, 0), (20.5 + 5e-4, 1), (20.2, 1)):
        found, expected = (detections([(20.2, edge, 34.2, edge + 14)], [0.5], [1], rle_counts=rle) for rle in rles)
        agreed = agreement([found], [expected])
        assert (agreed.num_partners, len(agreed.mask_ious), agreed.share) == (1, num_compared, 1)
        assert agreed.share_undecided == 1 - num_compared
        assert (agreed.least_iou < 0.9) == bool(num_compared)


def test_no_expected_detections_means_full_agreement() -> None:
    nothing = Detections.empty(100, 80)
    assert agreement([nothing], [nothing]).share == 1.0


def test_average_precision_by_hand(tmp_path: Path) -> None:
    """One of two people is detected; a car on a picture that labels only people does not count."""
    mask = np.zeros((80, 100), bool)
    mask[10:60, 10:60] = True
    entry = {"image_id": 7, "category_id": 1, "area": 2500, "iscrowd": 0, "bbox": [10, 10, 50, 50]}
    entry["segmentation"] = {"size": [80, 100], "counts": encode_rle(mask).decode()}
    data = {
        "images": [{"id": 7, "width": 100, "height": 80, "labelled_category_ids": [1]}, {"id": 8}],
        "annotations": [
            entry | {"id": 1},
            entry | {"id": 2, "bbox": [60, 10, 20, 20]},
            entry | {"id": 3, "image_id": 8},
        ],
        "categories": [{"id": 1}, {"id": 3}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(data))
    truth: COCO = parity.read_truth(tmp_path / "truth.json")
    boxes = [(10.0, 10.0, 60.0, 60.0)]
    person = detections(boxes, [0.5], [1], rle_counts=[encode_rle(mask)])
    # precision is 1 up to recall 0.5, at 51 of 101 points; both annotations have the same mask, so one matches
    assert average_precision(truth, {7: person}) == pytest.approx((51 / 101, 51 / 101))
    with_car = detections(boxes * 2, [0.9, 0.5], [3, 1], rle_counts=[encode_rle(mask)] * 2)
    assert average_precision(truth, {7: with_car}) == pytest.approx((51 / 101, 51 / 101))
    boxes_only = detections(boxes, [0.5], [1])
    found = average_precision(truth, {7: boxes_only})
    assert found.boxes == pytest.approx(51 / 101)
    assert np.isnan(found.masks)
    assert average_precision(truth, {7: Detections.empty(100, 80)}) == (0.0, 0.0)


# -- the engine


def test_the_goals_of_fp32_are_reached_on_the_scene(
    scene_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", "--data", str(scene_data), "--json"])
    parity.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["pictures"] for row in rows} == {NUM_PICTURES}
    assert {row["precision"] for row in rows} == {"fp32"}
    assert all(row["detections"] > 10 * NUM_PICTURES for row in rows)
    goals = {row["case"]: row["reached"] for row in rows if row["goal"] is not None}
    assert goals == dict.fromkeys(
        [
            "partners: share",
            "masks of partners: least IoU",
            "masks of partners: undecided",
            "AP of boxes",
            "AP of masks",
        ],
        True,
    )
    truth_is_used = next(row for row in rows if row["case"] == "AP of boxes")
    assert 0.05 < truth_is_used["ours"] < 1


def test_a_missed_goal_is_reported_and_exits_with_1(
    scene_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "load_engine", lambda *_, **__: wrong_engine(higher_threshold))
    monkeypatch.setattr(sys, "argv", ["parity", "--data", str(scene_data), "--num", "2"])
    with pytest.raises(SystemExit) as ended:
        parity.main()
    assert ended.value.code == 1
    table = capsys.readouterr().out
    assert "pictures 2," in table
    assert any("partners: share" in line and line.endswith(">= 0.995: MISSED") for line in table.splitlines())


@pytest.mark.parametrize("missing", ["--data", "--images"])
def test_missing_files_give_one_error_line(
    missing: str, scene_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"--data": str(scene_data), "--images": str(scene_data.parent / "images")}
    arguments[missing] = str(tmp_path / "nowhere")
    monkeypatch.setattr(sys, "argv", ["parity", *(text for pair in arguments.items() for text in pair)])
    with pytest.raises(SystemExit, match=r"nowhere.*there is no such file"):
        parity.main()


def test_the_goals_of_fp32_are_reached_on_real_pictures(shared_data: Path, torchvision: Torchvision) -> None:
    data = shared_data / "street" / "val.json"
    truth = parity.read_truth(data)
    engine = load_engine("street", device="cpu", precision="fp32")
    results = parity.Results({}, {}, {})
    for image_id, picture in parity.pictures(truth, data.parent / "images", 12):
        frame = model_frame(picture, STREET)
        (results.ours[image_id],) = found_on(engine, [frame])
        results.theirs[image_id] = torchvision.on_frame(frame)
    lines = parity.figures(truth, results._replace(direct=results.theirs), "fp32")
    assert sum(line.goal != "" for line in lines) == 5
    assert [line for line in lines if not line.reached] == []


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_goals_are_reached_on_all_real_pictures(
    precision: str, shared_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(shared_data / "street" / "val.json")
    monkeypatch.setattr(sys, "argv", ["parity", "--data", data, "--precision", precision, "--json"])
    parity.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["pictures"] >= 100 for row in rows)
    assert sum(row["goal"] is not None for row in rows) == (5 if precision == "fp32" else 3)


# -- engines with deliberate errors


def wrong_engine(change: Callable[[object], None]) -> Engine:
    network = build("street", len(STREET.head_class_ids) + 1)
    load_weights(network, STREET, None)
    change(network)
    return Engine(network, STREET, torch.device("cpu"), "fp32")


def nothing(network) -> None:
    """The control, which must pass."""


def higher_threshold(network) -> None:
    network.roi_heads.score_thresh = 0.06


def stricter_nms(network) -> None:
    network.roi_heads.nms_thresh = 0.45


def stricter_nms_of_proposals(network) -> None:
    network.rpn.nms_thresh = 0.68


def fewer_proposals(network) -> None:
    network.rpn._post_nms_top_n = {"training": 250, "testing": 250}


def fewer_candidates(network) -> None:
    network.rpn._pre_nms_top_n = {"training": 100, "testing": 100}


def fewer_detections(network) -> None:
    network.roi_heads.detections_per_img = 20


def one_sample_per_bin(network) -> None:
    network.roi_heads.box_roi_pool.sampling_ratio = 1


def one_sample_per_bin_of_masks(network) -> None:
    network.roi_heads.mask_roi_pool.sampling_ratio = 1


def other_box_weights(network) -> None:
    network.roi_heads.box_coder.weights = (10.2, 10.2, 5.0, 5.0)


def lower_mask_threshold(network) -> None:
    network.roi_heads.mask_predictor.mask_fcn_logits.bias -= 0.3


def swapped_classes(network) -> None:
    predictor = network.roi_heads.box_predictor.cls_score
    order = [0, 2, 1, 3, 4, 5, 6]
    predictor.weight.data, predictor.bias.data = predictor.weight.data[order], predictor.bias.data[order]


@pytest.mark.parametrize(
    "change",
    [
        higher_threshold,
        stricter_nms,
        stricter_nms_of_proposals,
        fewer_proposals,
        fewer_candidates,
        fewer_detections,
        one_sample_per_bin,
        one_sample_per_bin_of_masks,
        other_box_weights,
        lower_mask_threshold,
        swapped_classes,
    ],
)
def test_a_wrong_engine_is_detected(change, frames: list[I420Frame], expected: list[Detections]) -> None:
    assert fails(found_on(wrong_engine(change), frames), expected)


def test_a_correct_engine_passes(frames: list[I420Frame], expected: list[Detections]) -> None:
    assert not fails(found_on(wrong_engine(nothing), frames), expected)


def test_a_wrong_colour_matrix_is_detected(frames: list[I420Frame], expected: list[Detections]) -> None:
    other = [dataclasses.replace(frame, matrix=ColourMatrix.BT709) for frame in frames]
    assert fails(found_on(wrong_engine(nothing), other), expected)


def test_masks_shifted_by_a_pixel_are_detected(expected: list[Detections]) -> None:
    shifted = []
    for found in expected:
        masks = [np.roll(decode_rle(counts, (found.height, found.width)), 1, axis=1) for counts in found.rle_counts]
        shifted.append(dataclasses.replace(found, rle_counts=[encode_rle(mask) for mask in masks]))
    assert not fails(expected, expected)
    assert fails(shifted, expected)


def test_boxes_shifted_by_half_a_pixel_are_detected(expected: list[Detections]) -> None:
    shifted = [dataclasses.replace(found, boxes_xyxy=found.boxes_xyxy + np.float32(0.5)) for found in expected]
    assert fails(shifted, expected)
