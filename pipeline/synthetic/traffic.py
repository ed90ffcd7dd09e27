"""Plans the traffic: the route, speed and start time of each figure, such that figures do not collide.

The scene has a fixed number of slots for each kind of figure (`num_people` and so on). When the figure of a slot has
left the street, another figure with a new id takes the slot. Traffic keeps to the right.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.synthetic import street_plan as plan
from pipeline.synthetic.camera import Camera, Points, Pose
from pipeline.synthetic.cyclist import Cyclist
from pipeline.synthetic.figure import Figure
from pipeline.synthetic.people import Walker
from pipeline.synthetic.vehicles import Car

MAX_OBJECT_ID = 65535

_MAX_CANDIDATES = 24
_GRID_STEP_S = 0.25
_WANTED_GAP_M = 0.15


class Path:
    """A polyline on the ground with rounded corners, parametrised by the distance from its start in metres.

    `corners` are (x, z) points. `rounding` is the number of iterations of Chaikin's corner cutting.
    """

    def __init__(self, corners: list[tuple[float, float]], rounding: int) -> None:
        points = np.array(corners, np.float64)
        # Chaikin: each iteration replaces a corner by the points at a quarter of its two sides.
        for _ in range(rounding):
            inner = np.empty((2 * (len(points) - 1), 2))
            inner[0::2] = 0.75 * points[:-1] + 0.25 * points[1:]
            inner[1::2] = 0.25 * points[:-1] + 0.75 * points[1:]
            points = np.concatenate([points[:1], inner, points[-1:]])
        steps = np.diff(points, axis=0)
        lengths = np.hypot(steps[:, 0], steps[:, 1])
        self._points = points
        self._at_m = np.concatenate([[0.0], np.cumsum(lengths)])
        self._middle_m = (self._at_m[:-1] + self._at_m[1:]) / 2
        self._headings = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
        self.length_m = float(self._at_m[-1])

    def place(self, at_m: Points) -> tuple[Points, Points, Points]:
        """x, z and heading, (N,) each, at the distances `at_m`, (N,)."""
        x = np.interp(at_m, self._at_m, self._points[:, 0])
        z = np.interp(at_m, self._at_m, self._points[:, 1])
        return x, z, np.interp(at_m, self._middle_m, self._headings)


@dataclass(frozen=True)
class Visit:
    """One figure's passage through the scene. `object_ids` are the ids of the figure's objects."""

    figure: Figure
    path: Path
    speed_m_s: float
    start_s: float
    object_ids: tuple[int, ...]

    @property
    def end_s(self) -> float:
        """Time at which the figure reaches the end of its path."""
        return self.start_s + self.path.length_m / self.speed_m_s

    def pose(self, time_s: float) -> Pose:
        """The figure's pose at a time from `start_s` to `end_s`."""
        at_m = self.speed_m_s * (time_s - self.start_s)
        x, z, heading = self.path.place(np.array([at_m]))
        return Pose(float(x[0]), float(z[0]), float(heading[0]), at_m)


@dataclass(frozen=True)
class _Kind:
    """A kind of figure.

    The ground that a figure occupies is a set of discs: `disc_offsets_m` are their centres along the figure's axis.
    A figure of the first frame has covered a random share of its path, at most `max_first_progress`.
    """

    make: Callable[[np.random.Generator], Figure]
    route: Callable[[np.random.Generator, Camera], Path]
    speed_m_s: tuple[float, float]
    disc_offsets_m: tuple[float, ...]
    disc_radius_m: float
    max_first_progress: float


def _random_direction(corners: list[tuple[float, float]], rng: np.random.Generator) -> list[tuple[float, float]]:
    return corners if rng.random() < 0.5 else corners[::-1]


def _walk(rng: np.random.Generator, camera: Camera) -> Path:
    near_z, far_z = float(rng.uniform(7.0, 8.3)), float(rng.uniform(17.4, 19.4))
    near_edge, far_edge = camera.half_width_at(near_z) + 0.7, camera.half_width_at(far_z) + 0.7
    zebra_x = float(rng.uniform(plan.ZEBRA_X[0] + 0.4, plan.ZEBRA_X[1] - 0.5))
    draw = rng.random()
    if draw < 0.26:
        corners = [(-near_edge, near_z), (near_edge, near_z + float(rng.uniform(-0.3, 0.3)))]
    elif draw < 0.46:
        corners = [(-far_edge, far_z), (far_edge, far_z)]
    elif draw < 0.82:
        side = -1.0 if rng.random() < 0.7 else 1.0
        corners = [(near_edge, near_z), (zebra_x + 0.3, near_z), (zebra_x, far_z), (side * far_edge, far_z)]
    else:
        side, kerb, wall = (-1.0, *_PAVEMENTS[0]) if rng.random() < 0.5 else (1.0, *_PAVEMENTS[1])
        x = float(rng.uniform(min(kerb, wall) + 0.4, max(kerb, wall) - 0.5))
        corners = [(side * far_edge, far_z), (x, far_z), (x, plan.SIDE_END_Z + 2), (9.0, plan.SIDE_END_Z + 2)]
    return Path(_random_direction(corners, rng), 3)


_PAVEMENTS = ((plan.SIDE_KERB_X[0], plan.SIDE_WALL_X[0]), (plan.SIDE_KERB_X[1], plan.SIDE_WALL_X[1]))


def _drive(rng: np.random.Generator, camera: Camera, shift_m: float, margin_m: float, straight: float) -> Path:
    """A random route of a vehicle.

    `shift_m` is the distance from the middle of the lane towards the kerb, `margin_m` the distance from the edge of the
    picture at which the route begins and ends, `straight` the share of routes that stay on the main road.
    """
    near_z, far_z = plan.NEAR_LANE_Z - shift_m, plan.FAR_LANE_Z + shift_m
    near_edge = camera.half_width_at(near_z) + margin_m
    far_edge = camera.half_width_at(far_z) + margin_m
    end = (13.0, plan.SIDE_END_Z + 3)
    away, towards = plan.SIDE_LANE_AWAY_X + shift_m, plan.SIDE_LANE_TOWARDS_X - shift_m
    draw = rng.random()
    if draw < straight:
        if rng.random() < 0.5:
            return Path([(-near_edge, near_z), (near_edge, near_z)], 0)
        return Path([(far_edge, far_z), (-far_edge, far_z)], 0)
    turns = (
        [(far_edge, far_z), (away + 4, far_z), (away, far_z + 4), (away, end[1]), end],
        [(-near_edge, near_z), (away - 6, near_z), (away, near_z + 7), (away, end[1]), end],
        [end, (towards, end[1]), (towards, far_z + 4), (towards - 4, far_z), (-far_edge, far_z)],
        [end, (towards, end[1]), (towards, near_z + 8), (towards + 6, near_z), (near_edge, near_z)],
    )
    return Path(turns[int(rng.integers(len(turns)))], 5)


_KINDS = (
    _Kind(Walker, _walk, (1.15, 1.6), (0.0,), 0.3, 0.8),
    _Kind(Car, lambda rng, camera: _drive(rng, camera, 0.0, 2.8, 0.6), (3.2, 5.2), (-1.4, 0.0, 1.4), 1.1, 0.7),
    _Kind(Cyclist, lambda rng, camera: _drive(rng, camera, 0.9, 1.4, 0.65), (2.6, 3.8), (-0.5, 0.5), 0.45, 0.4),
)  # fmt: skip


class _OccupiedGround:
    """The ground that the planned figures occupy at each step of a time grid."""

    def __init__(self) -> None:
        self._active: list[tuple[int, Points, float]] = []

    @staticmethod
    def trace(path: Path, speed_m_s: float, start_s: float, kind: _Kind) -> tuple[int, Points]:
        """The first step of the time grid on the path, and the centres of the discs, (steps, discs, 2)."""
        first = int(np.ceil(max(start_s, 0.0) / _GRID_STEP_S))
        last = int((start_s + path.length_m / speed_m_s) / _GRID_STEP_S)
        times = np.arange(first, max(last, first) + 1, dtype=np.float64) * _GRID_STEP_S
        x, z, heading = path.place((times - start_s) * speed_m_s)
        along = np.array(kind.disc_offsets_m)
        centres = np.stack(
            [x[:, None] + along * np.cos(heading)[:, None], z[:, None] + along * np.sin(heading)[:, None]], -1
        )
        return first, centres

    def clearance(self, first: int, centres: Points, radius_m: float) -> float:
        """The smallest gap to any planned figure in metres; negative if discs overlap."""
        gap = np.inf
        for other_first, other, other_radius in self._active:
            low, high = max(first, other_first), min(first + len(centres), other_first + len(other))
            if high > low:
                mine, theirs = centres[low - first : high - first], other[low - other_first : high - other_first]
                distance = np.linalg.norm(mine[:, :, None] - theirs[:, None], axis=-1).min()
                gap = min(gap, float(distance) - radius_m - other_radius)
        return gap

    def add(self, first: int, centres: Points, radius_m: float) -> None:
        """Mark the discs as occupied."""
        self._active.append((first, centres, radius_m))

    def forget_before(self, time_s: float) -> None:
        """Remove the figures that have left the street before `time_s`."""
        step = time_s / _GRID_STEP_S
        self._active = [entry for entry in self._active if entry[0] + len(entry[1]) >= step]


@dataclass(frozen=True)
class _Candidate:
    """A possible passage through the street. `gap_m` is its smallest gap to the figures planned before."""

    path: Path
    speed_m_s: float
    start_s: float
    first_step: int
    centres_m: Points
    gap_m: float


def _random_candidate(
    kind: _Kind, free_s: float, camera: Camera, ground: _OccupiedGround, rng: np.random.Generator
) -> _Candidate:
    """A random passage for a slot that is free from `free_s` on.

    At the start of the scene (`free_s` 0) the figure is on its way already.
    """
    path = kind.route(rng, camera)
    speed_m_s = float(rng.uniform(*kind.speed_m_s))
    if free_s == 0.0:
        start_s = -float(rng.uniform(0.0, kind.max_first_progress)) * path.length_m / speed_m_s
    else:
        start_s = free_s + float(rng.uniform(0.1, 1.5))
    first_step, centres_m = ground.trace(path, speed_m_s, start_s, kind)
    gap_m = ground.clearance(first_step, centres_m, kind.disc_radius_m)
    return _Candidate(path, speed_m_s, start_s, first_step, centres_m, gap_m)


def plan_visits(
    camera: Camera, duration_s: float, counts: tuple[int, int, int], rng: np.random.Generator
) -> list[Visit]:
    """Plan the passages of all figures within `duration_s`; `counts` are the slots for people, cars and bicycles.

    Of up to _MAX_CANDIDATES random passages, the first with a gap above _WANTED_GAP_M is taken, or else the one with
    the largest gap. Raises ValueError if the scene needs more than MAX_OBJECT_ID objects.
    """
    kinds = [kind for kind, count in zip(_KINDS, counts, strict=True) for _ in range(count)]
    queue = [(0.0, index) for index in range(len(kinds))]
    ground, visits, next_id = _OccupiedGround(), [], 1
    while queue:
        free_s, index = heapq.heappop(queue)
        if free_s >= duration_s:
            continue
        kind = kinds[index]
        ground.forget_before(free_s)
        candidates = []
        for _ in range(_MAX_CANDIDATES):
            candidates.append(_random_candidate(kind, free_s, camera, ground, rng))
            if candidates[-1].gap_m > _WANTED_GAP_M:
                break
        choice = max(candidates, key=lambda candidate: candidate.gap_m)
        figure = kind.make(rng)
        ids = tuple(range(next_id, next_id + len(figure.class_ids)))
        next_id = ids[-1] + 1
        if ids[-1] > MAX_OBJECT_ID:
            raise ValueError(
                f"a scene has at most {MAX_OBJECT_ID} objects: reduce num_frames, num_people, num_cars or num_bicycles"
            )
        visit = Visit(figure, choice.path, choice.speed_m_s, choice.start_s, ids)
        visits.append(visit)
        ground.add(choice.first_step, choice.centres_m, kind.disc_radius_m)
        heapq.heappush(queue, (max(visit.end_s, 1e-9), index))
    return visits
