"""Draws cars as solids, from any direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.camera import EYE_M, Camera, Points, Pose
from pipeline.synthetic.draw import Canvas, Colour, mix, open_canvas, tint
from pipeline.synthetic.figure import Layer, crop_texture
from pipeline.synthetic.street_plan import LIGHT

_PAINTS: tuple[Colour, ...] = (
    (196, 198, 202), (58, 62, 68), (146, 34, 32), (38, 66, 116), (226, 226, 224), (104, 110, 116),
    (30, 32, 36), (64, 92, 84), (168, 154, 126), (92, 34, 44), (84, 122, 158),
)  # fmt: skip
_GLASS: Colour = (34, 42, 48)
_SKY_IN_GLASS: Colour = (122, 140, 152)
_TYRE: Colour = (26, 26, 28)
_TRIM: Colour = (30, 31, 33)

_TURN = np.linspace(0, 2 * np.pi, 22, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], -1)


@dataclass(frozen=True, slots=True)
class Shape:
    """Side view of a car. Points are (u forward, z up) in metres, relative to the ground below the car's centre.

    hull       outline from the rear sill over the roof to the front sill
    belt       indices of the points of `hull` at which the glass begins: rear window and windscreen. The cabin, above
               the waist line, lies between them
    windows    outlines of the side windows
    axles      u coordinates of the axles
    wheel_m    radius of the wheels
    width_m    overall width
    """

    hull: tuple[tuple[float, float], ...]
    belt: tuple[int, int]
    windows: tuple[tuple[tuple[float, float], ...], ...]
    axles: tuple[float, float]
    wheel_m: float
    width_m: float


_SHAPES = (
    Shape(  # hatchback
        hull=((-1.98, 0.22), (-2.02, 0.45), (-2.02, 0.72), (-1.95, 0.98), (-1.72, 1.34), (-1.5, 1.44), (-0.8, 1.49),
              (0.05, 1.47), (0.42, 1.36), (1.08, 0.96), (1.6, 0.87), (1.9, 0.74), (2.02, 0.55), (2.0, 0.22)),
        belt=(3, 9),
        windows=(((-1.66, 1.03), (-1.5, 1.3), (-1.28, 1.37), (-1.1, 1.37), (-1.1, 1.0)),
                 ((-1.03, 1.0), (-1.03, 1.38), (-0.18, 1.39), (-0.1, 0.98)),
                 ((-0.03, 0.98), (-0.1, 1.39), (0.18, 1.34), (0.36, 1.26), (0.8, 0.98))),
        axles=(-1.26, 1.25), wheel_m=0.32, width_m=1.76,
    ),
    Shape(  # saloon
        hull=((-2.26, 0.22), (-2.3, 0.45), (-2.28, 0.75), (-2.2, 0.98), (-1.62, 1.03), (-1.05, 1.36), (-0.75, 1.43),
              (-0.15, 1.45), (0.3, 1.4), (1.02, 0.97), (1.7, 0.88), (2.1, 0.74), (2.24, 0.55), (2.22, 0.22)),
        belt=(4, 9),
        windows=(((-1.42, 1.04), (-1.02, 1.29), (-0.78, 1.35), (-0.74, 1.02)),
                 ((-0.66, 1.02), (-0.68, 1.36), (-0.06, 1.37), (0.02, 0.99)),
                 ((0.08, 0.99), (0.02, 1.36), (0.24, 1.32), (0.76, 0.99))),
        axles=(-1.36, 1.38), wheel_m=0.33, width_m=1.82,
    ),
    Shape(  # estate
        hull=((-2.2, 0.24), (-2.25, 0.48), (-2.24, 0.76), (-2.17, 1.0), (-1.94, 1.38), (-1.7, 1.47), (-0.9, 1.53),
              (0.05, 1.51), (0.42, 1.42), (1.08, 1.0), (1.68, 0.92), (2.06, 0.78), (2.2, 0.56), (2.18, 0.24)),
        belt=(3, 9),
        windows=(((-1.92, 1.06), (-1.76, 1.32), (-1.6, 1.4), (-1.02, 1.41), (-1.02, 1.04)),
                 ((-0.94, 1.04), (-0.94, 1.42), (-0.14, 1.43), (-0.06, 1.02)),
                 ((0.0, 1.02), (-0.06, 1.43), (0.2, 1.4), (0.4, 1.3), (0.84, 1.02))),
        axles=(-1.36, 1.36), wheel_m=0.33, width_m=1.82,
    ),
    Shape(  # sport utility
        hull=((-2.1, 0.3), (-2.16, 0.55), (-2.15, 0.85), (-2.08, 1.12), (-1.9, 1.5), (-1.66, 1.62), (-0.8, 1.67),
              (0.1, 1.64), (0.45, 1.54), (1.02, 1.12), (1.68, 1.04), (2.02, 0.9), (2.14, 0.62), (2.12, 0.3)),
        belt=(3, 9),
        windows=(((-1.8, 1.18), (-1.64, 1.46), (-1.44, 1.53), (-1.06, 1.54), (-1.06, 1.15)),
                 ((-0.98, 1.15), (-0.98, 1.55), (-0.12, 1.56), (-0.04, 1.13)),
                 ((0.02, 1.13), (-0.04, 1.56), (0.22, 1.52), (0.42, 1.43), (0.82, 1.13))),
        axles=(-1.28, 1.3), wheel_m=0.36, width_m=1.88,
    ),
)  # fmt: skip


class Car:
    """A car with a random body style and paint."""

    class_ids: tuple[int, ...] = (3,)

    def __init__(self, rng: np.random.Generator) -> None:
        self._shape = _SHAPES[int(rng.integers(len(_SHAPES)))]
        self._paint = tint(_PAINTS[int(rng.integers(len(_PAINTS)))], float(rng.uniform(0.92, 1.08)))
        self._hull = np.array(self._shape.hull)

    def _half_width(self, profile: Points) -> Points:
        """Half the car's width, (N,), at points (N, 2) of the side view.

        The cabin becomes narrower towards the roof, and the body towards its front and rear end.
        """
        top = self._hull[:, 1].max()
        waist = self._hull[self._shape.belt[1], 1]
        length = self._hull[:, 0].max()
        u, z = profile[:, 0], profile[:, 1]
        lean = 1 - 0.22 * np.clip((z - waist) / (top - waist), 0, 1) - 0.05 * np.clip((0.5 - z) / 0.3, 0, 1)
        corner = 1 - 0.14 * np.clip((np.abs(u) / length - 0.78) / 0.22, 0, 1) ** 2
        half: Points = self._shape.width_m / 2 * lean * corner
        return half

    def _side(self, profile: Points, pose: Pose, side: float, out_m: float = 0.0) -> Points:
        """World points (N, 3) of side-view points (N, 2) on one flank: the right (`side` 1) or the left (-1).

        `out_m` moves the points outwards.
        """
        lateral = (self._half_width(profile) + out_m) * side
        world = pose.ground + profile[:, :1] * pose.forward + lateral[:, None] * pose.right
        world[:, 1] = profile[:, 1]
        return world

    def layers(self, pose: Pose, camera: Camera, texture: NDArray[np.uint8]) -> list[Layer]:
        """See `Figure`."""
        flanks = np.concatenate([self._side(self._hull, pose, side) for side in (-1.0, 1.0)])
        ground = flanks * [1.0, 0.0, 1.0]
        px = camera.scale_at(pose.z_m)
        canvas = open_canvas(camera.project(np.concatenate([flanks, ground])), 0.1 * px, camera.width, camera.height)
        if canvas is None:
            return []
        eye = np.array([0.0, EYE_M, 0.0])
        side = 1.0 if (eye - pose.ground) @ pose.right > 0 else -1.0
        flank_seen = abs(float((eye - pose.ground) @ pose.right)) > self._shape.width_m / 2
        painter = _CarPainter(canvas, camera, self, pose)
        painter.underside(side)
        painter.strips(eye)
        if flank_seen:
            painter.flank(side)
        return [Layer(0, pose.z_m, canvas.finish(0.02 * px, crop_texture(texture, canvas)))]

    def shadow(self, pose: Pose, camera: Camera) -> list[Points]:
        """See `Figure`."""
        outlines = []
        for side in (-1.0, 1.0):
            world = self._side(self._hull, pose, side)
            outlines.append(camera.project(world - LIGHT * (world[:, 1:2] / LIGHT[1])))
        left, right = outlines
        return [*outlines, *(np.stack([left[k], right[k], right[k + 1], left[k + 1]]) for k in range(len(left) - 1))]

    def contacts(self, pose: Pose, camera: Camera) -> list[Points]:
        """See `Figure`."""
        length, width = self._hull[:, 0].max() + 0.1, self._shape.width_m / 2 + 0.08
        corners = [(-length, -width), (-length, width), (length, width), (length, -width)]
        return [camera.project(np.array([pose.ground + u * pose.forward + v * pose.right for u, v in corners]))]


class _CarPainter:
    """Draws one car onto a canvas. `side` is 1 for the right flank and -1 for the left."""

    def __init__(self, canvas: Canvas, camera: Camera, car: Car, pose: Pose) -> None:
        self._canvas, self._camera, self._car, self._pose = canvas, camera, car, pose
        self._px = camera.scale_at(pose.z_m)
        self._left, self._right = (car._side(car._hull, pose, side) for side in (-1.0, 1.0))

    def _disc(self, axle: float, radius_m: float, side: float, out_m: float) -> Points:
        ring = radius_m * _CIRCLE + (axle, self._car._shape.wheel_m)
        lateral = (self._car._shape.width_m / 2 + out_m) * side
        world = self._pose.ground + ring[:, :1] * self._pose.forward + lateral * self._pose.right
        world[:, 1] = ring[:, 1]
        return self._camera.project(world)

    def _flat(self, profile: list[tuple[float, float]] | Points, side: float, out_m: float = 0.0) -> Points:
        return self._camera.project(self._car._side(np.array(profile), self._pose, side, out_m))

    def underside(self, side: float) -> None:
        """Draw the wheels on the far side and the dark floor, which are visible below the sills."""
        shape = self._car._shape
        length = float(self._car._hull[:, 0].max())
        sill = shape.hull[0][1] + 0.06
        floor = [(-length * 0.9, 0.17), (-length * 0.94, sill), (length * 0.94, sill), (length * 0.9, 0.17)]
        for flank in (-side, side):
            for axle in shape.axles:
                for inner in (-0.02, -0.2):
                    self._canvas.polygon(self._disc(axle, shape.wheel_m, flank, inner), _TYRE)
            self._canvas.polygon(self._flat(floor, flank, -0.06), (20, 20, 22))
        for u in (-0.9 * length, 0.9 * length):
            ends = [self._flat([(u, 0.17), (u, sill)], flank, -0.06) for flank in (-side, side)]
            self._canvas.polygon(np.concatenate([ends[0], ends[1][::-1]]), (20, 20, 22))

    def strips(self, eye: Points) -> None:
        """Draw the surfaces between the flanks, from far to near: bumpers, bonnet, windscreen, roof, rear."""
        car, left, right = self._car, self._left, self._right
        first, last = car._shape.belt
        order = []
        for k in range(len(left) - 1):
            corners = np.stack([left[k], right[k], right[k + 1], left[k + 1]])
            normal = np.cross(left[k + 1] - left[k], right[k] - left[k])
            normal *= 1 / max(float(np.linalg.norm(normal)), 1e-9)
            # The hull runs from the rear over the roof to the front, so that the normals point outwards.
            if normal @ (eye - corners.mean(axis=0)) > 0:
                order.append((float(-np.linalg.norm(corners.mean(axis=0) - eye)), k, corners, normal))
        light = LIGHT / np.linalg.norm(LIGHT)
        for _, k, corners, normal in sorted(order, key=lambda item: item[0]):
            points = self._camera.project(corners)
            glass = (first <= k < first + 2 and car._hull[k + 1, 1] - car._hull[k, 1] > 0.08) or k == last - 1
            shine = 0.62 + 0.34 * max(float(normal @ light), 0.0) + 0.26 * max(float(normal[1]), 0.0)
            if glass:
                self._canvas.polygon(points, _TRIM)
                inner = points.mean(axis=0) + (points - points.mean(axis=0)) * 0.92
                self._canvas.polygon(inner, mix(_GLASS, _SKY_IN_GLASS, 0.45 if k == last - 1 else 0.25))
                self._canvas.shade(points, 1.0)
            else:
                self._canvas.polygon(points, car._paint)
                self._canvas.shade(points, shine)
            self._front_or_rear(k, len(left) - 2)

    def _patch(self, k: int, shares: tuple[float, float], lifts: tuple[float, float], colour: Colour) -> None:
        """Fill a part of strip `k`, the surface between the points `k` and `k + 1` of the hull.

        `shares` are its limits across the car, from -1 (left) to 1 (right); `lifts` its limits along the strip, from 0
        (point `k`) to 1 (point `k + 1`).
        """
        corners = []
        for lift, ends in ((lifts[0], shares), (lifts[1], shares[::-1])):
            left, right = ((1 - lift) * edge[k] + lift * edge[k + 1] for edge in (self._left, self._right))
            corners += [left + (right - left) * (0.5 + 0.5 * share) for share in ends]
        self._canvas.polygon(self._camera.project(np.array(corners)), colour)

    def _front_or_rear(self, k: int, last: int) -> None:
        """Draw the lamps, grille, plate or bumper trim of strip `k`; `last` is the index of the last strip."""
        if k == 0:
            self._patch(0, (-1.0, 1.0), (0.0, 0.45), _TRIM)
        elif k == 1:
            self._patch(1, (-0.28, 0.28), (0.2, 0.62), (214, 212, 200))
        elif k == 2:
            for side in (-1.0, 1.0):
                self._patch(2, (side * 0.64, side * 0.98), (0.0, 0.9), (134, 18, 18))
                self._patch(2, (side * 0.68, side * 0.86), (0.5, 0.82), (196, 60, 52))
        elif k == last:
            self._patch(last, (-0.9, 0.9), (0.35, 0.9), _TRIM)
            self._patch(last, (-0.28, 0.28), (0.12, 0.45), (214, 212, 200))
        elif k == last - 1:
            self._patch(last - 1, (-0.5, 0.5), (0.2, 0.85), _TRIM)
            for shares in ((-0.98, -0.62), (0.62, 0.98)):
                self._patch(last - 1, shares, (0.0, 0.78), _TRIM)
                low, high = min(shares, key=abs), max(shares, key=abs)
                self._patch(last - 1, (low * 1.06, high), (0.08, 0.68), (204, 210, 214))
                self._patch(last - 1, (low * 1.18, low * 1.42), (0.2, 0.58), (246, 248, 248))

    def flank(self, side: float) -> None:
        """Draw the flank that faces the camera, with its windows, doors and wheels."""
        car, shape, canvas = self._car, self._car._shape, self._canvas
        hull = car._hull
        first, last = shape.belt
        sunlit = 0.74 + 0.24 * max(float((self._pose.right * side) @ (LIGHT / np.linalg.norm(LIGHT))), 0.0)
        cabin = self._flat(hull[first : last + 1], side)
        canvas.polygon(cabin, car._paint)
        canvas.shade(cabin, sunlit)
        length, sill, waist = float(hull[:, 0].max()), float(hull[0, 1]), float(hull[last, 1])
        # Several points along the waist line and the sill, since the car becomes narrower towards its ends.
        along = np.linspace(0.8, -0.8, 5) * length
        waist_line = np.stack([along[::-1], np.interp(along[::-1], hull[[first, last], 0], hull[[first, last], 1])], -1)
        waist_line = waist_line[(waist_line[:, 0] > hull[first, 0]) & (waist_line[:, 0] < hull[last, 0])]
        sill_line = np.stack([along, np.full(len(along), sill)], -1)
        body = self._flat(np.concatenate([hull[: first + 1], waist_line, hull[last:], sill_line]), side)
        canvas.polygon(body, car._paint)
        canvas.shade(body, sunlit)
        steps = ((0.0, 0.2, 0.5), (0.2, 0.45, 0.72), (0.45, 0.62, 0.86), (0.62, 0.84, 1.02), (0.84, 0.94, 1.24))
        for low, high, light in steps:
            z0, z1 = sill + (waist - sill) * low, sill + (waist - sill) * high
            canvas.shade(self._band(length, z0, z1, side), light * sunlit * 1.12)
        canvas.polygon(self._band(length * 0.94, sill, sill + 0.1, side), _TRIM)
        self._windows(side)
        self._doors(side, sill, waist)
        for axle in shape.axles:
            self._wheel(axle, side)

    def _band(self, reach_m: float, low_m: float, high_m: float, side: float) -> Points:
        """Outline in the picture of a horizontal stripe of the flank, which follows the flank's curvature."""
        along = np.linspace(-reach_m, reach_m, 7)
        edges = [np.stack([u, np.full(len(u), z)], -1) for u, z in ((along, low_m), (along[::-1], high_m))]
        return self._flat(np.concatenate(edges), side)

    def _windows(self, side: float) -> None:
        for window in self._car._shape.windows:
            outline = np.array(window)
            centre = outline.mean(axis=0)
            glass = self._flat(outline, side, 0.005)
            self._canvas.polygon(self._flat(centre + (outline - centre) * 1.07, side), _TRIM)
            self._canvas.polygon(glass, _GLASS)
            self._canvas.shade(glass, 1.0)
            top, low = outline[:, 1].max(), outline[:, 1].min()
            cut = outline.copy()
            cut[:, 1] = np.maximum(cut[:, 1], low + 0.58 * (top - low))
            self._canvas.polygon(self._flat(cut, side, 0.005), mix(_GLASS, _SKY_IN_GLASS, 0.55))

    def _doors(self, side: float, sill: float, waist: float) -> None:
        shape, paint = self._car._shape, self._car._paint
        seam = tint(paint, 0.45)
        width = max(0.012 * self._px, 0.4)
        for window in shape.windows[1:]:
            u = window[0][0] - 0.035
            self._canvas.line(self._flat([(u, sill + 0.14), (u, waist + 0.02)], side), seam, width)
            handle = [
                (u + 0.08, waist - 0.12),
                (u + 0.26, waist - 0.12),
                (u + 0.26, waist - 0.16),
                (u + 0.08, waist - 0.16),
            ]
            self._canvas.polygon(self._flat(handle, side), tint(paint, 0.6))
        end = shape.windows[-1][-1][0] + 0.08
        self._canvas.line(self._flat([(end, sill + 0.14), (end - 0.02, waist)], side), seam, width)
        mirror = [
            (end - 0.2, waist + 0.02),
            (end - 0.2, waist + 0.15),
            (end - 0.02, waist + 0.15),
            (end - 0.02, waist + 0.04),
        ]
        self._canvas.polygon(self._flat(mirror, side, 0.12), tint(paint, 0.8))
        length = float(self._car._hull[:, 0].max())
        lamp = [(length * 0.87, 0.62), (length * 0.85, 0.76), (length * 0.95, 0.72), (length * 0.985, 0.62)]
        self._canvas.polygon(self._flat(lamp, side, 0.01), (204, 210, 214))
        rear = [
            (-length * 0.92, waist - 0.22),
            (-length * 0.93, waist - 0.04),
            (-length * 0.985, waist - 0.06),
            (-length, waist - 0.22),
        ]
        self._canvas.polygon(self._flat(rear, side, 0.01), (150, 22, 20))

    def _wheel(self, axle: float, side: float) -> None:
        radius = self._car._shape.wheel_m
        canvas = self._canvas
        arch = self._disc(axle, radius * 1.17, side, -0.04)
        breadth, height = np.ptp(arch, axis=0)
        if breadth < 0.12 * height:
            return
        low = self._camera.project(self._pose.ground + np.array([0.0, 0.16, 0.0]))[1]
        canvas.polygon(np.stack([arch[:, 0], np.minimum(arch[:, 1], low)], -1), (16, 16, 18))
        tyre = self._disc(axle, radius, side, -0.05)
        canvas.polygon(tyre, _TYRE)
        canvas.shade(tyre, 1.0)
        canvas.polygon(self._disc(axle, radius * 0.66, side, -0.05), (142, 145, 149))
        canvas.polygon(self._disc(axle, radius * 0.58, side, -0.05), (70, 72, 76))
        rim = self._disc(axle, radius * 0.62, side, -0.05)
        if breadth < 0.35 * height:
            return
        turn = -self._pose.travelled_m / radius
        hub = self._disc(axle, 0.0, side, -0.05)[0]
        for spoke in range(5):
            place = (spoke / 5 + turn / (2 * np.pi)) % 1.0 * len(rim)
            low = int(place)
            end = rim[low] + (rim[(low + 1) % len(rim)] - rim[low]) * (place - low)
            canvas.line(np.stack([hub, end]), (156, 159, 163), 0.06 * self._px * breadth / height)
        canvas.polygon(self._disc(axle, radius * 0.16, side, -0.05), (116, 118, 122))
