"""The pinhole camera of the synthetic street, and the pose of an object in the world.

World coordinates are in metres: X to the right, Y up from the ground, Z away from the camera. The camera is at
(0, EYE_M, 0) and looks along Z. Its image plane is vertical, and the horizon lies above the centre of the picture (a
shifted lens, not a tilted camera): vertical lines of the world are vertical in the picture. Picture coordinates are
continuous pixel coordinates: the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

EYE_M = 2.6
"""height of the camera above the ground"""
FOCAL_PER_HEIGHT = 1.587
"""focal length as a multiple of the picture's height"""
HORIZON_PER_HEIGHT = 0.37
"""distance of the horizon from the top of the picture as a share of the picture's height"""


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with a picture of `width` x `height` pixels."""

    width: int
    height: int

    @property
    def focal_px(self) -> float:
        """Focal length in pixels: the size in pixels of one metre at a distance of one metre."""
        return FOCAL_PER_HEIGHT * self.height

    @property
    def horizon_px(self) -> float:
        """y coordinate of the horizon."""
        return HORIZON_PER_HEIGHT * self.height

    def scale_at(self, z_m: float) -> float:
        """Size in pixels of one metre at the distance `z_m`."""
        return self.focal_px / z_m

    def half_width_at(self, z_m: float) -> float:
        """Half the width of the field of view in metres at the distance `z_m`."""
        return self.width / 2 * z_m / self.focal_px

    def project(self, points_m: Points) -> Points:
        """Project world points (..., 3) with Z > 0 to picture points (..., 2) [x, y]."""
        scale = self.focal_px / points_m[..., 2]
        picture = np.empty((*points_m.shape[:-1], 2))
        picture[..., 0] = self.width / 2 + points_m[..., 0] * scale
        picture[..., 1] = self.horizon_px + (EYE_M - points_m[..., 1]) * scale
        return picture


@dataclass(frozen=True, slots=True)
class Pose:
    """Position and direction of a moving object.

    x_m, z_m       point on the ground
    heading        direction of travel in radians, from X towards Z
    travelled_m    distance travelled since the start of the path
    """

    x_m: float
    z_m: float
    heading: float
    travelled_m: float

    @property
    def forward(self) -> Points:
        """Unit vector (3,) in the direction of travel."""
        return np.array([np.cos(self.heading), 0.0, np.sin(self.heading)])

    @property
    def right(self) -> Points:
        """Unit vector (3,) to the right of the direction of travel."""
        return np.array([np.sin(self.heading), 0.0, -np.cos(self.heading)])

    @property
    def ground(self) -> Points:
        """The point on the ground as a world point (3,)."""
        return np.array([self.x_m, 0.0, self.z_m])
