"""Rendered vehicles: camera projection by hand, masks equal to the painted pixels, and only classes of the data."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.training.picture import TrainingPicture
from pipeline.training.top_view import KINDS, Eye, Face, _looks_at, _vehicle, with_vehicles

HW = (240, 384)
GREY = TrainingPicture(np.full((*HW, 3), 90, np.uint8), (), frozenset({1, 2, 3}))
OUTPUTS = {"car": 1, "truck": 2, "bus": 3}


def test_a_camera_looking_straight_down_scales_the_ground_uniformly() -> None:
    eye = Eye(height_m=10.0, down_rad=np.pi / 2, focal_px=200.0, centre_xy=(100.0, 50.0))
    seen = eye.project(np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 5.0]]))
    # 20 px per metre on the road, 40 px at half the height of the camera; +x is up in the picture, +y is left
    np.testing.assert_allclose(seen, [[100, 50, 10], [100, 30, 10], [80, 50, 10], [100, 10, 5]], atol=1e-9)


@pytest.mark.parametrize("degrees", [35, 60, 88])
def test_ground_at_inverts_project(degrees: float) -> None:
    eye = Eye(height_m=8.0, down_rad=float(np.deg2rad(degrees)), focal_px=300.0, centre_xy=(192.0, 120.0))
    place = eye.ground_at(40.0, 200.0)
    assert place is not None
    np.testing.assert_allclose(eye.project(np.array([[*place, 0.0]]))[0, :2], (40.0, 200.0), atol=1e-9)


def test_no_ground_point_lies_above_the_horizon() -> None:
    eye = Eye(height_m=8.0, down_rad=float(np.deg2rad(20)), focal_px=200.0, centre_xy=(192.0, 120.0))
    assert eye.ground_at(192.0, 120.0 - 200.0 * np.tan(np.deg2rad(21))) is None


def test_a_face_is_visible_from_its_outside_only() -> None:
    above = Eye(height_m=8.0, down_rad=1.0, focal_px=200.0, centre_xy=(0.0, 0.0))
    lid = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    assert _looks_at(Face(lid, (1, 1, 1)), above)
    assert not _looks_at(Face(lid[::-1], (1, 1, 1)), above)


@pytest.mark.parametrize(
    ("kind", "length_m", "width_m"), [("car", (3.6, 5.1), (1.6, 2.7)), ("bus", (8, 13.1), (2.3, 2.7))]
)
def test_vehicles_have_realistic_sizes(kind: str, length_m: tuple[float, float], width_m: tuple[float, float]) -> None:
    for seed in range(5):
        points = np.concatenate([face.points for face in _vehicle(np.random.default_rng(seed), kind)])
        extent = np.ptp(points, axis=0)
        assert length_m[0] <= extent[0] <= length_m[1]
        assert width_m[0] <= extent[1] <= width_m[1]
        assert 1.2 <= extent[2] <= 3.7
        assert points[:, 2].min() >= 0


@pytest.mark.parametrize("seed", range(12))
def test_masks_equal_the_painted_pixels(seed: int) -> None:
    picture = with_vehicles(np.random.default_rng(seed), GREY, OUTPUTS)
    union = np.zeros(HW, bool)
    for item in picture.objects:
        height, width = item.mask.shape
        region = union[item.top : item.top + height, item.left : item.left + width]
        assert not (region & (item.mask > 0)).any(), "two masks share a pixel"
        region |= item.mask > 0
        assert {item.mask[0].max(), item.mask[-1].max(), item.mask[:, 0].max()} == {255}, (
            "the mask array is larger than the object"
        )
    changed = (picture.rgb != GREY.rgb).any(axis=2)
    # shadows only darken the ground; edges are anti-aliased over half a pixel
    brighter = (picture.rgb > GREY.rgb).any(axis=2)
    soft = np.zeros(HW, bool)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            soft |= np.roll(union, (dy, dx), (0, 1))
    assert not (brighter & ~soft).any()
    assert changed[union].mean() > 0.95 if union.any() else not brighter.any()


def test_only_classes_of_the_data_are_drawn() -> None:
    seen = dict.fromkeys(KINDS, 0)
    for seed in range(40):
        for item in with_vehicles(np.random.default_rng(seed), GREY, OUTPUTS).objects:
            seen[KINDS[item.output - 1]] += 1
        alone = with_vehicles(np.random.default_rng(seed), GREY, {"truck": 7}).objects
        assert {item.output for item in alone} <= {7}
    assert seen["car"] > seen["truck"] > 0 < seen["bus"] < seen["car"]


def test_the_picture_depends_on_the_generator_only() -> None:
    first, again, other = (with_vehicles(np.random.default_rng(seed), GREY, OUTPUTS) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.rgb, again.rgb)
    assert len(first.objects) == len(again.objects)
    assert (first.rgb != other.rgb).any()
    assert (GREY.rgb == 90).all(), "the input picture was changed"
