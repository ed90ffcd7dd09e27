from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ops.kalman import correct_filter, filter_box, predict_filter, start_filter
from ops.reference import KalmanBox

# float64 over a few dozen steps; the reference multiplies and inverts 8x8 matrices
TOLERANCE = 1e-9


def new_filters(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    filters = np.full((len(boxes_xyxy), 4, 5), np.nan)
    for index, filter_ in enumerate(filters):
        start_filter(filter_, boxes_xyxy, index)
    return filters


def assert_same(filters: NDArray[np.float64], references: list[KalmanBox]) -> None:
    for filter_, reference in zip(filters, references, strict=True):
        mean, covariance = reference.mean, reference.covariance
        for axis in range(4):
            axes = np.ix_([axis, axis + 4], [axis, axis + 4])
            (var_value, shared), (_, var_velocity) = covariance[axes]
            expected = [mean[axis], mean[axis + 4], var_value, shared, var_velocity]
            np.testing.assert_allclose(filter_[axis], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_four_2x2_filters_equal_the_8x8_filter() -> None:
    rng = np.random.default_rng(7)
    whole = np.array([[10.0, 20, 60, 140], [5, 5, 5.2, 5.1], [300, 100, 500, 130]])
    filters = new_filters(whole)
    references = [KalmanBox(box) for box in whole]
    assert_same(filters, references)
    for _ in range(30):
        dt_s = rng.uniform(0.001, 0.5)
        for filter_ in filters:
            predict_filter(filter_, dt_s)
        whole = whole + rng.normal(0.0, 1.0, whole.shape)
        whole[:, 2:] = np.maximum(whole[:, :2], whole[:, 2:])
        # sometimes one side is truncated
        inwards = np.tile(whole[:, 2:] - whole[:, :2], 2) * [0.3, 0.3, -0.3, -0.3]
        boxes = whole + inwards * (rng.random(whole.shape) < 0.2)
        for index, reference in enumerate(references):
            reference.predict(dt_s)
            if rng.random() < 0.7:
                correct_filter(filters[index], boxes, index, dt_s)
                reference.correct(boxes[index], dt_s)
        assert_same(filters, references)


def test_one_long_prediction_equals_many_short_ones() -> None:
    boxes = np.array([[10.0, 20, 60, 140]])
    once, often = new_filters(boxes), new_filters(boxes)
    once[0, :2, 1] = often[0, :2, 1] = [35.0, -20.0]
    predict_filter(once[0], 0.6)
    for _ in range(6):
        predict_filter(often[0], 0.1)
    np.testing.assert_allclose(once, often, rtol=1e-12)


@pytest.mark.parametrize("fps", [30, 10, 5])
def test_velocity_is_per_second(fps: int) -> None:
    velocity = np.array([80.0, -30.0, 80.0, -30.0])
    filters = new_filters(np.array([[100.0, 300, 150, 420]]))
    for frame in range(1, 2 * fps + 1):
        predict_filter(filters[0], 1 / fps)
        correct_filter(filters[0], np.array([[100.0, 300, 150, 420]]) + velocity * frame / fps, 0, 1 / fps)
    np.testing.assert_allclose(filters[0, :, 1], [80.0, -30.0, 0.0, 0.0], atol=1.0)


@pytest.mark.parametrize("fps", [30, 10, 5])
def test_an_object_that_passes_behind_a_pillar_keeps_velocity_and_size(fps: int) -> None:
    """A box 60 px wide at 100 px/s, until a pillar at x = 400 occludes three quarters of it."""
    filters = new_filters(np.array([[100.0, 300, 160, 450]]))
    for frame in range(1, 10 * fps):
        x1 = 100.0 + 100.0 * frame / fps
        x2 = min(x1 + 60.0, 400.0)
        if x2 - x1 < 15.0:
            break
        predict_filter(filters[0], 1 / fps)
        correct_filter(filters[0], np.array([[x1, 300.0, x2, 450.0]]), 0, 1 / fps)
    # the centre of the visible box moves at 50 px/s, and its width shrinks by 100 px/s
    assert filters[0, 0, 1] > 65.0
    assert filters[0, 2, 0] > 57.0
    assert filters[0, 2, 1] > -3.0
    np.testing.assert_allclose(filters[0, [1, 3], :2], [[375.0, 0.0], [150.0, 0.0]], atol=1e-9)


def test_the_filter_follows_a_growing_box_at_once() -> None:
    filters = new_filters(np.array([[100.0, 300, 115, 450]]))
    for width in (20.0, 30.0, 40.0, 50.0, 60.0):
        predict_filter(filters[0], 0.1)
        correct_filter(filters[0], np.array([[100.0, 300, 100.0 + width, 450]]), 0, 0.1)
    assert filters[0, 2, 0] == pytest.approx(60.0, abs=3.0)


def test_the_filter_follows_a_shrinking_box() -> None:
    """The box shrinks by a fifth per second. The filter follows slowly, because occlusion also shrinks a box."""
    centre = np.array([130.0, 375.0])
    filters = new_filters(np.array([[100.0, 300, 160, 450]]))
    for frame in range(1, 61):
        size = np.array([60.0, 150.0]) * 0.8 ** (frame / 30)
        predict_filter(filters[0], 1 / 30)
        correct_filter(filters[0], np.array([[*(centre - size / 2), *(centre + size / 2)]]), 0, 1 / 30)
    np.testing.assert_allclose(filters[0, :2, 0], centre, atol=1.0)
    np.testing.assert_allclose(filters[0, 2:, 0], size, rtol=0.2)


def test_only_the_given_filter_changes() -> None:
    filters = new_filters(np.array([[0.0, 0, 4, 4], [0, 0, 4, 4]]))
    before = filters.copy()
    predict_filter(filters[0], 0.1)
    assert (filters[0] != before[0]).any()
    np.testing.assert_array_equal(filters[1], before[1])


def test_a_new_filter_returns_its_box() -> None:
    boxes = np.array([[10.0, 20, 60, 140], [3, 4, 3, 9]])
    found = [filter_box(filter_) for filter_ in new_filters(boxes)]
    np.testing.assert_allclose(found, boxes, rtol=1e-15)


def test_a_negative_size_gives_an_empty_box() -> None:
    filters = new_filters(np.array([[10.0, 20, 12, 22]]))
    filters[0, 2:, 1] = -10.0
    predict_filter(filters[0], 1.0)
    assert filter_box(filters[0]) == (11.0, 21.0, 11.0, 21.0)
