"""benchmarks.alignment: order of the operations, the peer compared with the reference, averages by hand."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import alignment
from ops import reference
from ops.mask_format import decode_rle
from ops.masks import paste_rle
from pipeline.synthetic import SceneFrame

FLOAT32_UNIT = 2.0**-24


@pytest.fixture(scope="module")
def frames() -> list[SceneFrame]:
    return list(alignment.street(2))


def test_roi_align_has_a_higher_iou_than_rounding_for_every_size(frames: list[SceneFrame]) -> None:
    rows = alignment.measure(frames)
    assert {row["case"].partition(",")[0] for row in rows} == set(alignment.SIZES)
    assert len(rows) == 12
    for row in rows:
        assert row["objects"] >= 3, row
        assert row["rounded"] < row["ours"], row
        assert row["peer"] < row["ours"], row
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], abs=1e-3), row  # figures have four decimals


def test_rounding_costs_nothing_where_boxes_lie_on_whole_cells() -> None:
    """Rounding does not change the result for a rectangle on whole cells of 4 pixels, but does for one shifted by 2
    pixels.
    """

    def cuts(shift_px: int) -> dict[str, NDArray[np.float32]]:
        mask = np.zeros((128, 128), np.bool_)
        mask[32 + shift_px : 80 + shift_px, 32 + shift_px : 96 + shift_px] = True
        box = np.array([32, 32, 96, 80], np.float32) + np.float32(shift_px)
        return alignment.pooled_probabilities(mask, box, 28, aligned=True)

    on_cells, between = cuts(0), cuts(2)
    np.testing.assert_array_equal(on_cells["ours"], on_cells["rounded"])
    assert np.abs(between["ours"] - between["rounded"]).max() > 0.25  # half a cell of an edge that is one cell wide


@pytest.mark.parametrize("side", alignment.SIDES)
def test_the_peer_equals_the_roi_pool_of_the_reference(frames: list[SceneFrame], side: int) -> None:
    frame = frames[0]
    for item in frame.objects[:4]:
        mask, box = frame.mask(item.object_id), np.array(item.box_xyxy, np.float32)
        stride = alignment.STRIDES[reference.fpn_level(box.astype(np.float64), 4, 4.0)]
        cells = alignment.cell_means(mask, stride, stride // 2).astype(np.float64)[:, :, None]
        wanted = torch.from_numpy(reference.roi_pool(cells, box, (side, side), 1 / stride)[:, :, 0])
        resized = torch.nn.functional.interpolate(wanted[None, None], size=(28, 28), mode="bilinear")[0, 0]
        found = alignment.pooled_probabilities(mask, box, side, aligned=False)["peer"]
        # two interpolations of numbers up to 1, each a sum of two products of float32
        np.testing.assert_allclose(found, resized.numpy(), rtol=0, atol=8 * FLOAT32_UNIT)


def test_squares_are_averaged() -> None:
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1]], np.bool_)
    np.testing.assert_array_equal(alignment.cell_means(mask, 2, 0), np.array([[0.75, 0.25], [0, 0.5]], np.float32))
    shifted = [[0.25, 0.25, 0], [0.25, 0.25, 0.5]]
    np.testing.assert_array_equal(alignment.cell_means(mask, 2, 1), np.array(shifted, np.float32))


@pytest.mark.parametrize(("area_px2", "size"), [(1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large")])
def test_object_sizes_are_those_of_coco(area_px2: int, size: str) -> None:
    assert alignment.size_of(area_px2) == size


def test_ious_equal_those_of_bitmaps(frames: list[SceneFrame]) -> None:
    """IoUs of every object that is large enough, in order."""
    frame = frames[0]
    found = alignment.frame_ious(frame, 28, aligned=False)
    expected = []
    for item in frame.objects:
        box = np.array(item.box_xyxy, np.float32)
        if (box[2:] - box[:2]).min() < 8:
            continue
        mask = frame.mask(item.object_id)
        cuts = alignment.pooled_probabilities(mask, box, 28, aligned=False)
        pasted = [decode_rle(paste_rle(cuts[name][None], box[None], (720, 1280))[0], (720, 1280)) for name in cuts]
        ious = [(bitmap & mask).sum() / (bitmap | mask).sum() for bitmap in pasted]
        expected.append((alignment.size_of(int(mask.sum())), ious))
    assert [size for size, _ in found] == [size for size, _ in expected]
    np.testing.assert_array_equal(np.array([ious for _, ious in found]), np.array([ious for _, ious in expected]))


def test_json_is_one_object_per_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["alignment", "--num", "1", "--json"])
    alignment.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 12
    for row in rows:
        assert {"case", "ours", "peer", "ratio", "rounded", "unit", "objects", "device", "versions"} == set(row)
        assert {"torch", "torchvision", "numba", "python"} <= set(row["versions"])


def test_a_number_of_pictures_below_one_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["alignment", "--num", "0"])
    with pytest.raises(SystemExit) as ended:
        alignment.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("--num must be at least 1, got 0")
