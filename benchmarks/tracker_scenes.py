"""Crowds for `benchmarks.tracker`: objects that walk, occlude each other, enter and leave, and simulated detections.

Objects stand on a ground plane seen from above: an object with a lower bottom edge is nearer, larger, and occludes the
objects behind it. Each object is an ellipse in its box. An object that leaves the frame is replaced by a new one with
another ID, so the number of objects is constant. Boxes contain the whole object including occluded parts, as in
MOTChallenge; masks contain the visible part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ops.iou import box_iou
from ops.mask_format import MASK_SIDE
from pipeline.evaluation.clear_mot import TrackedFrame, TrackingMetrics, tracking_metrics

FPS = 30.0

_LEAST_VISIBLE = 0.25
"""visible share above which an object counts as ground truth and can be detected"""
_MISSED = 0.03
"""share of the visible objects that are missed"""
_CLUTTER = 0.05
"""false objects for each object; each is detected in the share _FALSE of the frames"""
_FALSE = 0.4
_JITTER = 0.015
"""standard deviation of the edges of a detection, as a share of the height of its box"""
_JUDGED_EVERY = 10
"""accuracy is evaluated on every tenth frame, because for 1000 objects it takes longer than most updates"""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_CENTRES = (np.arange(MASK_SIDE) + 0.5) / MASK_SIDE
_ELLIPSE: Bools = np.add.outer((2 * _CENTRES - 1) ** 2, (2 * _CENTRES - 1) ** 2) < 1


class Boxes(NamedTuple):
    """Boxes of F frames, one frame after the other.

    starts      (F + 1,) int64: first row of each frame, and N
    ids         (N,) int64, 0 for detections
    boxes_xyxy  (N, 4) float64, in pixels
    """

    starts: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes_xyxy: Floats

    def frame(self, index: int) -> tuple[NDArray[np.int64], Floats]:
        """IDs and boxes of one frame."""
        own = slice(*self.starts[index : index + 2])
        return self.ids[own], self.boxes_xyxy[own]

    def first(self, num_frames: int) -> Boxes:
        """The first frames only."""
        end = self.starts[num_frames]
        return Boxes(self.starts[: num_frames + 1], self.ids[:end], self.boxes_xyxy[:end])


class Scene(NamedTuple):
    """A scene.

    truth       visible objects
    detections  by descending score in each frame
    scores      (N,) float32 of the detections
    mask_bits   (N, 98) uint8 of the detections, as `pipeline.contract.arrays.Detections` has them
    """

    truth: Boxes
    detections: Boxes
    scores: NDArray[np.float32]
    mask_bits: NDArray[np.uint8]


class _Crowd:
    """The objects at one time: ids (N,), feet_xy (N, 2) centre of the bottom edge, velocity_xy (N, 2) in pixels/s."""

    def __init__(self, num: int, frame_hw: tuple[int, int], random: np.random.Generator) -> None:
        self._random = random
        self._height, self._width = frame_hw
        self.ids = np.arange(1, num + 1)
        self.feet_xy = np.stack([random.uniform(0.05, 0.95, num) * self._width, self._depths(num)], axis=1)
        self._slimness = random.uniform(0.35, 0.45, num)
        self.velocity_xy = self._velocities(self.feet_xy)
        self._num_ids = num

    def boxes_xyxy(self) -> Floats:
        """(N, 4) boxes."""
        height = self.heights(self.feet_xy[:, 1])
        half = self._slimness * height / 2
        x, bottom = self.feet_xy.T
        return np.stack([x - half, bottom - height, x + half, bottom], axis=1)

    def heights(self, bottom: Floats) -> Floats:
        """Height of each object: 60 pixels at the top edge of the frame, 180 at the bottom edge."""
        return 60 + 120 * bottom / self._height

    def walk(self) -> None:
        """Advance by one frame."""
        turn = self._random.normal(0, 0.2 / np.sqrt(FPS), self.velocity_xy.shape)
        self.velocity_xy += turn * self.heights(self.feet_xy[:, 1])[:, None]
        self.feet_xy += self.velocity_xy / FPS
        boxes = self.boxes_xyxy()
        gone = np.flatnonzero((boxes[:, :2] < 0).any(axis=1) | (boxes[:, 2:] > [self._width, self._height]).any(axis=1))
        num = len(gone)
        self.ids[gone] = self._num_ids + 1 + np.arange(num)
        self._num_ids += num
        bottom = self._depths(num)
        from_left = self._random.random(num) < 0.5
        half = self._slimness[gone] * self.heights(bottom) / 2
        self.feet_xy[gone] = np.stack([np.where(from_left, half, self._width - half), bottom], axis=1)
        velocity = self._velocities(self.feet_xy[gone])
        velocity[:, 0] = np.where(from_left, 1, -1) * np.abs(velocity[:, 0])
        self.velocity_xy[gone] = velocity

    def _depths(self, num: int) -> Floats:
        return self._random.uniform(0.15, 0.99, num) * self._height

    def _velocities(self, feet_xy: Floats) -> Floats:
        """Random velocities: four fifths of the height per second, mostly horizontal."""
        share = self._random.normal(0, [0.8, 0.15], feet_xy.shape)
        return share * self.heights(feet_xy[:, 1])[:, None]


def make_scene(num_objects: int, num_frames: int, frame_hw: tuple[int, int], seed: int = 0) -> Scene:
    """Create a scene; equal arguments give equal scenes."""
    random = np.random.default_rng(seed)
    crowd = _Crowd(num_objects, frame_hw, random)
    clutter_xyxy = _Crowd(round(_CLUTTER * num_objects), frame_hw, random).boxes_xyxy()
    truth: list[tuple[NDArray[np.int64], Floats]] = []
    found: list[tuple[Floats, Floats, Bools]] = []
    for _ in range(num_frames):
        boxes = crowd.boxes_xyxy()
        cells = visible_cells(boxes)
        share = cells.sum(axis=(1, 2)) / _ELLIPSE.sum()
        seen = share >= _LEAST_VISIBLE
        truth.append((crowd.ids[seen], boxes[seen]))
        found.append(_detect(boxes[seen], share[seen], cells[seen], clutter_xyxy, random))
        crowd.walk()
    scores = np.concatenate([scores for _, scores, _ in found]).astype(np.float32)
    cells = np.concatenate([cells for _, _, cells in found])
    detections = [(np.zeros(len(boxes), np.int64), boxes) for boxes, _, _ in found]
    bits = np.packbits(cells.reshape(len(cells), -1), axis=1)
    return Scene(joined(truth), joined(detections), scores, bits)


def visible_cells(boxes_xyxy: Floats) -> Bools:
    """(N, 28, 28) visible masks: the ellipse in each box without the ellipses of objects with a lower bottom edge."""
    x1, y1, x2, y2 = boxes_xyxy.T
    meet = (x1[:, None] < x2) & (x1 < x2[:, None]) & (y1[:, None] < y2) & (y1 < y2[:, None])
    behind, before = np.nonzero(meet & (y2[:, None] < y2))
    corner, side = boxes_xyxy[behind, :2], boxes_xyxy[behind, 2:] - boxes_xyxy[behind, :2]
    points_xy = corner[:, None] + _CENTRES[:, None] * side[:, None]
    half = (boxes_xyxy[before, 2:] - boxes_xyxy[before, :2])[:, None] / 2
    off = ((points_xy - boxes_xyxy[before, :2][:, None] - half) / half) ** 2
    covered = off[:, :, 1][:, :, None] + off[:, :, 0][:, None] < 1
    hidden = np.zeros((len(boxes_xyxy), MASK_SIDE, MASK_SIDE), np.bool_)
    hidden_ones, first = np.unique(behind, return_index=True)
    if len(first):
        hidden[hidden_ones] = np.logical_or.reduceat(covered, first)
    return _ELLIPSE & ~hidden


def joined(frames: list[tuple[NDArray[np.int64], Floats]]) -> Boxes:
    """Concatenate the IDs and boxes of all frames."""
    starts = np.cumsum([0, *(len(ids) for ids, _ in frames)])
    return Boxes(starts, np.concatenate([ids for ids, _ in frames]), np.concatenate([boxes for _, boxes in frames]))


def save_detections(
    path: Path, detections: Boxes, scores: NDArray[np.float32], mask_bits: NDArray[np.uint8] | None = None
) -> None:
    """Write the scene in the format of `benchmarks/tracker_child.py`."""
    masks: dict[str, Any] = {} if mask_bits is None else {"mask_bits": mask_bits}
    boxes_xyxy = detections.boxes_xyxy.astype(np.float32)
    np.savez(path, starts=detections.starts, boxes_xyxy=boxes_xyxy, scores=scores, **masks)


def load_tracks(path: Path) -> Boxes:
    """Read the tracks that `benchmarks/tracker_child.py` wrote."""
    with np.load(path) as content:
        return Boxes(content["starts"], content["ids"], content["boxes_xyxy"])


def judge(truth: Boxes, found: Boxes) -> TrackingMetrics:
    """MOTA and IDF1 by box IoU over every tenth frame."""
    frames = []
    for index in range(0, len(found.starts) - 1, _JUDGED_EVERY):
        truth_ids, truth_xyxy = truth.frame(index)
        track_ids, tracks_xyxy = found.frame(index)
        frames.append(TrackedFrame(truth_ids, track_ids, box_iou(truth_xyxy, tracks_xyxy)))
    return tracking_metrics(frames)


def _detect(
    boxes_xyxy: Floats, share: Floats, cells: Bools, clutter_xyxy: Floats, random: np.random.Generator
) -> tuple[Floats, Floats, Bools]:
    """Boxes, scores and mask cells by descending score; the score falls with the visible share of the object."""
    found = random.random(len(share)) >= _MISSED
    false_xyxy = clutter_xyxy[random.random(len(clutter_xyxy)) < _FALSE]
    exact = np.concatenate([boxes_xyxy[found], false_xyxy])
    boxes = exact + random.normal(0, _JITTER, exact.shape) * (exact[:, 3] - exact[:, 1])[:, None]
    true_scores = 1 - 0.7 * (1 - share[found]) - np.abs(random.normal(0, 0.08, found.sum()))
    scores = np.concatenate([np.clip(true_scores, 0.05, 1), random.uniform(0.1, 0.7, len(false_xyxy))])
    false_cells = np.broadcast_to(_ELLIPSE, (len(false_xyxy), MASK_SIDE, MASK_SIDE))
    cells = np.concatenate([cells[found], false_cells])
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order], cells[order]
