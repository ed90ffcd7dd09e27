"""Augmentation: geometry by hand, alignment of masks and pixels, and samples that depend on seed and position only."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.coco.annotations import Annotation
from pipeline.coco.data import CocoData, PictureRecord, read_coco
from pipeline.models.registry import get_model
from pipeline.synthetic.coco_data import write_coco_data
from pipeline.training.augment import plain_ground, random_view, with_pasted_objects
from pipeline.training.camera_noise import with_camera_noise
from pipeline.training.clutter import draw_room, with_clutter
from pipeline.training.dataset import BatchPositions, Mixture, TrainingDataset, _epoch_order, repeat_factors
from pipeline.training.model_spec import spec_for_data
from pipeline.training.picture import TrainingObject, TrainingPicture, visible_part
from pipeline.training.sample import Sample, to_sample
from pipeline.training.warp import scaling, shift, warp

GREY = (127, 127, 127)
CROP_HW = (96, 160)


def block(left: int, top: int, width: int, height: int, *, output: int = 1, ignored: bool = False) -> TrainingObject:
    return TrainingObject(output, left, top, np.full((height, width), 255, np.uint8), ignored)


def painted(hw: tuple[int, int], *objects: TrainingObject) -> TrainingPicture:
    """Return a dark grey picture with the objects painted bright green."""
    rgb = np.full((*hw, 3), 40, np.uint8)
    for item in objects:
        height, width = item.mask.shape
        rows, columns = slice(item.top, item.top + height), slice(item.left, item.left + width)
        rgb[rows, columns][item.mask > 0] = (20, 250, 20)
    return TrainingPicture(rgb, objects, frozenset({1, 2}))


def box(item: TrainingObject) -> tuple[int, int, int, int]:
    height, width = item.mask.shape
    return item.left, item.top, item.left + width, item.top + height


# -- geometry ---------------------------------------------------------------------------------------------------------

QUARTER_TURN = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float64)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.eye(3), (10, 20, 30, 50)),
        (shift(5, -7), (15, 13, 35, 43)),
        (shift(-20, 0), (0, 20, 10, 50)),
        (scaling(2, 2), (20, 40, 60, 100)),
        (scaling(0.5, 0.5), (5, 10, 15, 25)),
        (shift(100, 0) @ scaling(-1, 1), (70, 20, 90, 50)),
        (shift(60, 0) @ QUARTER_TURN, (10, 10, 40, 30)),
    ],
    ids=["identity", "translated", "clipped", "enlarged", "reduced", "mirrored", "rotated"],
)
def test_warped_boxes_by_hand(matrix: np.ndarray, expected: tuple[int, int, int, int]) -> None:
    warped = warp(painted((60, 100), block(10, 20, 20, 30)), matrix, (120, 200), GREY)
    (item,) = warped.objects
    assert box(item) == expected
    x1, y1, x2, y2 = expected
    # the pixels are warped like the box: green inside the box, not green outside
    inner = warped.rgb[y1 + 1 : y2 - 1, x1 + 1 : x2 - 1]
    assert (inner == (20, 250, 20)).all()
    outside = warped.rgb.astype(int)
    outside[max(y1 - 1, 0) : y2 + 1, max(x1 - 1, 0) : x2 + 1] = 0
    assert (outside[..., 1] <= 127).all()


def test_objects_outside_the_picture_are_dropped_and_mostly_cut_ones_ignored() -> None:
    picture = painted((60, 100), block(10, 20, 20, 30), block(60, 20, 20, 20))
    (left,) = warp(picture, shift(-35, 0), (60, 60), GREY).objects
    assert box(left) == (25, 20, 45, 40)
    cut = warp(picture, shift(-29, 0), (60, 100), GREY).objects
    assert [item.ignored for item in cut] == [True, False]  # one of 20 columns of the first object remains
    tiny = warp(picture, scaling(0.1, 0.1), (60, 100), GREY).objects
    assert all(item.ignored for item in tiny)


def test_the_visible_part_of_an_occluded_object() -> None:
    below, above = block(10, 10, 20, 20), block(10, 10, 12, 20)
    found = visible_part(below, above)
    assert found is not None
    assert box(found) == (22, 10, 30, 30)
    assert visible_part(below, block(0, 0, 50, 50)) is None
    assert visible_part(below, block(30, 10, 5, 5)) is below
    nearly_all = visible_part(below, block(10, 10, 19, 20))
    assert nearly_all is not None
    assert nearly_all.ignored


@pytest.mark.parametrize("seed", range(40))
def test_masks_stay_aligned_with_their_pixels(seed: int) -> None:
    ellipse = np.hypot(*np.meshgrid(np.linspace(-1, 1, 70), np.linspace(-1, 1, 50))) < 1
    picture = painted((200, 300), TrainingObject(1, 100, 90, (ellipse * 255).astype(np.uint8), ignored=False))
    seen = random_view(np.random.default_rng(seed), picture, 1.0, CROP_HW)
    assert seen.hw == CROP_HW
    green = (seen.rgb[..., 1].astype(int) - seen.rgb[..., 0]) > 115
    green &= seen.rgb[..., 2] < 140  # excludes the colour of the border
    for item in seen.objects:
        mask = np.zeros(CROP_HW, bool)
        x1, y1, x2, y2 = box(item)
        assert 0 <= x1 < x2 <= CROP_HW[1]
        assert 0 <= y1 < y2 <= CROP_HW[0]
        mask[y1:y2, x1:x2] = item.mask > 0
        if not item.ignored and mask.sum() > 200:
            # half a pixel along the outline may differ; a shift by one pixel gives a small mask an IoU of 0.9
            assert (mask & green).sum() / (mask | green).sum() > 0.93


def test_pasted_objects_are_of_a_labelled_class_and_occlude() -> None:
    seen: list[frozenset[int]] = []

    def donor(rng: np.random.Generator, labelled: frozenset[int]) -> tuple[TrainingPicture, TrainingObject, float]:
        seen.append(labelled)
        source = painted((80, 80), block(20, 20, 40, 40, output=2))
        return source, source.objects[0], 1.0

    behind = block(0, 0, CROP_HW[1], CROP_HW[0])
    picture = TrainingPicture(np.zeros((*CROP_HW, 3), np.uint8), (behind,), frozenset({2}))
    result = with_pasted_objects(np.random.default_rng(3), picture, donor, share=1.0)
    assert set(seen) == {frozenset({2})}
    first, *pasted = result.objects
    assert pasted
    covering = sum(item.area_px for item in pasted)
    assert first.area_px <= behind.area_px - max(item.area_px for item in pasted)
    assert first.area_px + covering <= behind.area_px
    x1, y1, x2, y2 = box(pasted[-1])
    middle = result.rgb[(y1 + y2) // 2, (x1 + x2) // 2]
    assert tuple(middle) == (20, 250, 20)
    assert with_pasted_objects(np.random.default_rng(3), picture, donor, share=0.0) is picture


def test_a_plain_background_has_no_objects() -> None:
    ground = plain_ground(np.random.default_rng(5), CROP_HW, frozenset({1}))
    assert (ground.hw, ground.objects, ground.labelled) == (CROP_HW, (), {1})


@pytest.mark.parametrize("seed", range(30))
def test_clutter_is_unlabelled_and_occludes(seed: int) -> None:
    """Masks are cut where clutter changed the picture, and unchanged elsewhere, except at the soft edge of clutter."""
    picture = painted((96, 160), block(0, 0, 80, 96), block(80, 0, 80, 96, output=2))
    cluttered = with_clutter(np.random.default_rng(seed), picture)
    assert cluttered.labelled == picture.labelled
    left = np.zeros((96, 160), np.uint8)
    for item in cluttered.objects:
        x1, y1, x2, y2 = box(item)
        left[y1:y2, x1:x2] |= item.mask
    changed = np.abs(cluttered.rgb.astype(int) - picture.rgb).max(axis=2) > 0
    assert changed.any()
    assert changed[left == 0].mean() > 0.9
    near = cv2.dilate((left == 0).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    assert not changed[~near].any()


def test_a_drawn_room_is_not_uniform() -> None:
    for seed in range(20):
        rgb = np.full((96, 160, 3), 90, np.uint8)
        draw_room(np.random.default_rng(seed), rgb)
        assert rgb.std() > 0


def test_camera_noise_keeps_shape_and_dtype_and_depends_on_the_generator() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (65, 97, 3), np.uint8)
    for seed in range(30):
        first, second = (with_camera_noise(np.random.default_rng(seed), rgb.copy()) for _ in range(2))
        assert (first.shape, first.dtype) == (rgb.shape, np.uint8)
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(first, rgb)


# -- tensors ----------------------------------------------------------------------------------------------------------


def test_sample_by_hand() -> None:
    picture = painted((60, 100), block(10, 20, 20, 30, output=2), block(70, 5, 10, 10, ignored=True))
    sample = to_sample(picture, num_outputs=4)
    assert (sample.rgb.shape, sample.rgb.dtype) == ((3, 60, 100), torch.uint8)
    assert sample.boxes.tolist() == [[10, 20, 30, 50]]
    assert sample.outputs.tolist() == [2]
    assert sample.masks.shape == (1, 112, 112)
    assert (sample.masks == 255).all()
    assert sample.ignored.nonzero().min(0).values.tolist() == [5, 70]
    assert int(sample.ignored.sum()) == 100
    assert sample.labelled.tolist() == [True, True, True, False]


# -- data -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    folder = tmp_path_factory.mktemp("data") / "scene"
    write_coco_data(folder, (6, 1), (320, 192), seed=2)
    return read_coco(folder / "train.json", need_masks=True)


def pictures(data: CocoData, *, seed: int = 1, synthetic_share: float = 0.0) -> TrainingDataset:
    return TrainingDataset(data, spec_for_data(get_model("street"), data), Mixture(seed, CROP_HW, synthetic_share))


def same(first: Sample, second: Sample) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_sample_depends_on_seed_and_position_only(scene: CocoData) -> None:
    data, again = pictures(scene), pictures(scene)
    later = [data[position] for position in (7, 3)][1]
    assert same(later, again[3])
    assert not same(later, again[4])
    assert not same(later, pictures(scene, seed=2)[3])


def test_samples_are_valid(scene: CocoData) -> None:
    data = pictures(scene, synthetic_share=0.1)
    num_objects = 0
    for position in range(40):
        sample = data[position]
        assert sample.rgb.shape == (3, *CROP_HW)
        x1, y1, x2, y2 = sample.boxes.unbind(1)
        assert ((x1 >= 0) & (y1 >= 0) & (x2 <= CROP_HW[1]) & (y2 <= CROP_HW[0]) & (x2 > x1) & (y2 > y1)).all()
        assert (sample.masks.flatten(1).amax(1) == 255).all()
        assert set(sample.outputs.tolist()) <= {1, 2, 3}
        num_objects += len(sample.boxes)
    assert num_objects > 40


def record(index: int, *category_ids: int) -> PictureRecord:
    entries = tuple(
        Annotation(category_id, (0, 0, 9, 9), None, is_crowd=False, area_px=81) for category_id in category_ids
    )
    return PictureRecord(index, Path("x"), 10, 10, frozenset({1, 2}), entries)


def test_pictures_with_rare_classes_are_repeated() -> None:
    # class 1 is on each of 100 pictures, class 2 on one of them: its repeat factor is sqrt(0.25 / 0.01) = 5
    records = tuple(record(index, *((1, 2) if index == 0 else (1,))) for index in range(100))
    data = CocoData(Path("x"), ((1, "a"), (2, "b")), records, "")
    factors = repeat_factors(data)
    assert factors == (5.0, *[1.0] * 99)
    order = _epoch_order(factors, seed=0, epoch=0, length=104)
    assert sorted(order.tolist()) == sorted([0] * 5 + list(range(1, 100)))
    assert order.tolist() != _epoch_order(factors, seed=0, epoch=1, length=104).tolist()


def test_batches_resume_at_a_step() -> None:
    from_start, from_step_2 = iter(BatchPositions(0, 3)), iter(BatchPositions(2, 3))
    batches = [next(from_start) for _ in range(4)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [next(from_step_2) for _ in range(2)] == batches[2:]


def test_unlabelled_classes_stay_unlabelled(scene: CocoData) -> None:
    only_people = tuple(dataclasses.replace(entry, labelled=frozenset({1})) for entry in scene.pictures)
    data = pictures(dataclasses.replace(scene, pictures=only_people))
    labelled = {tuple(data[position].labelled.tolist()) for position in range(30)}
    # the classes that the data label; all classes on a plain background, which has no objects
    assert labelled <= {(True, True, False, False), (True, True, True, True)}
    assert (True, True, False, False) in labelled
