"""What a moving thing shows of itself: sprites, a cast shadow, the ground it stands on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.camera import Camera, Points, Pose
from pipeline.synthetic.draw import Canvas, Sprite


@dataclass(frozen=True, slots=True)
class Layer:
    """One sprite of a figure: `member` says which of the figure's objects it shows."""

    member: int
    depth_m: float
    sprite: Sprite


class Figure(Protocol):
    """Something that moves through the street: one object, or a rider and a bicycle together."""

    class_ids: tuple[int, ...]

    def layers(self, pose: Pose, camera: Camera, texture: NDArray[np.uint8]) -> list[Layer]:
        """Sprites from far to near; empty outside the picture. `texture` (H, W) uint8 is woven into the surfaces."""

    def shadow(self, pose: Pose, camera: Camera) -> list[Points]:
        """Outlines of the cast shadow, in the picture."""

    def contacts(self, pose: Pose, camera: Camera) -> list[Points]:
        """Outlines of the ground that the figure hides from the sky, in the picture."""


def ground_ellipse(
    centre: Points, along: Points, half_length_m: float, across: Points, half_width_m: float, camera: Camera
) -> Points:
    """Picture of an ellipse on the ground with the given half axes."""
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)[:, None]
    ring = centre * [1.0, 0.0, 1.0] + np.cos(turn) * along * half_length_m + np.sin(turn) * across * half_width_m
    return camera.project(ring)


def cut_texture(texture: NDArray[np.uint8], canvas: Canvas) -> NDArray[np.uint8]:
    """The piece of the texture sheet for a canvas; it is as large as the picture at least."""
    x0, y0, x1, y1 = canvas.box
    return texture[: y1 - y0, : x1 - x0]
