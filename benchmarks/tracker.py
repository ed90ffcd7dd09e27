"""The tracker beside widely used trackers: milliseconds per update in crowds, or accuracy on MOTChallenge sequences.

    python -m benchmarks.tracker [--case TEXT] [--peer TEXT] [--runs N] [--envs DIR] [--json]
    python -m benchmarks.tracker --accuracy DIR [--peer TEXT] [--envs DIR] [--json]

The peers are not dependencies: each runs in an environment of its own, which pip creates when it is first needed. Every
tracker, ours included, is a process with one thread that gets the same detections and measures the CPU time of the
process inside its update. The trackers take turns of 40 frames. The first ten frames of a turn do not count, because
the other trackers have evicted the caches. A ratio is the median of the ratios of the turns. A tracker that has used up
its time for a scene stops, so slow trackers process fewer frames. MOTA and IDF1 on the frames that all trackers have
processed are printed beside the times. There are no times if our tracker is less accurate than the peers.

Accuracy is computed as in `evaluate mot` (docs/evaluation.md), over all sequences in DIR together: peers with their
defaults, whatever the frame rate, ours with its default configuration.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.tracker_peers import ENVIRONMENTS, OURS, OURS_MASKS, PEERS, Child, Peer, children, default_folder
from benchmarks.tracker_scenes import Boxes, judge, load_tracks, make_scene, save_detections
from pipeline.errors import MaskStreamError
from pipeline.evaluation.clear_mot import TrackingMetrics
from pipeline.evaluation.mot_tracking import track_boxes
from pipeline.evaluation.motchallenge import (
    BoxRows,
    MotSequence,
    by_frame,
    find_sequences,
    from_xyxy,
    read_boxes,
    to_xyxy,
)
from pipeline.evaluation.trackeval_metrics import TrackEvaluator, compare_boxes

Row = dict[str, Any]

_WARM_UP_FRAMES = 30
_TURN_FRAMES = 40
_NOT_COUNTED = 10
"""frames at the start of a turn that are not timed"""
_FEWEST_TURNS = 3
_TIME_S = 10.0
"""time that a tracker may spend on a scene"""
_WORSE = 0.05
"""maximum by which MOTA or IDF1 of ours may be below the median of the peers for times to be printed"""
_SPEED_ALONE = ("norfair", "motpy")
"""peers without a row in the accuracy table"""


class Case(NamedTuple):
    name: str
    num_objects: int
    frame_hw: tuple[int, int]


CASES = [
    Case("50 objects", 50, (1080, 1920)),
    Case("200 objects", 200, (1080, 1920)),
    Case("1000 objects", 1000, (2160, 3840)),
]


class Timed(NamedTuple):
    """Result of a tracker on a scene: times_ms (R,) milliseconds per update of each turn; num_updates, including warm-
    up; accuracy figures of the updates that all trackers have made.
    """

    times_ms: NDArray[np.float64]
    num_updates: int
    figures: TrackingMetrics


def measure(case: Case, trackers: Sequence[Child], num_turns: int, folder: Path) -> list[Timed]:
    """Run the trackers, which write their files to the folder. Returns the results in the order of the trackers."""
    scene = make_scene(case.num_objects, _WARM_UP_FRAMES + num_turns * _TURN_FRAMES, case.frame_hw)
    path = folder / "scene.npz"
    save_detections(path, scene.detections, scene.scores, scene.mask_bits)
    for tracker in trackers:
        tracker.open(path)
    spent_s = [sum(tracker.run(_WARM_UP_FRAMES)) for tracker in trackers]
    times_ms: list[list[float]] = [[] for _ in trackers]
    for turn in range(num_turns):
        for which, tracker in enumerate(trackers):
            if turn < _FEWEST_TURNS or spent_s[which] < _TIME_S:
                update_s = tracker.run(_TURN_FRAMES)
                spent_s[which] += sum(update_s)
                times_ms[which].append(float(np.mean(update_s[_NOT_COUNTED:])) * 1e3)
    found = []
    for tracker in trackers:
        tracker.save(folder / "tracks.npz")
        found.append(load_tracks(folder / "tracks.npz"))
    updates = [len(tracks.starts) - 1 for tracks in found]
    figures = [judge(scene.truth, tracks.first(min(updates))) for tracks in found]
    return [Timed(np.array(own_ms), *rest) for own_ms, *rest in zip(times_ms, updates, figures, strict=True)]


def fault(ours: TrackingMetrics, peers: Sequence[TrackingMetrics]) -> str | None:
    """Return the metric in which our tracker is less accurate than the median of the peers, or None."""
    for name in ("mota", "idf1") if peers else ():
        own, others = getattr(ours, name), float(np.median([getattr(peer, name) for peer in peers]))
        if own < others - _WORSE:
            return f"{name} {own:.3f} beside a median of {others:.3f}"
    return None


def speed_rows(case: Case, names: Sequence[str], timed: Sequence[Timed]) -> list[Row]:
    """One row for each tracker, relative to the first, which is ours with boxes only."""
    rows = []
    for name, (times_ms, num_updates, figures) in zip(names, timed, strict=True):
        ours_ms = timed[0].times_ms[: len(times_ms)]
        p20, p50, p80 = np.percentile(times_ms, [20, 50, 80])
        row: Row = {"case": case.name, "tracker": name, "ours": _rounded(np.median(ours_ms)), "peer": _rounded(p50)}
        row |= {"ratio": _rounded(np.median(times_ms / ours_ms)), "unit": "ms"}
        row |= {"p20": _rounded(p20), "p80": _rounded(p80), "updates": num_updates}
        rows.append(row | {"mota": round(figures.mota, 4), "idf1": round(figures.idf1, 4)})
    return rows


def accuracy_rows(sequences: Sequence[MotSequence], trackers: Sequence[Child], folder: Path) -> list[Row]:
    """Accuracy of each tracker, ours first; values in [0, 1]."""
    names = ["ours", *(tracker.peer.tracker for tracker in trackers)]
    judges = [TrackEvaluator(of_masks=False) for _ in names]
    for sequence in sequences:
        num_frames = sequence.num_frames
        truth = read_boxes(sequence.truth, num_frames)
        detections = read_boxes(sequence.folder / "det" / "det.txt", num_frames, with_ids=False)
        found = [track_boxes(detections, sequence.fps, num_frames)]
        path = folder / "scene.npz"
        order, boxes = _by_frame(detections, num_frames)
        save_detections(path, boxes, detections.values[order].astype(np.float32))
        for tracker in trackers:
            tracker.open(path)
            tracker.run(num_frames)
            tracker.save(folder / "tracks.npz")
            found.append(_as_rows(load_tracks(folder / "tracks.npz")))
        for own, tracks in zip(judges, found, strict=True):
            own.add(sequence.name, compare_boxes(truth, tracks, num_frames))
    case = f"{len(sequences)} sequences"
    return [{"case": case, "tracker": name, **own.combined()} for name, own in zip(names, judges, strict=True)]


def _by_frame(detections: BoxRows, num_frames: int) -> tuple[NDArray[np.int64], Boxes]:
    """Indices of the rows of each frame, and their boxes with pixel numbers that start at 0."""
    places = by_frame(detections.frames, num_frames)
    order = np.concatenate(places)
    starts = np.cumsum([0, *map(len, places)])
    return order, Boxes(starts, detections.ids[order], to_xyxy(detections.boxes_ltwh[order]))


def _as_rows(tracks: Boxes) -> BoxRows:
    frames = np.repeat(np.arange(1, len(tracks.starts)), np.diff(tracks.starts))
    return BoxRows(frames, tracks.ids, from_xyxy(tracks.boxes_xyxy), np.ones(len(frames)))


def _rounded(value: float) -> float:
    return float(f"{float(value):.4g}")


def _print_speed(row: Row) -> None:
    times = f"{row['p20']:9.3f} {row['peer']:9.3f} {row['p80']:9.3f} {row['ratio']:8.2f}"
    print(f"{row['case']:>13} {row['tracker']:>22} {times} {row['updates']:8} {row['mota']:7.3f} {row['idf1']:7.3f}")


def _print_accuracy(row: Row) -> None:
    shares = " ".join(f"{100 * row[name]:6.1f}" for name in ("hota", "deta", "assa", "idf1", "mota"))
    counts = " ".join(f"{row[name]:6}" for name in ("fp", "fn", "idsw"))
    print(f"{row['tracker']:>22} {shares} {counts}")


def _about(arguments: argparse.Namespace, peers: Sequence[Peer], versions: dict[str, str]) -> Row:
    """Device and versions, which are printed at once unless the output is JSON."""
    environments = dict.fromkeys(peer.environment for peer in peers if peer.environment is not None)
    versions = versions | dict(ENVIRONMENTS[name][0].split("==") for name in environments)
    device = f"{report.cpu_name()}, 1 thread"
    if not arguments.json:
        print(f"{device}; " + ", ".join(f"{name} {number}" for name, number in versions.items()), flush=True)
    return {"device": device, "versions": versions}


def _show_speed(arguments: argparse.Namespace, peers: Sequence[Peer], versions: dict[str, str]) -> None:
    cases = report.selected([case.name for case in CASES], arguments.case)
    chosen = [OURS, OURS_MASKS, *peers]
    about = _about(arguments, peers, versions)
    if not arguments.json:
        head = f"{'p20':>9} {'p50':>9} {'p80':>9} {'ratio':>8} {'updates':>8} {'MOTA':>7} {'IDF1':>7}"
        print(f"{'ms an update':>36} {head}", flush=True)
    with tempfile.TemporaryDirectory() as folder, children(chosen, arguments.envs) as trackers:
        for case in (case for case in CASES if case.name in cases):
            timed = measure(case, trackers, arguments.runs, Path(folder))
            report.gate(case.name, fault(timed[0].figures, [own.figures for own in timed[2:]]))
            for row in speed_rows(case, [peer.tracker for peer in chosen], timed):
                print(json.dumps(row | about), flush=True) if arguments.json else _print_speed(row)


def _show_accuracy(arguments: argparse.Namespace, peers: Sequence[Peer], versions: dict[str, str]) -> None:
    sequences = find_sequences(arguments.accuracy)
    about = _about(arguments, peers, versions | {"trackeval": TrackEvaluator(of_masks=False).version})
    with tempfile.TemporaryDirectory() as folder, children(peers, arguments.envs) as trackers:
        rows = accuracy_rows(sequences, trackers, Path(folder))
    if not arguments.json:
        print(", ".join(sequence.name for sequence in sequences))
        print(f"{'':>22}   HOTA   DetA   AssA   IDF1   MOTA     FP     FN   IDSW")
    for row in rows:
        print(json.dumps(row | about)) if arguments.json else _print_accuracy(row)


def main() -> None:
    parser = report.arguments("benchmarks.tracker", __doc__, num_runs=15)
    parser.add_argument("--peer", default="", metavar="TEXT", help="only the peers whose name contains this")
    parser.add_argument("--accuracy", type=Path, metavar="DIR", help="accuracy on MOTChallenge sequences, no times")
    folder = default_folder()
    parser.add_argument("--envs", type=Path, default=folder, metavar="DIR", help=f"of the peers (default {folder})")
    arguments = parser.parse_args()
    names = report.selected([peer.tracker for peer in PEERS], arguments.peer)
    peers = [peer for peer in PEERS if peer.tracker in names]
    versions = {"python": platform.python_version(), "numpy": version("numpy"), "numba": version("numba")}
    try:
        if arguments.accuracy is None:
            _show_speed(arguments, peers, versions)
        else:
            _show_accuracy(arguments, [peer for peer in peers if peer.environment not in _SPEED_ALONE], versions)
    except MaskStreamError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
