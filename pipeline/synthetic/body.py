"""People as articulated bodies: their clothes, their joints and their walk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.camera import Points, Pose
from pipeline.synthetic.draw import Colour, tint

_SKINS: tuple[Colour, ...] = ((226, 184, 158), (205, 158, 128), (168, 118, 88), (118, 80, 60), (88, 60, 48))
_HAIRS: tuple[Colour, ...] = ((34, 27, 24), (62, 44, 32), (96, 68, 44), (150, 118, 76), (120, 116, 112))
_TOPS: tuple[Colour, ...] = (
    (44, 48, 58), (128, 44, 46), (52, 78, 118), (186, 180, 168), (72, 88, 66), (150, 112, 66),
    (96, 98, 104), (178, 138, 62), (64, 106, 112), (208, 204, 200), (94, 56, 84), (36, 52, 84),
)  # fmt: skip
_TROUSERS: tuple[Colour, ...] = ((44, 54, 78), (34, 34, 38), (76, 80, 88), (112, 100, 82), (58, 72, 104), (60, 50, 44))
_SHOES: tuple[Colour, ...] = ((36, 32, 30), (70, 50, 38), (196, 194, 190), (58, 60, 66))

# Amplitude of the swing of the thigh in radians. With it, one gait cycle (two steps) covers _STRIDE_PER_HEIGHT times
# the height of the person.
_HIP_SWING = 0.44
_STRIDE_PER_HEIGHT = 0.84


@dataclass(frozen=True, slots=True)
class Look:
    """Size, colours and clothes of a person.

    `build` scales the width of body and limbs. `backpack` and `helmet` are their colours, None for a person without.
    """

    height_m: float
    build: float
    skin: Colour
    hair: Colour
    top: Colour
    shirt: Colour
    trousers: Colour
    shoes: Colour
    long_hair: bool
    coat: bool
    bare_legs: bool
    backpack: Colour | None
    helmet: Colour | None

    @classmethod
    def random(cls, rng: np.random.Generator, *, helmet: bool = False) -> Look:
        """A person with random properties. With `helmet`, as a cyclist: 70 % wear a helmet, and none wears a coat."""

        def pick(colours: tuple[Colour, ...]) -> Colour:
            return tint(colours[int(rng.integers(len(colours)))], float(rng.uniform(0.88, 1.12)))

        return cls(
            height_m=float(rng.uniform(1.6, 1.88)),
            build=float(rng.uniform(0.94, 1.14)),
            skin=pick(_SKINS),
            hair=pick(_HAIRS),
            top=pick(_TOPS),
            shirt=pick(_TOPS),
            trousers=pick(_TROUSERS),
            shoes=pick(_SHOES),
            long_hair=bool(rng.random() < 0.4),
            coat=bool(rng.random() < 0.3) and not helmet,
            bare_legs=bool(rng.random() < 0.15),
            backpack=pick(_TOPS) if rng.random() < 0.35 else None,
            helmet=(206, 206, 202) if helmet and rng.random() < 0.7 else None,
        )


@dataclass(frozen=True, slots=True)
class Body:
    """The joints of a person as world points in metres: (3,), or (2, 3) for [left, right]."""

    pelvis: Points
    neck: Points
    head: Points
    shoulders: Points
    elbows: Points
    hands: Points
    hips: Points
    knees: Points
    ankles: Points
    toes: Points

    def all_points(self) -> Points:
        """All joints, (N, 3)."""
        single = np.stack([self.pelvis, self.neck, self.head])
        pairs = (self.shoulders, self.elbows, self.hands, self.hips, self.knees, self.ankles, self.toes)
        return np.concatenate([single, *pairs])


def walking_body(look: Look, pose: Pose) -> Body:
    """The joints of a walking person at `pose`.

    The phase of the gait cycle follows from the distance travelled, so that the feet do not slide over the ground.
    """
    height = look.height_m
    phase = 2 * np.pi * pose.travelled_m / (_STRIDE_PER_HEIGHT * height)
    phases = np.array([phase, phase + np.pi])
    hip_angle = _HIP_SWING * np.sin(phases) + 0.06
    # The knee is bent while the leg swings forward.
    knee_flex = 0.10 + 0.95 * np.maximum(np.cos(phases + 0.35), 0.0) ** 2
    shank_angle = hip_angle - knee_flex
    toe_pitch = 0.75 * np.minimum(shank_angle + 0.15, 0.0) + 0.7 * np.maximum(shank_angle - 0.12, 0.0)

    forward, right, up = pose.forward, pose.right, np.array([0.0, 1.0, 0.0])
    side = np.array([-1.0, 1.0])[:, None] * right

    def bone(angle: NDArray[np.float64], length_m: float) -> Points:
        """Vectors (2, 3) of the given length: straight down at angle 0, forward at pi / 2."""
        vector: Points = length_m * (np.sin(angle)[:, None] * forward - np.cos(angle)[:, None] * up)
        return vector

    thigh, shank = bone(hip_angle, 0.245 * height), bone(shank_angle, 0.235 * height)
    foot = bone(np.pi / 2 + toe_pitch, 0.115 * height)
    lowest = np.minimum((thigh + shank)[:, 1], (thigh + shank + foot)[:, 1]).min()
    pelvis = pose.ground + up * (0.035 * height - lowest)
    hips = pelvis + side * 0.047 * height
    knees = hips + thigh
    ankles = knees + shank
    neck = pelvis + 0.315 * height * up + 0.02 * height * forward
    shoulders = neck - 0.036 * height * up + side * 0.104 * height * look.build
    arm_angle = -0.75 * (hip_angle - 0.06) + 0.02
    elbows = shoulders + bone(arm_angle, 0.172 * height) + side * 0.02 * height
    hands = elbows + bone(arm_angle + 0.28 + 0.3 * np.maximum(arm_angle, 0.0), 0.165 * height)
    head = neck + 0.105 * height * up + 0.02 * height * forward
    return Body(pelvis, neck, head, shoulders, elbows, hands, hips, knees, ankles, ankles + foot)
