"""NMS on CUDA, compared exactly with the CPU kernel, which tests/unit/ops/test_nms.py compares with torchvision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.box_crowds import crowd, pairs_near_threshold

from ops.nms import nms as cpu_nms
from ops.nms_triton import nms


@pytest.fixture(autouse=True)
def quiet_floats() -> Iterator[None]:
    """Ignore warnings of NumPy, which the interpreter uses, about operations that the kernels guard."""
    with np.errstate(invalid="ignore", over="ignore"):
        yield


def nms_on_device(
    device: torch.device,
    boxes: NDArray[np.float32],
    is_candidate: NDArray[np.bool_],
    iou_threshold: float,
    max_kept: int,
    classes: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run the kernel on the device, and return (kept, num_kept) as arrays."""
    on_device = [torch.from_numpy(array).to(device) for array in (boxes, is_candidate)]
    device_classes = None if classes is None else torch.from_numpy(classes).to(device)
    kept, num_kept = nms(*on_device, iou_threshold, max_kept, device_classes)
    assert (kept.dtype, num_kept.dtype) == (torch.int64, torch.int64)
    return kept.cpu().numpy(), num_kept.cpu().numpy()


def assert_same(
    device: torch.device,
    boxes: NDArray[np.float32],
    is_candidate: NDArray[np.bool_],
    iou_threshold: float,
    max_kept: int,
    classes: NDArray[np.int64] | None = None,
) -> None:
    kept, num_kept = nms_on_device(device, boxes, is_candidate, iou_threshold, max_kept, classes)
    expected_kept, expected_num = cpu_nms(boxes, is_candidate, iou_threshold, max_kept, classes)
    np.testing.assert_array_equal(num_kept, expected_num)
    np.testing.assert_array_equal(kept, expected_kept)


@pytest.mark.parametrize("with_classes", [False, True], ids=["one class", "classes"])
@pytest.mark.parametrize(("num_boxes", "max_kept"), [(1, 1), (63, 70), (64, 64), (65, 20), (200, 200), (200, 30)])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.6])
def test_agrees_with_the_cpu(
    device: torch.device, num_boxes: int, max_kept: int, iou_threshold: float, with_classes: bool
) -> None:
    """Groups with no, few, many and only candidates."""
    random = np.random.default_rng(num_boxes)
    is_candidate = random.random((4, num_boxes)) < [[0.0], [0.1], [0.9], [1.0]]
    classes = random.integers(-1, 2, (4, num_boxes)) * 2**40 if with_classes else None
    boxes = crowd(4, num_boxes, num_boxes, side_px=30.0)
    boxes[~is_candidate] = np.nan
    assert_same(device, boxes, is_candidate, iou_threshold, max_kept, classes)


def test_few_different_numbers(device: torch.device) -> None:
    """Coinciding edges, boxes without area and IoUs equal to the threshold are frequent here."""
    random = np.random.default_rng(0)
    boxes = random.integers(-2, 5, (10, 64, 4)).astype(np.float32) / 2
    is_candidate = random.random((10, 64)) < 0.8
    classes = random.integers(0, 4, (10, 64))
    for iou_threshold in (0.25, 1 / 3, 0.5, 1.0):
        assert_same(device, boxes, is_candidate, iou_threshold, 64, classes)


@pytest.mark.parametrize("iou_threshold", [0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
def test_an_iou_equal_to_the_threshold(device: torch.device, iou_threshold: float) -> None:
    """Pairs with an IoU of n / 10, on either side of the float32 nearest to the threshold."""
    pairs = np.stack([[[0, 0, 10, 1], [0, 0, columns, 1]] for columns in range(11)]).astype(np.float32)
    classes = np.repeat(np.arange(11), 2)[None]
    assert_same(device, pairs.reshape(1, 22, 4), np.ones((1, 22), np.bool_), iou_threshold, 22, classes)


@pytest.mark.parametrize("iou_threshold", [0.5, 0.7])
def test_ious_within_a_rounding_of_the_threshold(device: torch.device, iou_threshold: float) -> None:
    """A fused multiply-add, or a division with an error of one bit, changes the result of some of these pairs."""
    boxes, classes = pairs_near_threshold(100, iou_threshold)
    assert_same(device, boxes, np.ones((1, 200), np.bool_), iou_threshold, 200, classes)


def test_a_chain_in_which_each_box_suppresses_the_next(device: torch.device) -> None:
    """Each box overlaps only the next one, so every other box is kept. This is the longest chain of dependencies."""
    left = np.arange(130, dtype=np.float32) * 4
    boxes = np.stack([left, np.zeros_like(left), left + 6, np.ones_like(left)], axis=1)[None]
    kept, num_kept = nms_on_device(device, boxes, np.ones((1, 130), np.bool_), 0.15, 100)
    assert num_kept.tolist() == [65]
    np.testing.assert_array_equal(kept[0, :65], np.arange(0, 130, 2))


def test_candidates_at_both_ends_only(device: torch.device) -> None:
    """The blocks without candidates are not compared, so their bit masks are not written and must not be read."""
    boxes = np.repeat(crowd(1, 5, 0)[:, :, None], 60, axis=2).reshape(1, 300, 4)
    is_candidate = np.zeros((1, 300), np.bool_)
    is_candidate[0, [0, 1, 60, 299]] = True
    boxes[~is_candidate] = np.nan
    assert_same(device, boxes, is_candidate, 0.5, 10)


def test_one_box_suppresses_all(device: torch.device) -> None:
    boxes = np.repeat(np.array([[[0, 0, 9, 9]]], np.float32), 130, axis=1)
    everything = np.ones((1, 130), np.bool_)
    assert nms_on_device(device, boxes, everything, 0.99, 4)[1].tolist() == [1]
    assert nms_on_device(device, boxes, everything, 1.0, 130)[0].tolist() == [list(range(130))]
    assert nms_on_device(device, boxes, everything, 0.5, 130, np.arange(130)[None])[1].tolist() == [130]


def test_wrong_variants_are_detected(device: torch.device) -> None:
    """Boxes that suppress without being candidates, and ignored classes."""
    boxes = crowd(2, 100, 0)
    everything, is_candidate = np.ones((2, 100), np.bool_), np.arange(200).reshape(2, 100) % 3 > 0
    found = nms_on_device(device, boxes, is_candidate, 0.3, 100)[0]
    kept_of_all = cpu_nms(boxes, everything, 0.3, 100)[0]
    assert any(set(row) - {0} != {n for n in of_all if of_candidate[n]} - {0}
               for row, of_all, of_candidate in zip(found, kept_of_all, is_candidate, strict=True))  # fmt: skip
    with_classes = nms_on_device(device, boxes, everything, 0.3, 100, np.arange(200).reshape(2, 100) % 2)[0]
    assert (with_classes != kept_of_all).any()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (3, 0)], ids=str)
def test_nothing_to_suppress(device: torch.device, shape: tuple[int, int]) -> None:
    kept, num_kept = nms_on_device(device, np.zeros((*shape, 4), np.float32), np.ones(shape, np.bool_), 0.5, 4)
    assert kept.shape == (shape[0], 4)
    assert num_kept.tolist() == [0] * shape[0]
    assert not kept.any()


def test_arguments_may_be_non_contiguous(device: torch.device) -> None:
    boxes = torch.from_numpy(np.repeat(crowd(2, 70, 3), 2, axis=1)).to(device)[:, ::2]
    is_candidate = torch.ones((70, 2), dtype=torch.bool, device=device).T
    classes = torch.zeros((2, 140), dtype=torch.int64, device=device)[:, ::2]
    kept, _ = nms(boxes, is_candidate, 0.5, 70, classes)
    np.testing.assert_array_equal(kept.cpu(), cpu_nms(crowd(2, 70, 3), np.ones((2, 70), np.bool_), 0.5, 70)[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes_xyxy": torch.zeros(2, 6, 4)}, r"boxes_xyxy must be \(2, 7, 4\) float32, got \(2, 6, 4\) float32"),
        ({"boxes_xyxy": torch.zeros(2, 7, 4, dtype=torch.float16)}, "boxes_xyxy must be .* float16"),
        ({"is_candidate": torch.ones(7, dtype=torch.bool)}, r"is_candidate must be \(G, K\) bool, got \(7,\) bool"),
        ({"is_candidate": torch.ones(2, 7)}, "is_candidate must be .* float32"),
        ({"classes": torch.ones(2, 7)}, r"classes must be \(2, 7\) int64 or None, got \(2, 7\) float32"),
        ({"iou_threshold": 1.1}, "iou_threshold must be in 0 … 1"),
        ({"max_kept": 0}, "expected max_kept >= 1 and K <= 8192, got 0 and 7"),
        (
            {"boxes_xyxy": torch.zeros(1, 8193, 4), "is_candidate": torch.zeros(1, 8193, dtype=torch.bool)},
            "K <= 8192, got 3 and 8193",
        ),
    ],
)
def test_invalid_arguments_raise(changes: dict[str, object], message: str) -> None:
    valid = {"boxes_xyxy": torch.zeros(2, 7, 4), "is_candidate": torch.ones(2, 7, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        nms(**{**valid, "iou_threshold": 0.5, "max_kept": 3, **changes})  # type: ignore[arg-type]


def test_a_captured_graph_can_be_replayed_with_other_boxes(cuda: torch.device) -> None:
    """At the sizes in use, replayed with new input values and without synchronisation."""
    for num_groups, num_boxes, max_kept, iou_threshold, num_classes in (
        (10, 1000, 1000, 0.7, 0),
        (2, 4096, 100, 0.5, 90),
    ):
        boxes = torch.zeros(num_groups, num_boxes, 4, device=cuda)
        is_candidate = torch.zeros(num_groups, num_boxes, dtype=torch.bool, device=cuda)
        classes = torch.zeros(num_groups, num_boxes, dtype=torch.int64, device=cuda) if num_classes else None
        nms(boxes, is_candidate, iou_threshold, max_kept, classes)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept, num_kept = nms(boxes, is_candidate, iou_threshold, max_kept, classes)
        for seed in range(3):
            random = np.random.default_rng(seed)
            new_boxes, new_candidates = crowd(num_groups, num_boxes, seed), random.random((num_groups, num_boxes)) < 0.9
            new_classes = random.integers(0, num_classes, (num_groups, num_boxes)) if num_classes else None
            boxes.copy_(torch.from_numpy(new_boxes))
            is_candidate.copy_(torch.from_numpy(new_candidates))
            if classes is not None:
                classes.copy_(torch.from_numpy(new_classes))
            graph.replay()
            expected_kept, expected_num = cpu_nms(new_boxes, new_candidates, iou_threshold, max_kept, new_classes)
            np.testing.assert_array_equal(num_kept.cpu(), expected_num)
            np.testing.assert_array_equal(kept.cpu(), expected_kept)
