"""The interface of a moving figure: its sprites, its cast shadow and its contact with the ground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.camera import Camera, Points, Pose
from pipeline.synthetic.draw import Canvas, Sprite


@dataclass(frozen=True, slots=True)
class Layer:
    """One sprite of a figure at a distance of `depth_m`. `member` is the index of the object in `Figure.class_ids`."""

    member: int
    depth_m: float
    sprite: Sprite


class Figure(Protocol):
    """A moving figure of one object, or of several that move together (a bicycle and its rider)."""

    class_ids: tuple[int, ...]
    """COCO category of each object of the figure"""

    def layers(self, pose: Pose, camera: Camera, texture: NDArray[np.uint8]) -> list[Layer]:
        """The sprites from far to near; empty if the figure is outside the picture.

        `texture` is (H, W) uint8 with 128 as neutral, at least as large as the picture: noise of the surfaces.
        """

    def shadow(self, pose: Pose, camera: Camera) -> list[Points]:
        """Outlines of the cast shadow, (N, 2) picture points each."""

    def contacts(self, pose: Pose, camera: Camera) -> list[Points]:
        """Outlines of the ground directly below the figure, which gets no skylight; (N, 2) picture points each."""


def ground_ellipse(
    centre: Points, along: Points, half_length_m: float, across: Points, half_width_m: float, camera: Camera
) -> Points:
    """Outline in the picture, (16, 2), of an ellipse on the ground.

    `along` and `across` are the unit vectors (3,) of its axes.
    """
    turn = np.linspace(0, 2 * np.pi, 16, endpoint=False)[:, None]
    ring = centre * [1.0, 0.0, 1.0] + np.cos(turn) * along * half_length_m + np.sin(turn) * across * half_width_m
    return camera.project(ring)


def crop_texture(texture: NDArray[np.uint8], canvas: Canvas) -> NDArray[np.uint8]:
    """The part of the texture, which is at least as large as the picture, in the size of the canvas."""
    x0, y0, x1, y1 = canvas.box
    return texture[: y1 - y0, : x1 - x0]
