"""Reading, validating and writing files of MOTChallenge and MOTS; the tracker on detections from such a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ops.mask_format import rle_num_pixels
from ops.masks import encode_rle
from pipeline.errors import UsageError
from pipeline.evaluation.mot_tracking import track_boxes
from pipeline.evaluation.motchallenge import (
    BoxRows,
    by_frame,
    find_sequences,
    from_xyxy,
    holds_masks,
    read_boxes,
    read_masks,
    read_sequence,
    to_xyxy,
    write_boxes,
    write_masks,
)
from pipeline.tracking.tracker import TrackerConfig

SEQINFO = "[Sequence]\nname=a\nframeRate=12.5\nseqLength=8\n"
COUNTS = encode_rle(np.eye(4, 5, dtype=np.bool_)).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.txt"


def test_rows_of_boxes_are_read_in_file_order(file: Path) -> None:
    file.write_text("2,7,10.5,20,3,4,0.75,-1,-1,-1\n\n1, 3, 1, 1, 2, 2, 1\r\n")
    rows = read_boxes(file, 2)
    assert (rows.frames.tolist(), rows.ids.tolist(), rows.values.tolist()) == ([2, 1], [7, 3], [0.75, 1.0])
    assert rows.boxes_ltwh.tolist() == [[10.5, 20, 3, 4], [1, 1, 2, 2]]
    assert not holds_masks(file)


def test_coordinates_change_from_1_based_to_0_based() -> None:
    boxes = np.array([[1.0, 1.0, 640.0, 480.0], [2.5, 4.0, 3.0, 0.5]])
    assert to_xyxy(boxes).tolist() == [[0, 0, 640, 480], [1.5, 3, 4.5, 3.5]]
    assert from_xyxy(to_xyxy(boxes)).tolist() == boxes.tolist()


def test_detections_have_no_ids(file: Path) -> None:
    file.write_text("1,-1,1,1,2,2,0.5\n1,-1,1,1,2,2,0.5\n")
    assert len(read_boxes(file, with_ids=False)) == 2


def test_a_file_without_rows_gives_empty_arrays(file: Path) -> None:
    file.write_text("\n")
    rows = read_boxes(file)
    assert (len(rows), rows.boxes_ltwh.shape) == (0, (0, 4))
    assert len(read_masks(file)) == 0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1,1,1,1,2", "expected frame,id,left,top,width,height,score, got '1,1,1,1,2'"),
        ("1,1,1,1,2,x,1", "expected frame,id,left,top,width,height,score, got '1,1,1,1,2,x,1'"),
        ("1,1,1,nan,2,2,1", "expected frame,id,left,top,width,height,score, got '1,1,1,nan,2,2,1'"),
        ("1 1 2 4 5 00", "expected frame,id,left,top,width,height,score, got '1 1 2 4 5 00'"),
        ("0,1,1,1,2,2,1", "expected a frame of 1 or more, got 0"),
        ("1.5,1,1,1,2,2,1", "expected a frame of 1 or more, got 1.5"),
        ("9,1,1,1,2,2,1", "frame 9 in a sequence of 8 (seqLength in its seqinfo.ini)"),
        ("1,-1,1,1,2,2,1", "expected a whole number of 0 or more as id, got -1"),
        ("1,1e30,1,1,2,2,1", "expected a whole number of 0 or more as id, got 1e+30"),
        ("2,4,1,1,2,2,1", "id 4 occurs twice on frame 2"),
        ("1,1,1,1,-2,2,1", "expected width and height of 0 or more, got -2 and 2"),
    ],
)
def test_the_error_names_the_line_of_an_invalid_box(file: Path, row: str, words: str) -> None:
    file.write_text(f"2,4,1,1,2,2,1\n\n{row}\n")
    with pytest.raises(UsageError) as caught:
        read_boxes(file, 8)
    assert str(caught.value) == f"{file}, line 3: {words}"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("1 1 2 4 5", "expected frame id class height width counts, got '1 1 2 4 5'"),
        ("1 1 2 4 x 00", "expected frame id class height width counts, got '1 1 2 4 x 00'"),
        ("1 1 2 0 5 00", "expected frame id class height width counts, got '1 1 2 0 5 00'"),
        (f"9 1 2 4 5 {COUNTS}", "frame 9 in a sequence of 8 (seqLength in its seqinfo.ini)"),
        (f"2 4 2 4 5 {COUNTS}", "id 4 occurs twice on frame 2"),
        (f"1 1 2 4 6 {COUNTS}", "RLE counts must add up to 4 * 6 pixels, got 20"),
        ("1 1 2 4 5 ~", "RLE counts hold a character outside '0' to 'o'"),
    ],
)
def test_the_error_names_the_line_of_an_invalid_mask(file: Path, row: str, words: str) -> None:
    file.write_text(f"2 4 2 4 5 {COUNTS}\n{row}\n")
    with pytest.raises(UsageError) as caught:
        read_masks(file, 8)
    assert str(caught.value) == f"{file}, line 2: {words}"


def test_ignored_regions_may_share_an_id(file: Path) -> None:
    file.write_text(f"1 10000 10 4 5 {COUNTS}\n1 10000 10 4 5 {COUNTS}\n")
    assert read_masks(file).class_ids.tolist() == [10, 10]
    assert holds_masks(file)


def test_rle_num_pixels_is_the_size_of_the_frame() -> None:
    assert rle_num_pixels(COUNTS.encode()) == 20


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), (b"\xff\xfe", "expected a text file")])
def test_the_error_names_a_missing_or_binary_file(file: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_boxes(file)
    assert str(file) in str(caught.value)


def test_box_results_are_sorted_and_survive_a_round_trip(file: Path) -> None:
    rows = BoxRows(
        frames=np.array([2, 1, 2]),
        ids=np.array([9, 5, 3]),
        boxes_ltwh=np.array([[1.1 + 2.2, 2.0, 3.0, 1 / 3], [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]),
        values=np.array([0.1, 0.995616, 1.0]),
    )
    write_boxes(file, rows)
    assert file.read_text().splitlines()[0] == "1,5,1,2,3,4,0.995616,-1,-1,-1"
    again = read_boxes(file)
    assert (again.frames.tolist(), again.ids.tolist()) == ([1, 2, 2], [5, 3, 9])
    order = [1, 2, 0]
    assert again.boxes_ltwh.tolist() == rows.boxes_ltwh[order].tolist()
    assert again.values.tolist() == rows.values[order].tolist()


def test_mask_results_are_sorted_and_survive_a_round_trip(file: Path, tmp_path: Path) -> None:
    file.write_text(f"3 7 2 4 5 {COUNTS}\n1 8 2 4 5 {COUNTS}\n1 2 2 4 5 {COUNTS}\n")
    write_masks(tmp_path / "again.txt", read_masks(file))
    assert (tmp_path / "again.txt").read_text().splitlines() == [
        f"1 2 2 4 5 {COUNTS}", f"1 8 2 4 5 {COUNTS}", f"3 7 2 4 5 {COUNTS}",
    ]  # fmt: skip


def test_by_frame_groups_row_indices() -> None:
    assert [rows.tolist() for rows in by_frame(np.array([4, 2, 4, 1]), 5)] == [[3], [1], [], [0, 2], []]
    assert [rows.tolist() for rows in by_frame(np.zeros(0, np.int64), 2)] == [[], []]


def make_sequence(folder: Path) -> Path:
    (folder / "gt").mkdir(parents=True)
    (folder / "gt" / "gt.txt").touch()
    (folder / "seqinfo.ini").write_text(SEQINFO)
    return folder


def test_sequences_are_found_in_a_folder_or_in_the_folder_itself(tmp_path: Path) -> None:
    for name in ("b", "a"):
        make_sequence(tmp_path / name)
    (tmp_path / "seqmaps").mkdir()
    assert [sequence.name for sequence in find_sequences(tmp_path)] == ["a", "b"]
    (alone,) = find_sequences(tmp_path / "b")
    assert (alone.name, alone.fps, alone.num_frames) == ("b", 12.5, 8)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no such file"),
        ("frameRate=3", "no section headers"),
        ("[Sequence]\nframeRate=3\n", "seqlength"),
        ("[Sequence]\nframeRate=x\nseqLength=3\n", "could not convert"),
        ("[Sequence]\nframeRate=0\nseqLength=3\n", "above 0, got 0 and 3"),
        ("[Sequence]\nframeRate=nan\nseqLength=3\n", "above 0, got nan and 3"),
    ],
)
def test_an_invalid_seqinfo_raises(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "seqinfo.ini").write_text(content)
    with pytest.raises(UsageError, match=words) as caught:
        read_sequence(tmp_path)
    assert str(tmp_path / "seqinfo.ini") in str(caught.value)


@pytest.mark.parametrize("fps", [4.0, 20.0])
def test_the_tracker_uses_the_frame_rate_of_the_sequence(fps: float) -> None:
    """An object is in the results after `confirm_s` seconds; frames without a detection count towards this time."""
    frames = np.array([2, 3, 5, 6, 7, 8, 9, 10])
    boxes = np.tile([11.0, 21.0, 30.0, 60.0], (len(frames), 1))
    rows = track_boxes(BoxRows(frames, np.zeros(8, np.int64), boxes, np.full(8, 0.85)), fps, 10)
    first = 2 + TrackerConfig().confirm_s * fps
    assert rows.frames.tolist() == [frame for frame in frames.tolist() if frame >= first]
    assert set(rows.ids.tolist()) == {1}
    assert rows.boxes_ltwh.tolist() == boxes[: len(rows)].tolist()
