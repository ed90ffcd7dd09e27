"""Simulated crowds that cross and occlude each other, with ground truth and the detections of a simulated model.

The scene. A street seen from 6 m above it, on frames of 1920 x 1080: people on a near and a far pavement and some
across the road, and cars on two lanes of opposite direction. People walk at 0.8 to 1.7 m/s, turn every 2 s and stop
now and then; a third of them have a companion about a metre away. Cars drive at 5 to 11 m/s and change their speed.
Optionally there are parked cars, which occlude people for seconds, and pillars (lamp posts, columns, trunks: 0.3 to
0.7 m wide), which are not detected and occlude people for some tenths of a second.
All objects stand on a ground plane, so sizes and overlaps follow from the distance, and nearer objects occlude farther
ones. The seed determines the silhouettes of limbs or of a body panel. Limbs swing with the steps; a body is wide from
the front and narrow from the side.

The camera. Every quantity is a function of the seed and of the time alone, so any sequence of times may be sampled, and
frames of the same time are equal in all sequences.

The detector. It detects the visible part of an object. The box is tight around the visible pixels; Gaussian noise
moves each edge, with a standard deviation of 2 % of the side (5 % if the object is almost completely occluded), which
gives an IoU of about 0.93 with the ground truth. The mask has 28 x 28 cells of that box and errors in patches of its
outline, which gives a mask IoU of about 0.83. The score is 0.93, less a loss by occlusion, plus noise that is
correlated over some tenths of a second, as for a network on video. An object is not detected if less than a quarter of
it is visible, if its score is below 0.1, if NMS suppresses it (box IoU above 0.5 within a class, as in Mask R-CNN), or
at random (2 %). One detection in fifty is a false positive: at a few fixed places of the background from time to time,
and at random places.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from support.crowd_figures import PERSON, Car, Figure, Floats, Mask, Person, Projection, SmoothNoise, Trajectory

from ops.iou import box_iou
from ops.mask_format import MASK_SIDE
from pipeline.contract.arrays import Detections

FRAME_WH = (1920, 1080)
CANVAS_SCALE = 0.5
CANVAS_WH = (960, 540)
FOCAL_PX = 1200.0
HORIZON_PX = 150.0
CAMERA_HEIGHT_M = 6.0

LENGTH_S = 15.0
"""length of a scene"""
NUM_PEOPLE, NUM_CARS = 36, 8
COMPANION_RATE = 0.2
"""probability that a person has a companion; at one fifth, a third of the people walk in pairs"""

MIN_VISIBLE = 0.25
"""visible share below which an object is neither ground truth nor detected"""
EDGE_NOISE, HIDDEN_EDGE_NOISE = 0.02, 0.03
"""standard deviation of an edge as a share of the side, and its increase at full occlusion"""
BEST_SCORE, HIDDEN_SCORE_LOSS, SCORE_NOISE = 0.93, 0.7, 0.08
MISS_RATE, MIN_SCORE, NMS_IOU = 0.02, 0.1, 0.5
FALSE_PER_FRAME, NUM_GHOSTS, GHOST_LEVEL = 0.3, 3, 1.2
"""false positives at random places; number of fixed places with false positives while their noise exceeds the level"""
OUTLINE_BLUR, OUTLINE_NOISE, OUTLINE_PATCH = 0.8, 0.25, 1.5
"""blur of a mask's outline in cells; standard deviation of the noise on its coverage; size of a patch in cells"""

_NOBODY, _PILLAR = 0, 255


@dataclass(frozen=True, slots=True)
class CrowdFrame:
    """The N detections on a picture and the T objects of the ground truth, of which at least a quarter is visible.

    truth_ids          (T,) int64
    truth_class_ids    (T,) int32
    truth_boxes_xyxy   (T, 4) float64, boxes of the visible parts in pixels of the frame
    mask_ious          (T, N) float64, IoU of the visible pixels of each object with each mask; 0 between classes
    """

    detections: Detections
    frame_seq: int
    time_s: float
    truth_ids: NDArray[np.int64]
    truth_class_ids: NDArray[np.int32]
    truth_boxes_xyxy: Floats
    mask_ious: Floats


@dataclass(slots=True)
class _Drawn:
    """A silhouette on the canvas: its position, and its number of pixels in total, inside the frame, and visible."""

    owner: int
    class_id: int
    window: tuple[slice, slice]
    silhouette_px: int
    inside_px: int
    visible_px: int = 0


@dataclass(frozen=True, slots=True)
class _Detection:
    box_xyxy: Floats
    score: float
    class_id: int
    cells: Mask


def _half_width_m(z_m: float) -> float:
    """Return half the width of the ground in the frame at a distance, plus a margin of one metre."""
    return FRAME_WH[0] / 2 / FOCAL_PX * z_m + 1.0


def _project(place_m: Floats, velocity: Floats) -> Projection:
    """Project a point of the ground onto the canvas by the perspective of a camera above the origin."""
    x, z = place_m.tolist()
    foot_xy = np.array([FRAME_WH[0] / 2 + FOCAL_PX * x / z, HORIZON_PX + FOCAL_PX * CAMERA_HEIGHT_M / z])
    return Projection(foot_xy * CANVAS_SCALE, FOCAL_PX / z * CANVAS_SCALE, x / z, velocity)


def _person_trajectory(rng: np.random.Generator) -> Trajectory:
    """Return a random trajectory along one of the pavements or across the road."""
    speed = rng.uniform(0.8, 1.7)
    z = rng.uniform(9.0, 13.0) if rng.random() < 0.5 else rng.uniform(18.0, 25.0)
    if rng.random() < 0.25:
        angle = np.pi / 2 * (1 if z < 15 else -1) + rng.normal(0, 0.4)
        place = np.array([rng.uniform(-0.8, 0.8) * _half_width_m(z), z])
    else:
        angle = rng.normal(0, 0.15) + (np.pi if rng.random() < 0.5 else 0.0)
        place = np.array([-np.sign(np.cos(angle)) * _half_width_m(z), z])
    knots = [place]
    for _ in range(19):
        pace = 0.15 if rng.random() < 0.08 else rng.lognormal(0, 0.15)
        turn = angle + rng.normal(0, 0.35)
        place = place + 2.0 * pace * speed * np.array([np.cos(turn), np.sin(turn)])
        place[1] = np.clip(place[1], 8.5, 27.0)
        knots.append(place)
    return Trajectory(rng.uniform(-20.0, LENGTH_S - 3.0) + 2.0 * np.arange(20), np.array(knots))


def _companion(rng: np.random.Generator, trajectory: Trajectory) -> Trajectory:
    """Return a trajectory about a metre from that of the leader, in any direction, with a small delay."""
    angle = rng.uniform(0, 2 * np.pi)
    offset = rng.uniform(0.8, 1.3) * np.array([np.cos(angle), np.sin(angle)])
    return Trajectory(trajectory.times_s, trajectory.knots_m + offset + rng.normal(0, 0.12, trajectory.knots_m.shape))


def _lane(rng: np.random.Generator, num_cars: int, z_m: float, direction: int) -> list[Trajectory]:
    """Return cars that drive with the same speed profile, 2 to 4 s apart."""
    times_s = np.arange(-20.0, LENGTH_S + 20.0, 2.5)
    path = np.cumsum(2.5 * rng.uniform(5.0, 11.0) * rng.lognormal(0, 0.2, len(times_s)))
    reach = _half_width_m(z_m) + 2.0
    trajectories = []
    for start_s in rng.uniform(-6.0, -2.0) + np.cumsum(rng.uniform(2.0, 4.0, num_cars)):
        x = direction * (path - np.interp(start_s, times_s, path) - reach)
        trajectories.append(Trajectory(times_s, np.stack([x, np.full_like(x, z_m)], axis=1)))
    return trajectories


class CrossingCrowd:
    """One scene, determined by its seed and its static objects."""

    def __init__(self, seed: int, num_parked: int = 0, num_pillars: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._seed = seed
        trajectories: list[Trajectory] = []
        while len(trajectories) < NUM_PEOPLE:
            trajectories.append(_person_trajectory(rng))
            if rng.random() < COMPANION_RATE:
                trajectories.append(_companion(rng, trajectories[-1]))
        cars = _lane(rng, NUM_CARS // 2, 14.5, 1) + _lane(rng, NUM_CARS // 2, 16.5, -1)
        for x in rng.uniform(-8.0, 8.0, num_parked):
            cars.append(Trajectory(np.array([-1.0, LENGTH_S + 1.0]), np.array([[x, 13.0]] * 2)))
        self._figures: list[Figure] = [
            *(Person(rng, trajectory) for trajectory in trajectories),
            *(Car(rng, trajectory) for trajectory in cars),
        ]
        self._pillars = [
            (np.array([rng.uniform(-0.7, 0.7) * _half_width_m(z), z]), rng.uniform(0.3, 0.7))
            for z in rng.uniform(8.6, 12.0, num_pillars)
        ]
        self._ghosts = [(SmoothNoise(rng), _somewhere(rng)) for _ in range(NUM_GHOSTS)]

    def frames(self, times_s: Iterable[float]) -> list[CrowdFrame]:
        """Return the frames at these ascending times, in seconds from 0 to LENGTH_S, numbered from 1."""
        return [self._frame(frame_seq, time_s) for frame_seq, time_s in enumerate(times_s, 1)]

    def _frame(self, frame_seq: int, time_s: float) -> CrowdFrame:
        # The noise depends on the time only, so that frames of the same time are equal at every frame rate.
        rng = np.random.default_rng([self._seed, round(time_s * 1e6)])
        owners, drawn = self._paint(time_s)
        truth, truth_boxes, detected = [], [], []
        for item in drawn:
            # Drawn before the condition, so that the visibility of one object does not change the noise of the others.
            noise, outline, luck = rng.normal(size=5), rng.normal(size=(MASK_SIDE, MASK_SIDE)), rng.random()
            if item.visible_px < MIN_VISIBLE * item.silhouette_px:
                continue
            seen = owners[item.window] == item.owner
            rows, cols = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
            corner = [item.window[1].start, item.window[0].start] * 2
            box = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]) + corner
            truth.append(item)
            truth_boxes.append(box / CANVAS_SCALE)
            hidden = 1.0 - item.visible_px / item.inside_px
            drift = 0.7 * self._figures[item.owner - 1].drift(time_s) + 0.7 * noise[0]
            score = BEST_SCORE - HIDDEN_SCORE_LOSS * hidden + SCORE_NOISE * drift
            if score < MIN_SCORE or luck < MISS_RATE:
                continue
            deviation = (EDGE_NOISE + HIDDEN_EDGE_NOISE * hidden) * (box[[2, 3, 2, 3]] - box[[0, 1, 0, 1]])
            found = np.clip(box + deviation * noise[1:], 0, CANVAS_WH * 2)
            cells = _blurred(_sampled(owners, item.owner, found), outline)
            detected.append(_Detection(found, min(score, 0.999), item.class_id, cells))
        detected += self._false_positives(rng, time_s)
        kept = _suppressed(detected)
        boxes = np.array([detection.box_xyxy for detection in kept]).reshape(-1, 4) / CANVAS_SCALE
        cells = np.array([detection.cells for detection in kept], np.uint8).reshape(-1, MASK_SIDE * MASK_SIDE)
        return CrowdFrame(
            detections=Detections(
                boxes_xyxy=boxes.astype(np.float32),
                scores=np.array([detection.score for detection in kept], np.float32),
                class_ids=np.array([detection.class_id for detection in kept], np.int32),
                mask_bits=np.packbits(cells, axis=1),
                rle_counts=None,
                width=FRAME_WH[0],
                height=FRAME_WH[1],
            ),
            frame_seq=frame_seq,
            time_s=time_s,
            truth_ids=np.array([item.owner for item in truth], np.int64),
            truth_class_ids=np.array([item.class_id for item in truth], np.int32),
            truth_boxes_xyxy=np.array(truth_boxes, np.float64).reshape(-1, 4),
            mask_ious=_mask_ious(owners, truth, kept),
        )

    def _paint(self, time_s: float) -> tuple[Mask, list[_Drawn]]:
        """Return the owner of each pixel, (540, 960) uint8 with figures from 1, and the figures inside the frame."""
        present = []
        for owner, figure in enumerate(self._figures, 1):
            moment = figure.trajectory(time_s)
            if moment is not None:
                present.append((moment[0][1], owner, moment))
        pillars = [(place_m[1], _PILLAR, (place_m, width_m)) for place_m, width_m in self._pillars]
        owners = np.full(CANVAS_WH[::-1], _NOBODY, np.uint8)
        drawn = []
        for _, owner, (place_m, motion) in sorted(present + pillars, key=lambda item: -item[0]):
            if owner == _PILLAR:
                projection = _project(place_m, np.zeros(2))
                x, y, half = *projection.foot_xy, motion / 2 * projection.px_per_m
                top = max(0, round(y - 4 * projection.px_per_m))
                owners[top : round(y), round(x - half) : round(x + half)] = _PILLAR
                continue
            item = _draw(owners, owner, self._figures[owner - 1], _project(place_m, motion), time_s)
            if item is not None:
                drawn.append(item)
        for item in drawn:
            item.visible_px = int(np.count_nonzero(owners[item.window] == item.owner))
        return owners, sorted(drawn, key=lambda item: item.owner)

    def _false_positives(self, rng: np.random.Generator, time_s: float) -> list[_Detection]:
        boxes = [box for wandering, box in self._ghosts if wandering(time_s) > GHOST_LEVEL]
        boxes = [box + 0.05 * rng.normal(size=4) * (box[3] - box[1]) for box in boxes]
        boxes += [_somewhere(rng) for _ in range(rng.poisson(FALSE_PER_FRAME))]
        boxes = [np.clip(box, 0, CANVAS_WH * 2) for box in boxes]
        blob = cv2.ellipse(np.zeros((MASK_SIDE, MASK_SIDE), np.uint8), (14, 14), (9, 13), 0, 0, 360, 1, cv2.FILLED)
        return [_Detection(box, rng.uniform(0.15, 0.65), PERSON, blob) for box in boxes]


def _somewhere(rng: np.random.Generator) -> Floats:
    """Return a box of the size of a person at a random place of the canvas."""
    height = rng.uniform(40, 110)
    x, y = rng.uniform(0, CANVAS_WH[0] - height), rng.uniform(100, CANVAS_WH[1] - height)
    return np.array([x, y, x + 0.4 * height, y + height])


def _draw(owners: Mask, owner: int, figure: Figure, projection: Projection, time_s: float) -> _Drawn | None:
    """Draw the silhouette over the canvas. Return None if no part of it lies in the frame."""
    reach, height = (np.array(figure.reach_m) * projection.px_per_m).astype(int) + 2
    left, top = int(projection.foot_xy[0]) - reach, int(projection.foot_xy[1]) - height
    patch = np.zeros((height + 4, 2 * reach), np.uint8)
    moved = Projection(projection.foot_xy - [left, top], projection.px_per_m, projection.bearing, projection.velocity)
    figure.draw(patch, moved, time_s)
    rows = slice(max(top, 0), min(top + patch.shape[0], CANVAS_WH[1]))
    cols = slice(max(left, 0), min(left + patch.shape[1], CANVAS_WH[0]))
    if rows.start >= rows.stop or cols.start >= cols.stop:
        return None
    inside = patch[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
    owners[rows, cols][inside > 0] = owner
    num_inside = int(np.count_nonzero(inside))
    if num_inside == 0:
        return None
    return _Drawn(owner, figure.class_id, (rows, cols), int(np.count_nonzero(patch)), num_inside)


def _sampled(owners: Mask, owner: int, box_xyxy: Floats) -> NDArray[np.float32]:
    """Return the (28, 28) coverage of the box by the owner's visible pixels, from 2 x 2 samples per cell."""
    steps = (np.arange(2 * MASK_SIDE) + 0.5) / (2 * MASK_SIDE)
    cols = (box_xyxy[0] + steps * (box_xyxy[2] - box_xyxy[0])).astype(int)
    rows = (box_xyxy[1] + steps * (box_xyxy[3] - box_xyxy[1])).astype(int)
    covered = (owners[rows[:, None], cols] == owner).astype(np.float32)
    return cv2.resize(covered, (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_AREA)


def _blurred(coverage: NDArray[np.float32], noise: Floats) -> Mask:
    """Return mask cells as after the threshold of a network, with a blurred outline and errors in patches."""
    # A Gaussian filter multiplies the standard deviation of white noise by 1 / (2 sqrt(pi) sigma).
    strength = OUTLINE_NOISE * 2 * np.sqrt(np.pi) * OUTLINE_PATCH
    patches = strength * cv2.GaussianBlur(noise, (0, 0), OUTLINE_PATCH)
    soft = cv2.GaussianBlur(coverage, (0, 0), OUTLINE_BLUR) + patches
    return (soft > 0.5).astype(np.uint8)


def _suppressed(detected: list[_Detection]) -> list[_Detection]:
    """Apply NMS within each class and return the remaining detections by descending score."""
    ranked = sorted(detected, key=lambda detection: -detection.score)
    boxes = np.array([detection.box_xyxy for detection in ranked]).reshape(-1, 4)
    class_ids = np.array([detection.class_id for detection in ranked])
    overlaps = (box_iou(boxes, boxes) > NMS_IOU) & (class_ids[:, None] == class_ids)
    kept: list[int] = []
    for place in range(len(ranked)):
        if not overlaps[place, kept].any():
            kept.append(place)
    return [ranked[place] for place in kept]


def _mask_ious(owners: Mask, truth: list[_Drawn], detected: list[_Detection]) -> Floats:
    """Return the IoU of each object with each mask, drawn on the canvas, by counting the owners of its pixels."""
    ious = np.zeros((len(truth), len(detected)))
    ids = np.array([item.owner for item in truth], np.int64)
    visible_px = np.array([item.visible_px for item in truth])
    class_ids = np.array([item.class_id for item in truth])
    for place, detection in enumerate(detected):
        left, top, right, bottom = np.round(detection.box_xyxy).astype(int).tolist()
        if right <= left or bottom <= top:
            continue
        inside = cv2.resize(detection.cells, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST_EXACT)
        under = owners[top:bottom, left:right] * inside  # background pixels outside the mask
        shared = np.bincount(under.ravel(), minlength=_PILLAR + 1)[ids]
        union = np.count_nonzero(inside) + visible_px - shared
        ious[:, place] = np.where(class_ids == detection.class_id, shared / union, 0.0)
    return ious
