"""The pinhole camera of the synthetic street and the plan of the street it looks at.

World coordinates are metres: X to the right, Y up from the ground, Z away from the camera, which stands at
(0, EYE_M, 0) and looks along Z. The picture plane is upright (a shifted lens instead of a tilt), so upright things
stay upright. Picture coordinates are pixels with continuous edges: the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

EYE_M = 2.6
FOCAL_PER_HEIGHT = 1.587
HORIZON_PER_HEIGHT = 0.37

# Light comes from the upper left, a little from behind the camera: shadows fall to the right and away.
LIGHT = np.array([-0.55, 0.75, -0.37])

NEAR_KERB_Z = 8.8
FAR_KERB_Z = 16.6
FACADE_Z = 20.4
ROAD_MIDDLE_Z = (NEAR_KERB_Z + FAR_KERB_Z) / 2
NEAR_LANE_Z = 10.7
FAR_LANE_Z = 14.7

# The side street leads away from the main road and ends at another street.
SIDE_KERB_X = (-5.6, 0.6)
SIDE_WALL_X = (-7.6, 2.6)
SIDE_LANE_AWAY_X = -0.9
SIDE_LANE_TOWARDS_X = -4.1
SIDE_END_Z = 46.0

ZEBRA_X = (2.1, 5.1)


@dataclass(frozen=True)
class Camera:
    """Projects world points into a picture of `width` x `height` pixels."""

    width: int
    height: int

    @property
    def focal_px(self) -> float:
        """Pixels per metre at a distance of one metre."""
        return FOCAL_PER_HEIGHT * self.height

    @property
    def horizon_px(self) -> float:
        """Row of the horizon."""
        return HORIZON_PER_HEIGHT * self.height

    def scale_at(self, z_m: float) -> float:
        """Pixels per metre at the distance `z_m`."""
        return self.focal_px / z_m

    def half_width_at(self, z_m: float) -> float:
        """Metres from the middle of the picture to its edge at the distance `z_m`."""
        return self.width / 2 * z_m / self.focal_px

    def project(self, points_m: Points) -> Points:
        """(..., 3) world points with Z > 0 to (..., 2) picture points [x, y]."""
        scale = self.focal_px / points_m[..., 2]
        picture = np.empty((*points_m.shape[:-1], 2))
        picture[..., 0] = self.width / 2 + points_m[..., 0] * scale
        picture[..., 1] = self.horizon_px + (EYE_M - points_m[..., 1]) * scale
        return picture


@dataclass(frozen=True, slots=True)
class Pose:
    """Where an object stands: ground point, direction of travel (radians from X towards Z), metres covered so far."""

    x_m: float
    z_m: float
    heading: float
    travelled_m: float

    @property
    def forward(self) -> Points:
        """Unit vector (3,) of travel."""
        return np.array([np.cos(self.heading), 0.0, np.sin(self.heading)])

    @property
    def right(self) -> Points:
        """Unit vector (3,) to the right of travel."""
        return np.array([np.sin(self.heading), 0.0, -np.cos(self.heading)])

    @property
    def ground(self) -> Points:
        """(3,) world point."""
        return np.array([self.x_m, 0.0, self.z_m])
