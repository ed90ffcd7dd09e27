"""NMS of a whole batch: a case by hand, and exact comparison with the reference and torchvision."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.box_crowds import crowd, pairs_near_threshold
from torchvision.ops import batched_nms
from torchvision.ops import nms as torchvisions_nms

from ops import reference
from ops.nms import nms

WITHOUT_JIT = os.environ.get("NUMBA_DISABLE_JIT") == "1"
needs_jit = pytest.mark.skipif(WITHOUT_JIT, reason="too large for interpreted loops")


def kept_by_group(
    boxes: NDArray[np.float32],
    is_candidate: NDArray[np.bool_],
    iou_threshold: float,
    max_kept: int,
    classes: NDArray[np.int64] | None = None,
) -> list[list[int]]:
    """Return the kept indices of each group, after checking the shapes and the padding of the result."""
    with np.errstate(invalid="ignore", over="ignore"):  # raised if the kernel runs in the interpreter
        kept, num_kept = nms(boxes, is_candidate, iou_threshold, max_kept, classes)
    assert (kept.shape, kept.dtype) == ((len(boxes), max_kept), np.int64)
    assert (num_kept.shape, num_kept.dtype) == ((len(boxes),), np.int64)
    assert not kept[np.arange(max_kept) >= num_kept[:, None]].any()
    return [row[:num].tolist() for row, num in zip(kept, num_kept, strict=True)]


def by_torchvision(
    boxes: NDArray[np.float32],
    is_candidate: NDArray[np.bool_],
    iou_threshold: float,
    max_kept: int,
    classes: NDArray[np.int64] | None = None,
) -> list[list[int]]:
    """Return the kept indices by torchvision's nms per class. Its sort is stable, so equal scores keep the order."""
    kept = []
    for group in range(len(boxes)):
        of_class = np.zeros(boxes.shape[1], np.int64) if classes is None else classes[group]
        places: list[int] = []
        for one in np.unique(of_class):
            members = np.flatnonzero(is_candidate[group] & (of_class == one))
            survivors = torchvisions_nms(
                torch.from_numpy(boxes[group, members]), torch.zeros(len(members)), iou_threshold
            )
            places += members[survivors.numpy()].tolist()
        kept.append(sorted(places)[:max_kept])
    return kept


def by_reference(
    boxes: NDArray[np.float32],
    is_candidate: NDArray[np.bool_],
    iou_threshold: float,
    max_kept: int,
    classes: NDArray[np.int64] | None = None,
) -> list[list[int]]:
    """Return the kept indices by the reference."""
    of_group = [None] * len(boxes) if classes is None else classes
    return [
        reference.nms(*arguments, iou_threshold, max_kept, one_classes)
        for *arguments, one_classes in zip(boxes, is_candidate, of_group, strict=True)
    ]


def test_by_hand() -> None:
    """IoUs: 8 / 12 for boxes 0 and 1, 6 / 14 for 0 and 2, 8 / 12 for 1 and 2; box 3 overlaps none."""
    boxes = np.array([[[0, 0, 5, 2], [1, 0, 6, 2], [2, 0, 7, 2], [9, 9, 10, 10]]], np.float32)
    everything = np.ones((1, 4), np.bool_)
    assert kept_by_group(boxes, everything, 0.7, 4) == [[0, 1, 2, 3]]
    assert kept_by_group(boxes, everything, 0.5, 4) == [[0, 2, 3]]
    assert kept_by_group(boxes, everything, 0.4, 4) == [[0, 3]]
    assert kept_by_group(boxes, everything, 0.5, 2) == [[0, 2]]
    assert kept_by_group(boxes, everything, 0.5, 4, np.array([[1, 2, 1, 1]])) == [[0, 1, 2, 3]]
    assert kept_by_group(boxes, everything, 0.4, 4, np.array([[1, 2, 1, 1]])) == [[0, 1, 3]]
    assert kept_by_group(boxes, np.array([[False, True, True, True]]), 0.5, 4) == [[1, 3]]
    assert kept_by_group(boxes, np.array([[True, False, True, True]]), 0.4, 4) == [[0, 3]]


@pytest.mark.parametrize("with_classes", [False, True], ids=["one class", "classes"])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
def test_equals_torchvision_and_the_reference(iou_threshold: float, with_classes: bool) -> None:
    num_groups, num_boxes = 4, 40
    for seed in range(3 if WITHOUT_JIT else 50):
        random = np.random.default_rng(seed)
        boxes = crowd(num_groups, num_boxes, seed)
        is_candidate = random.random((num_groups, num_boxes)) < [[0.0], [0.3], [0.9], [1.0]]
        classes = random.integers(-2, 3, (num_groups, num_boxes)) if with_classes else None
        expected = by_torchvision(boxes, is_candidate, iou_threshold, num_boxes, classes)
        assert kept_by_group(boxes, is_candidate, iou_threshold, num_boxes, classes) == expected
        if seed < 3:
            assert by_reference(boxes, is_candidate, iou_threshold, num_boxes, classes) == expected


@needs_jit
@pytest.mark.parametrize("num_boxes", [1, 31, 32, 33, 64, 65, 700])
def test_agrees_with_torchvision_on_thousands_of_crowds(num_boxes: int) -> None:
    """Including survivors that exactly fill a block, and more survivors than max_kept."""
    num_groups = 30 if num_boxes > 100 else 400
    for side_px in (3.0, 60.0):
        boxes = crowd(num_groups, num_boxes, num_boxes, side_px)
        is_candidate = np.random.default_rng(0).random((num_groups, num_boxes)) < 0.9
        survivors = by_torchvision(boxes, is_candidate, 0.5, num_boxes)
        for max_kept in (1, 32, num_boxes, num_boxes + 5):
            assert kept_by_group(boxes, is_candidate, 0.5, max_kept) == [places[:max_kept] for places in survivors]


@needs_jit
@pytest.mark.parametrize("num_boxes", [300, 4096])
def test_agrees_with_batched_nms(num_boxes: int) -> None:
    """Integer coordinates, because torchvision adds an offset for each class, which must not round."""
    random = np.random.default_rng(num_boxes)
    corners = random.integers(0, 500, (num_boxes, 2))
    boxes = np.concatenate([corners, corners + random.integers(1, 200, (num_boxes, 2))], axis=1).astype(np.float32)
    classes = random.integers(1, 9, num_boxes)
    scores = torch.linspace(1, 0, num_boxes)
    expected = batched_nms(torch.from_numpy(boxes), scores, torch.from_numpy(classes), 0.5)[:100].tolist()
    assert kept_by_group(boxes[None], np.ones((1, num_boxes), np.bool_), 0.5, 100, classes[None]) == [expected]


@pytest.mark.parametrize("iou_threshold", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_an_iou_equal_to_the_threshold_behaves_like_torchvisions(iou_threshold: float) -> None:
    """Pairs with an IoU of n / 10, on either side of the float32 nearest to the threshold."""
    offsets = np.arange(11, dtype=np.float32)
    pairs = np.stack([[[0, 0, 10, 1], [0, 0, offset, 1]] for offset in offsets]).astype(np.float32)
    everything = np.ones((len(pairs), 2), np.bool_)
    expected = by_torchvision(pairs, everything, iou_threshold, 2)
    assert kept_by_group(pairs, everything, iou_threshold, 2) == expected
    assert by_reference(pairs, everything, iou_threshold, 2) == expected
    assert {len(kept) for kept in expected} == {1, 2}


@pytest.mark.parametrize("iou_threshold", [0.5, 0.7])
def test_ious_within_a_rounding_of_the_threshold(iou_threshold: float) -> None:
    """Exact arithmetic and fused multiply-adds decide some of these pairs differently."""
    boxes, classes = pairs_near_threshold(200, iou_threshold)
    everything = np.ones(classes.shape, np.bool_)
    expected = by_torchvision(boxes, everything, iou_threshold, 400, classes)
    assert kept_by_group(boxes, everything, iou_threshold, 400, classes) == expected
    first, second = boxes.reshape(-1, 2, 4).astype(np.float64).transpose(1, 0, 2)
    exact = second[:, 3] / first[:, 3] > iou_threshold
    survives = np.isin(np.arange(1, 400, 2), expected[0])
    assert (survives == exact).any()
    assert (survives != exact).any()


@settings(max_examples=20 if WITHOUT_JIT else 300, deadline=None)
@given(st.data())
def test_agrees_with_torchvision_on_few_different_numbers(data: st.DataObject) -> None:
    """Coinciding edges, boxes without area and IoUs equal to the threshold are frequent here."""
    num_groups, num_boxes = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 12))
    numbers = st.lists(st.integers(-2, 4), min_size=4 * num_groups * num_boxes, max_size=4 * num_groups * num_boxes)
    boxes = np.array(data.draw(numbers), np.float32).reshape(num_groups, num_boxes, 4) / 2
    flags = st.lists(st.booleans(), min_size=num_groups * num_boxes, max_size=num_groups * num_boxes)
    is_candidate = np.array(data.draw(flags), np.bool_).reshape(num_groups, num_boxes)
    iou_threshold, max_kept = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1 / 3, 1.0])), data.draw(st.integers(1, 14))
    expected = by_torchvision(boxes, is_candidate, iou_threshold, max_kept)
    assert kept_by_group(boxes, is_candidate, iou_threshold, max_kept) == expected


def test_wrong_variants_are_detected() -> None:
    """Suppressed boxes that suppress, ignored classes, and boxes that suppress without being candidates."""
    boxes, everything = crowd(4, 40, 0), np.ones((4, 40), np.bool_)
    is_candidate, classes = np.random.default_rng(0).random((2, 4, 40)) < 0.5
    classes = classes.astype(np.int64)
    one_round = [
        [
            n
            for n in range(40)
            if all(reference.nms(of_group[[m, n]], everything[0], 0.3, 2) == [0, 1] for m in range(n))
        ]
        for of_group in boxes
    ]
    assert one_round != kept_by_group(boxes, everything, 0.3, 40)
    assert by_torchvision(boxes, everything, 0.3, 40) != kept_by_group(boxes, everything, 0.3, 40, classes)
    all_suppress = [
        [n for n in kept if is_candidate[group, n]]
        for group, kept in enumerate(by_torchvision(boxes, everything, 0.3, 40))
    ]
    assert all_suppress != kept_by_group(boxes, is_candidate, 0.3, 40)


def test_boxes_that_are_not_candidates_may_contain_any_values() -> None:
    boxes, is_candidate = crowd(3, 50, 7), np.random.default_rng(7).random((3, 50)) < 0.5
    expected = kept_by_group(boxes, is_candidate, 0.5, 50)
    for poison in (np.nan, np.inf, -np.inf, 3e38):
        boxes[~is_candidate] = poison
        assert kept_by_group(boxes, is_candidate, 0.5, 50) == expected


def test_one_box_suppresses_all() -> None:
    boxes = np.repeat(np.array([[[0, 0, 9, 9]]], np.float32), 100, axis=1)
    assert kept_by_group(boxes, np.ones((1, 100), np.bool_), 0.99, 100) == [[0]]
    assert kept_by_group(boxes, np.ones((1, 100), np.bool_), 1.0, 100) == [list(range(100))]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0)], ids=str)
def test_nothing_to_suppress(shape: tuple[int, int]) -> None:
    boxes, classes = np.zeros((*shape, 4), np.float32), np.zeros(shape, np.int64)
    assert kept_by_group(boxes, np.ones(shape, np.bool_), 0.5, 4) == [[]] * shape[0]
    assert kept_by_group(boxes, np.ones(shape, np.bool_), 0.5, 4, classes) == [[]] * shape[0]


def test_arguments_may_be_non_contiguous() -> None:
    boxes, is_candidate = crowd(2, 30, 3), np.arange(60).reshape(2, 30) % 3 > 0
    classes = np.arange(60).reshape(2, 30) % 2
    wide = (
        np.repeat(boxes, 2, axis=1)[:, ::2],
        is_candidate.repeat(2, axis=1)[:, ::2],
        classes.repeat(2, axis=1)[:, ::2],
    )
    found = kept_by_group(wide[0], wide[1], 0.5, 30, wide[2])
    assert found == kept_by_group(boxes, is_candidate, 0.5, 30, classes)


def options(**changes: Any) -> dict[str, Any]:
    """Arguments of `nms`."""
    valid = {"boxes_xyxy": crowd(2, 7, 0), "is_candidate": np.ones((2, 7), np.bool_), "iou_threshold": 0.5}
    return {**valid, "max_kept": 3, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_xyxy": crowd(2, 6, 0)}, r"boxes_xyxy must be \(2, 7, 4\) float32, got \(2, 6, 4\) float32"),
        ({"boxes_xyxy": crowd(2, 7, 0).astype(np.float64)}, "boxes_xyxy must be .* float64"),
        ({"is_candidate": np.ones(7, np.bool_)}, r"is_candidate must be \(G, K\) bool, got \(7,\) bool"),
        ({"is_candidate": np.ones((2, 7), np.uint8)}, "is_candidate must be .* uint8"),
        ({"classes": np.ones((2, 6), np.int64)}, r"classes must be \(2, 7\) int64 or None, got \(2, 6\) int64"),
        ({"classes": np.ones((2, 7), np.int32)}, "classes must be .* int32"),
        ({"iou_threshold": -0.1}, "iou_threshold must be in 0 … 1, got -0.1"),
        ({"iou_threshold": 1.1}, "iou_threshold must be in 0 … 1"),
        ({"iou_threshold": float("nan")}, "iou_threshold must be in 0 … 1"),
        ({"max_kept": 0}, "max_kept must be at least 1, got 0"),
    ],
)
def test_invalid_arguments_raise(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nms(**options(**changes))
