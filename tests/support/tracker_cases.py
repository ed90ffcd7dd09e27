"""Helpers for tests of the tracker: detections from lists of boxes, and a random crowd."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.contract.arrays import Detections
from pipeline.tracking.tracker import TrackedDetections, TrackerConfig, TrackSpan

CONFIG = TrackerConfig()


def detections(boxes_xyxy: ArrayLike, scores: ArrayLike = 0.9, class_ids: ArrayLike = 1) -> Detections:
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    return Detections(
        boxes_xyxy=boxes,
        scores=np.broadcast_to(np.asarray(scores, np.float32), len(boxes)),
        class_ids=np.broadcast_to(np.asarray(class_ids, np.int32), len(boxes)),
        mask_bits=None,
        rle_counts=None,
        width=1920,
        height=1080,
    )


def brief(spans: list[TrackSpan]) -> list[tuple[int, int, int, int]]:
    """Return ID, class, first and last frame of each track."""
    return [(span.track_id, span.class_id, span.first_seq, span.last_seq) for span in spans]


def moving_box(time_s: float, start_xy: tuple[float, float], velocity_xy: tuple[float, float]) -> NDArray[np.float64]:
    """Return the 60 x 120 px box at `time_s`; start_xy is its top left corner at 0 s in px, velocity_xy in px/s."""
    x, y = np.add(start_xy, np.multiply(velocity_xy, time_s))
    return np.array([x, y, x + 60, y + 120])


def crowd(seed: int, num_objects: int = 25, num_frames: int = 60) -> Iterator[tuple[Detections, int, float]]:
    """Yield (detections, frame_seq, time_s) of each frame: objects of two classes on straight lines, with noise, missed
    detections, low scores and uneven time steps.
    """
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 600, (num_objects, 2))
    velocity = rng.normal(0, 60, (num_objects, 2))
    size = rng.uniform(30, 90, (num_objects, 2))
    class_ids = rng.integers(1, 3, num_objects)
    mean_scores = rng.uniform(0.5, 0.9, num_objects)
    time_s = 0.0
    for frame_seq in range(1, num_frames + 1):
        corner = start + velocity * time_s
        boxes = np.hstack([corner, corner + size]) + rng.normal(0, 1, (num_objects, 4))
        scores = np.clip(mean_scores + rng.normal(0, 0.2, num_objects), 0.0, 1.0)
        order = np.argsort(-scores)
        seen = order[rng.random(num_objects) < 0.9]
        yield (
            detections(boxes[seen], scores[seen], class_ids[seen]),
            frame_seq,
            time_s,
        )
        time_s += rng.uniform(0.02, 0.2)


def assert_equal(first: TrackedDetections, second: TrackedDetections) -> None:
    np.testing.assert_array_equal(first.track_ids, second.track_ids)
    np.testing.assert_array_equal(first.class_ids, second.class_ids)
    np.testing.assert_array_equal(first.ages_frames, second.ages_frames)
    np.testing.assert_array_equal(first.detection_idx, second.detection_idx)
    assert (first.started, first.ended) == (second.started, second.ended)
