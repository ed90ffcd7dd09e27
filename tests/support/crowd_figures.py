"""Moving figures of the crowds of `crossing_crowds`: trajectories over the ground plane and silhouettes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.uint8]

PERSON, CAR = 1, 3

_SHIFT = 4
"""fractional bits of the coordinates that OpenCV draws"""


class SmoothNoise:
    """Smooth noise of unit variance: a sum of four sine waves with periods of 0.4 to 2.5 s."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rates = 2 * np.pi / rng.uniform(0.4, 2.5, 4)
        self._phases = rng.uniform(0, 2 * np.pi, 4)

    def __call__(self, time_s: float) -> float:
        return float(np.sin(self._rates * time_s + self._phases).sum() / np.sqrt(2.0))


class Trajectory:
    """A smooth trajectory over the ground through knots in time, [x to the right, z away from the camera] in metres."""

    def __init__(self, times_s: Floats, knots_m: Floats) -> None:
        self.times_s, self.knots_m = times_s, knots_m
        self._slopes = np.gradient(knots_m, times_s, axis=0)

    def __call__(self, time_s: float) -> tuple[Floats, Floats] | None:
        """Return position and velocity by cubic Hermite interpolation, None outside the knots."""
        if not self.times_s[0] <= time_s < self.times_s[-1]:
            return None
        k = int(np.searchsorted(self.times_s, time_s, "right")) - 1
        span_s = self.times_s[k + 1] - self.times_s[k]
        u = (time_s - self.times_s[k]) / span_s
        points = np.stack((*self.knots_m[k : k + 2], *(span_s * self._slopes[k : k + 2])))
        value = np.array([1 - 3 * u**2 + 2 * u**3, 3 * u**2 - 2 * u**3, u - 2 * u**2 + u**3, u**3 - u**2])
        slope = np.array([6 * u**2 - 6 * u, 6 * u - 6 * u**2, 1 - 4 * u + 3 * u**2, 3 * u**2 - 2 * u]) / span_s
        return value @ points, slope @ points


@dataclass(frozen=True, slots=True)
class Projection:
    """Projection of an object onto the canvas.

    foot_xy    point on the ground in pixels of the canvas
    px_per_m   scale at this distance
    bearing    tangent of the angle between the optical axis and the direction to the object
    velocity   (2,) velocity over the ground in metres per second
    """

    foot_xy: Floats
    px_per_m: float
    bearing: float
    velocity: Floats


class Figure(Protocol):
    """A silhouette. reach_m: its extent to each side of its foot, and its height."""

    class_id: int
    reach_m: tuple[float, float]
    trajectory: Trajectory
    drift: SmoothNoise

    def draw(self, canvas: Mask, projection: Projection, time_s: float) -> None: ...


class Person:
    """A walking person: limbs as thick lines, trunk, head and clothes."""

    class_id = PERSON
    reach_m = (1.0, 2.3)

    def __init__(self, rng: np.random.Generator, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.drift = SmoothNoise(rng)
        self._height = rng.normal(1.71, 0.09)
        self._girth = rng.lognormal(0, 0.15)
        self._coat = rng.random() < 0.35
        self._pack = rng.random() < 0.25
        self._bag = rng.random() < 0.25
        self._arm_swing = rng.uniform(0.1, 0.5)
        self._stride_s, self._phase = rng.uniform(1.0, 1.25), rng.uniform(0, 2 * np.pi)

    def draw(self, canvas: Mask, projection: Projection, time_s: float) -> None:
        foot_xy, px_per_m = projection.foot_xy, projection.px_per_m
        speed = float(np.hypot(*projection.velocity))
        # 1 for a person who walks to the right and is seen from the side
        side = projection.velocity[0] / max(speed, 0.3)
        swing = min(speed / 1.3, 1.2) * np.sin(2 * np.pi * time_s / self._stride_s + self._phase)
        tall, broad = self._height, 0.19 * self._girth * (1.0 - 0.35 * abs(side))

        def at(x: float, y: float) -> Floats:
            return np.array([foot_xy[0] + x * px_per_m, foot_xy[1] - y * tall * px_per_m])

        def limb(points: list[Floats], width_m: float) -> None:
            line = np.round(np.array(points) * 2**_SHIFT).astype(np.int32)
            cv2.polylines(canvas, [line], False, 1, max(1, round(width_m * px_per_m)), cv2.LINE_8, _SHIFT)

        for leg in (1.0, -1.0):
            step, stance = 0.32 * leg * swing * side, 0.09 * leg * (1.0 - abs(side))
            limb([at(stance, 0.5), at(stance + 0.6 * step, 0.27), at(stance + step, 0.03)], 0.15 * self._girth)
            reach = -self._arm_swing * leg * swing * side
            shoulder = leg * broad * (1.0 - 0.8 * abs(side))
            limb([at(shoulder, 0.8), at(shoulder + 0.6 * reach, 0.62), at(shoulder + reach, 0.47)], 0.1 * self._girth)
        hem = 0.25 if self._coat else 0.47
        flare = 1.25 if self._coat else 0.9
        trunk = [at(-broad, 0.82), at(broad, 0.82), at(flare * broad, hem), at(-flare * broad, hem)]
        cv2.fillPoly(canvas, [np.round(np.array(trunk) * 2**_SHIFT).astype(np.int32)], 1, cv2.LINE_8, _SHIFT)
        if self._pack:
            limb([at(-side * (broad + 0.06), 0.76), at(-side * (broad + 0.06), 0.58)], 0.26)
        if self._bag:
            limb([at(broad + 0.08, 0.42), at(broad + 0.08, 0.34)], 0.22)
        limb([at(0.04 * side, 0.9), at(0.04 * side, 0.95)], 0.17)


_BODIES = {
    "saloon": ((0, 0.2), (0, 0.6), (0.17, 0.68), (0.3, 1), (0.68, 1), (0.85, 0.66), (1, 0.6), (1, 0.2)),
    "hatchback": ((0, 0.2), (0, 0.7), (0.08, 1), (0.62, 1), (0.8, 0.66), (1, 0.58), (1, 0.2)),
    "van": ((0, 0.15), (0, 1), (0.78, 1), (0.92, 0.55), (1, 0.5), (1, 0.15)),
    "pick-up": ((0, 0.25), (0, 0.6), (0.38, 0.6), (0.42, 1), (0.68, 1), (0.8, 0.65), (1, 0.6), (1, 0.25)),
}
"""outlines of cars that drive to the right, in units of length and height"""


class Car:
    """A car: a body panel seen from the side and two wheels."""

    class_id = CAR
    reach_m = (3.2, 2.3)

    def __init__(self, rng: np.random.Generator, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.drift = SmoothNoise(rng)
        name = rng.choice(list(_BODIES))
        self._outline = np.array(_BODIES[name])
        self._length = rng.uniform(3.8, 5.2)
        self._height = 2.1 if name == "van" else rng.uniform(1.4, 1.7)

    def draw(self, canvas: Mask, projection: Projection, time_s: float) -> None:
        facing = -1.0 if projection.velocity[0] < 0 else 1.0
        # Away from the middle of the picture, some of the front or the back of a car is visible.
        length = self._length * (1.0 + 0.1 * abs(projection.bearing))
        size = np.array([facing * length, -self._height]) * projection.px_per_m
        corners = projection.foot_xy + (self._outline - [0.5, 0.0]) * size
        cv2.fillPoly(canvas, [np.round(corners * 2**_SHIFT).astype(np.int32)], 1, cv2.LINE_8, _SHIFT)
        for place in (0.2, 0.8):
            hub = projection.foot_xy + np.array([(place - 0.5) * size[0], -0.32 * projection.px_per_m])
            cv2.circle(canvas, np.round(hub).astype(int).tolist(), round(0.32 * projection.px_per_m), 1, cv2.FILLED)
