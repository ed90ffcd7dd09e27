"""benchmarks.tracker without its peers: the crowd, the child processes, the tables."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.mot_folders import box_crowd

from benchmarks import tracker, tracker_peers
from benchmarks.tracker_peers import OURS, OURS_MASKS, Peer, children, interpreter
from benchmarks.tracker_scenes import Boxes, Scene, judge, load_tracks, make_scene, save_detections, visible_cells
from pipeline.contract.arrays import Detections
from pipeline.evaluation import mot_tracking
from pipeline.evaluation.clear_mot import TrackingMetrics
from pipeline.tracking.mask_tracker import MaskTracker
from pipeline.tracking.tracker import TrackerConfig

NUM_OBJECTS, NUM_FRAMES, FRAME_HW = 60, 150, (600, 800)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return make_scene(NUM_OBJECTS, NUM_FRAMES, FRAME_HW)


def figures(mota: float, idf1: float) -> TrackingMetrics:
    return TrackingMetrics(num_objects=1, num_missed=0, num_false=0, num_switches=0, mota=mota, idf1=idf1)


# The crowd


def test_a_scene_is_the_same_each_time_and_another_with_another_seed() -> None:
    first, again, other = (make_scene(20, 5, FRAME_HW, seed) for seed in (3, 3, 4))
    for one, two in zip(_arrays(first), _arrays(again), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first.truth.boxes_xyxy, other.truth.boxes_xyxy)


def _arrays(scene: Scene) -> list[NDArray[Any]]:
    return [*scene.truth, *scene.detections, scene.scores, scene.mask_bits]


def test_objects_move_come_and_go_within_the_frame(scene: Scene) -> None:
    frames = [scene.truth.frame(index) for index in range(NUM_FRAMES)]
    for ids, boxes_xyxy in frames:
        assert 0.5 * NUM_OBJECTS < len(set(ids.tolist())) == len(ids) <= NUM_OBJECTS
        assert (boxes_xyxy[:, :2] >= 0).all()
        assert (boxes_xyxy[:, 2:] <= FRAME_HW[::-1]).all()
    (first_ids, first_xyxy), (last_ids, last_xyxy) = frames[0], frames[-1]
    stayed, of_first, of_last = np.intersect1d(first_ids, last_ids, return_indices=True)
    moved_px = np.abs(first_xyxy[of_first] - last_xyxy[of_last]).max(axis=1)
    assert len(stayed) > 5
    assert np.median(moved_px) > 50
    assert len(np.setdiff1d(last_ids, first_ids)) > 5


def test_some_are_missed_some_are_hidden_and_some_detections_are_false(scene: Scene) -> None:
    num_seen, num_found = len(scene.truth.ids), len(scene.scores)
    assert num_seen < 0.95 * NUM_OBJECTS * NUM_FRAMES  # crossings occlude more than three quarters of some objects
    num_false = np.mean([_num_false(scene, index) for index in range(NUM_FRAMES)])
    assert 0.5 < num_false < 3  # three false objects, each detected in two of five frames
    assert 0.9 < (num_found / NUM_FRAMES - num_false) / (num_seen / NUM_FRAMES) < 0.99
    assert 0.02 < (scene.scores < 0.5).mean() < 0.3
    for index in range(NUM_FRAMES):
        own = slice(*scene.detections.starts[index : index + 2])
        assert (np.diff(scene.scores[own]) <= 0).all()
    assert scene.mask_bits.shape == (num_found, 98)


def _num_false(scene: Scene, index: int) -> int:
    """Detections of a frame that overlap none of its objects."""
    _, truth_xyxy = scene.truth.frame(index)
    _, found_xyxy = scene.detections.frame(index)
    off = np.abs(found_xyxy[:, None] - truth_xyxy).max(axis=2)
    return int((off.min(axis=1) > 20).sum())


def test_nearer_objects_occlude_farther_ones() -> None:
    """Cell by cell for three boxes: one in front of both others, and one completely occluded."""
    boxes = np.array([[0.0, 0, 56, 56], [28, 10, 84, 66], [40, 20, 50, 40], [200, 0, 228, 28]])
    cells = visible_cells(boxes)
    for own, box in zip(cells, boxes, strict=True):
        nearer = [other for other in boxes if other[3] > box[3] and other[0] < box[2]]
        for row, col in np.ndindex(28, 28):
            side = box[2:] - box[:2]
            point = box[:2] + (np.array([col, row]) + 0.5) / 28 * side
            assert own[row, col] == (_inside(point, box) and not any(_inside(point, other) for other in nearer))
    assert cells[0].sum() < cells[1].sum() == cells[3].sum()
    assert not cells[2].any()
    assert visible_cells(np.zeros((0, 4))).shape == (0, 28, 28)


def _inside(point: NDArray[np.float64], box: NDArray[np.float64]) -> bool:
    half = (box[2:] - box[:2]) / 2
    return bool((((point - box[:2] - half) / half) ** 2).sum() < 1)


def test_every_tenth_frame_is_evaluated(scene: Scene) -> None:
    def without(index: int) -> Boxes:
        boxes_xyxy = scene.truth.boxes_xyxy.copy()
        boxes_xyxy[slice(*scene.truth.starts[index : index + 2])] += 1000
        return scene.truth._replace(boxes_xyxy=boxes_xyxy)

    assert judge(scene.truth, without(9)) == judge(scene.truth, scene.truth)
    assert judge(scene.truth, scene.truth).mota == 1
    assert judge(scene.truth, without(10)).num_missed == len(scene.truth.frame(10)[0])


def test_first_returns_the_frames_that_a_slow_tracker_has_processed(scene: Scene) -> None:
    """Accuracy is computed on the updates that all trackers have made."""
    few = scene.truth.first(20)
    assert len(few.starts) == 21
    for index in range(20):
        for one, two in zip(few.frame(index), scene.truth.frame(index), strict=True):
            np.testing.assert_array_equal(one, two)
    assert len(few.ids) == len(few.boxes_xyxy) == few.starts[-1]
    assert judge(scene.truth, few).mota == 1


# Processes


def test_a_child_returns_the_tracks_of_the_tracker(scene: Scene, tmp_path: Path) -> None:
    """The scene is processed in parts, and then again from the start with a new tracker."""
    save_detections(tmp_path / "scene.npz", scene.detections, scene.scores, scene.mask_bits)
    with children([OURS, OURS_MASKS], tmp_path) as started:
        for child, with_masks in zip(started, (False, True), strict=True):
            for frames_of_parts in ([100, 100], [150]):
                child.open(tmp_path / "scene.npz")
                update_s = [child.run(num_frames) for num_frames in frames_of_parts]
                assert sum(map(len, update_s)) == NUM_FRAMES
                assert min(map(min, update_s)) > 0
                child.save(tmp_path / "tracks.npz")
                found = load_tracks(tmp_path / "tracks.npz")
                for one, two in zip(found, _tracked_here(scene, with_masks=with_masks), strict=True):
                    np.testing.assert_array_equal(one, two)
    assert len(found.ids) > 1000


def _tracked_here(scene: Scene, *, with_masks: bool) -> Boxes:
    own_tracker = MaskTracker(TrackerConfig.for_conf(0.5, 0.1))
    starts, ids, boxes = [0], [], []
    for index in range(NUM_FRAMES):
        rows = slice(*scene.detections.starts[index : index + 2])
        boxes_xyxy = scene.detections.boxes_xyxy[rows].astype(np.float32)
        bits = scene.mask_bits[rows] if with_masks else None
        class_ids = np.ones(len(boxes_xyxy), np.int32)
        given = Detections(boxes_xyxy, scene.scores[rows], class_ids, bits, None, 1, 1)
        tracked = own_tracker.update(given, index + 1, index / 30)
        shown = tracked.track_ids > 0
        ids.append(tracked.track_ids[shown])
        boxes.append(boxes_xyxy[tracked.detection_idx[shown]].astype(np.float64))
        starts.append(starts[-1] + len(ids[-1]))
    return Boxes(np.array(starts), np.concatenate(ids), np.concatenate(boxes))


@pytest.mark.parametrize(
    "program", ["raise SystemExit('out of order')", "input()\nraise SystemExit('out of order')"], ids=["start", "open"]
)
def test_a_child_that_fails_ends_the_program_with_its_output(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "child.py"
    script.write_text(program)
    monkeypatch.setattr(tracker_peers, "CHILD", script)
    with (
        pytest.raises(SystemExit, match=r"^a peer failed:\nout of order\n$"),
        children([Peer("a peer", None)], tmp_path) as (child,),
    ):
        child.open(tmp_path / "scene.npz")


def test_an_environment_is_created_once_for_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []

    def call(command: list[str]) -> None:
        called.append(command)
        (tmp_path / "norfair").mkdir(exist_ok=True)

    monkeypatch.setattr(tracker_peers, "_call", call)
    pins = tracker_peers.ENVIRONMENTS["norfair"]
    for _ in range(2):
        assert interpreter("norfair", tmp_path) == tmp_path / "norfair" / "bin" / "python"
    assert [command[1:3] for command in called] == [["-m", "venv"], ["-m", "pip"]]
    assert called[0][-1] == str(tmp_path / "norfair")
    assert called[1][-len(pins) :] == list(pins)
    monkeypatch.setitem(tracker_peers.ENVIRONMENTS, "norfair", (*pins, "rich==14.3.4"))
    interpreter("norfair", tmp_path)
    assert called[3][-1] == "rich==14.3.4"


def test_an_environment_that_cannot_be_created_ends_the_program_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    for _ in range(2):
        with pytest.raises(SystemExit, match=r"-m venv .* failed:\n"):
            interpreter("norfair", tmp_path / "a file")


# Tables


def test_no_figures_if_ours_is_less_accurate_than_the_peers() -> None:
    peers = [figures(0.6, 0.5), figures(0.8, 0.7), figures(0.9, 0.9)]
    assert tracker.fault(figures(0.76, 0.66), peers) is None
    assert tracker.fault(figures(0.74, 0.66), peers) == "mota 0.740 beside a median of 0.800"
    assert tracker.fault(figures(0.76, 0.64), peers) == "idf1 0.640 beside a median of 0.700"


def test_a_ratio_uses_the_turns_of_both() -> None:
    ours = tracker.Timed(np.array([1.0, 2, 4, 100]), 100, figures(0.9, 0.8))
    slow = tracker.Timed(np.array([10.0, 40, 20]), 80, figures(0.7, 0.6))
    rows = tracker.speed_rows(tracker.CASES[0], ["ours", "slow"], [ours, slow])
    expected = {"case": "50 objects", "tracker": "slow", "ours": 2, "peer": 20, "ratio": 10, "unit": "ms"}
    expected |= {"p20": 14, "p80": 32, "updates": 80, "mota": 0.7, "idf1": 0.6}
    assert rows[1] == expected
    assert (rows[0]["ours"], rows[0]["peer"], rows[0]["ratio"]) == (3, 3, 1)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """A run with our tracker as the only peer."""
    monkeypatch.setattr(tracker, "PEERS", [OURS._replace(environment=None)])
    monkeypatch.setattr(sys, "argv", ["tracker", *arguments])
    tracker.main()


def test_a_short_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "--case", "50 objects", "--runs", "1", "--json")
    rows: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["tracker"] for row in rows] == ["ours", "ours, masks", "ours"]
    for row in rows:
        assert {"ours", "peer", "ratio", "unit", "p20", "p80", "device", "versions"} <= set(row)
        assert (row["case"], row["updates"]) == ("50 objects", 70)
        assert row["peer"] > 0
        assert 0.5 < row["mota"] <= 1
    assert rows[0]["ratio"] == 1


@pytest.mark.usefixtures("trackeval")
def test_accuracy_of_a_child_equals_that_of_the_tracker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both run at 30 frames per second, as the peers do, with the configuration of the child."""
    monkeypatch.setattr(mot_tracking, "TrackerConfig", lambda: TrackerConfig.for_conf(0.5, 0.1))
    truth, results = box_crowd(tmp_path)
    for found in results.glob("*.txt"):
        info = truth / found.stem / "seqinfo.ini"
        info.write_text(info.read_text().replace("frameRate=10", "frameRate=30"))
        (truth / found.stem / "det").mkdir()
        shutil.copy(found, truth / found.stem / "det" / "det.txt")
    run(monkeypatch, "--accuracy", str(truth), "--json")
    here, child = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert here == child
    assert here["case"] == "3 sequences"
    assert 0.2 < here["hota"] < 1
    run(monkeypatch, "--accuracy", str(truth))
    _, names, head, *lines = capsys.readouterr().out.splitlines()
    assert names == "a, b, empty"
    assert head.split() == ["HOTA", "DetA", "AssA", "IDF1", "MOTA", "FP", "FN", "IDSW"]
    assert [line.split()[0] for line in lines] == ["ours", "ours"]
    assert lines[0].split()[1] == f"{100 * here['hota']:.1f}"
