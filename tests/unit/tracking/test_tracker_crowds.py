"""Rendered crowds at several frame rates: ID switches with and without masks, and independence of the frame rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest
from support.crossing_crowds import LENGTH_S, CrossingCrowd, CrowdFrame

from pipeline.evaluation.clear_mot import TrackedFrame, TrackingMetrics, tracking_metrics
from pipeline.tracking.mask_tracker import MaskTracker
from pipeline.tracking.tracker import TrackerConfig

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

SEEDS, CLUTTER_SEEDS = range(1, 13), range(1, 5)
FULL_FPS = 30
ID_STRIDE = 100_000
"""offset between the IDs of consecutive scenes"""

CONFIG = TrackerConfig.for_conf(0.5, 0.1)
"""the pipeline's configuration for such detections"""

Scenes = dict[str, list[list[CrowdFrame]]]
"""frame rate -> frames of each scene"""


def changing_times(seed: int) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    time_s = 0.0
    while time_s < LENGTH_S:
        yield time_s
        time_s += rng.uniform(0.03, 0.3)


def sampled(crowds: dict[int, CrossingCrowd]) -> Scenes:
    """The lower rates use every third and every sixth frame."""
    full = [crowd.frames(np.arange(0.0, LENGTH_S, 1 / FULL_FPS).tolist()) for crowd in crowds.values()]
    changing = [crowd.frames(changing_times(seed)) for seed, crowd in crowds.items()]
    every = {f"{FULL_FPS // step} fps": [frames[::step] for frames in full] for step in (1, 3, 6)}
    return every | {"changing": changing}


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """People and cars that cross and occlude each other."""
    return sampled({seed: CrossingCrowd(seed) for seed in SEEDS})


@pytest.fixture(scope="module")
def cluttered_scenes() -> Scenes:
    """Crowds with parked cars, and with pillars that occlude but are not detected."""
    return sampled({seed: CrossingCrowd(seed, num_parked=2, num_pillars=4) for seed in CLUTTER_SEEDS})


def tracked(scenes: list[list[CrowdFrame]], with_masks: bool) -> Iterator[TrackedFrame]:
    """Track each scene with a tracker of its own and yield the tracked frames of all scenes."""
    for scene, frames in enumerate(scenes):
        tracker = MaskTracker(CONFIG)
        for frame in frames:
            given = frame.detections if with_masks else dataclasses.replace(frame.detections, mask_bits=None)
            result = tracker.update(given, frame.frame_seq, frame.time_s)
            confirmed = result.track_ids > 0
            yield TrackedFrame(
                frame.truth_ids + ID_STRIDE * scene,
                result.track_ids[confirmed] + ID_STRIDE * scene,
                frame.mask_ious[:, result.detection_idx[confirmed]],
            )


Found = dict[str, tuple[TrackingMetrics, TrackingMetrics]]
"""frame rate -> figures with masks and with boxes alone"""


def track_all(scenes: Scenes) -> Found:
    found = {
        rate: (tracking_metrics(tracked(frames, True)), tracking_metrics(tracked(frames, False)))
        for rate, frames in scenes.items()
    }
    for rate, (masks, boxes) in found.items():
        print(f"{rate:>9}: switches {masks.num_switches:4} {boxes.num_switches:4}", end="  ")
        print(f"IDF1 {masks.idf1:.3f} {boxes.idf1:.3f}  MOTA {masks.mota:.3f} {boxes.mota:.3f}  (masks, boxes alone)")
    return found


@pytest.fixture(scope="module")
def found(scenes: Scenes) -> Found:
    return track_all(scenes)


@pytest.fixture(scope="module")
def found_in_clutter(cluttered_scenes: Scenes) -> Found:
    return track_all(cluttered_scenes)


def num_switches(found: Found) -> tuple[int, int]:
    return sum(masks.num_switches for masks, _ in found.values()), sum(
        boxes.num_switches for _, boxes in found.values()
    )


def reappearances_per_s(scenes: Scenes) -> list[float]:
    """Return the number of reappearances per second after an occlusion of 0.3 to 1 s, for each scene."""
    counts = []
    for frames in scenes[f"{FULL_FPS} fps"]:
        count = 0
        last_seen_s: dict[int, float] = {}
        for frame in frames:
            for truth_id in frame.truth_ids.tolist():
                count += 0.3 <= frame.time_s - last_seen_s.get(truth_id, frame.time_s) <= 1.0
                last_seen_s[truth_id] = frame.time_s
        counts.append(count / LENGTH_S)
    return counts


def test_the_objects_of_the_crowds_cross_and_occlude_each_other(scenes: Scenes, cluttered_scenes: Scenes) -> None:
    rates, cluttered_rates = reappearances_per_s(scenes), reappearances_per_s(cluttered_scenes)
    print("reappearances per second:", *(f"{rate:.1f}" for rate in rates + cluttered_rates))
    assert np.mean(rates) >= 1.0
    assert min(cluttered_rates) >= 2.0
    for frames in (*scenes[f"{FULL_FPS} fps"], *cluttered_scenes[f"{FULL_FPS} fps"]):
        assert 20 <= np.mean([len(frame.truth_ids) for frame in frames]) <= 40


def test_masks_halve_the_id_switches(found: Found) -> None:
    with_masks, boxes_alone = num_switches(found)
    assert with_masks <= boxes_alone / 2


@pytest.mark.xfail(strict=True, reason="a goal: after an undetected occlusion, only motion recovers an object")
def test_masks_halve_the_id_switches_with_pillars(found_in_clutter: Found) -> None:
    with_masks, boxes_alone = num_switches(found_in_clutter)
    assert with_masks <= boxes_alone / 2


def test_masks_reduce_the_id_switches_with_pillars(found_in_clutter: Found) -> None:
    """Objects occluded for seconds, or by undetected pillars, are recovered by motion only, with and without masks."""
    with_masks, boxes_alone = num_switches(found_in_clutter)
    assert with_masks <= 0.85 * boxes_alone


def test_ids_are_kept_at_a_sixth_of_the_frame_rate(found: Found, found_in_clutter: Found) -> None:
    for figures in (found, found_in_clutter):
        assert figures["5 fps"][0].idf1 >= figures["30 fps"][0].idf1 - 0.05
