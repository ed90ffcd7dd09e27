"""Synthetic vehicles seen by a camera on a mast or a bridge, because street pictures hardly ever show a roof.

A vehicle is a set of polygons in metres: x forward, y to the left, z up, with the origin on the ground below its
centre. A pinhole camera looks down on it; faces are painted from far to near.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.training.picture import Rgb, TrainingObject, TrainingPicture, cropped_to_mask, visible_part

KINDS = ("car", "truck", "bus")
_SHARES = (0.84, 0.08, 0.08)
_MAX_VEHICLES = 4

# The camera: pitch in degrees below the horizon, height above the road in metres, pixels per metre in the centre.
_LOOKING_DOWN = (35.0, 88.0)
_HEIGHT_M = (6.0, 25.0)
_PIXELS_PER_M = (12.0, 85.0)
# Minimum distance between the centres of two vehicles, along and across the road, so that they do not intersect.
_ROOM_M = {"car": (5.2, 2.3), "truck": (11.0, 3.0), "bus": (13.5, 3.0)}

_PAINTS = ((235, 235, 235), (190, 194, 198), (120, 124, 128), (45, 46, 50), (20, 20, 22), (170, 25, 35), (30, 60, 130))
_GLASS = (38, 48, 50)
_TYRE = (18, 18, 18)
# Unit vector towards the sun.
_SUN = np.array([0.35, 0.45, 0.82])

Points = NDArray[np.float64]
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Face:
    """A convex face: points (N, 3) in metres, counter-clockwise seen from outside; rgb 0 to 255 in full sun."""

    points: Points
    rgb: Colour


@dataclass(frozen=True, slots=True)
class Eye:
    """A pinhole camera above the origin of the ground that looks along +x and down.

    height_m over the ground, down_rad below the horizon, focal_px, centre_xy in pixels.
    """

    height_m: float
    down_rad: float
    focal_px: float
    centre_xy: tuple[float, float]

    def project(self, points: Points) -> Points:
        """Project points (N, 3) in metres to (N, 3): pixel x and y, and the depth along the optical axis in metres."""
        sine, cosine = np.sin(self.down_rad), np.cos(self.down_rad)
        x, y, below = points[:, 0], points[:, 1], self.height_m - points[:, 2]
        depth = x * cosine + below * sine
        along = below * cosine - x * sine  # towards the lower edge of the picture
        left, top = self.centre_xy
        return np.stack([left - self.focal_px * y / depth, top + self.focal_px * along / depth, depth], axis=1)

    def ground_at(self, x_px: float, y_px: float) -> tuple[float, float] | None:
        """The ground position in metres of a pixel; None above the horizon, or if the position is too far away."""
        sine, cosine = np.sin(self.down_rad), np.cos(self.down_rad)
        right, down = (x_px - self.centre_xy[0]) / self.focal_px, (y_px - self.centre_xy[1]) / self.focal_px
        falling = sine + down * cosine
        if falling < 0.3:
            return None
        far = self.height_m / falling
        return float(far * (cosine - down * sine)), float(-far * right)


def with_vehicles(rng: Generator, ground: TrainingPicture, output_of: Mapping[str, int]) -> TrainingPicture:
    """Draw one to four vehicles on the ground, of those KINDS that output_of holds, labelled with its outputs."""
    height, width = ground.hw
    down_rad = float(np.deg2rad(rng.uniform(*_LOOKING_DOWN)))
    height_m = float(rng.uniform(*_HEIGHT_M))
    pixels_per_m = float(np.exp(rng.uniform(*np.log(_PIXELS_PER_M))))
    eye = Eye(height_m, down_rad, pixels_per_m * height_m / float(np.sin(down_rad)), (width / 2, height / 2))
    road_rad = float(rng.uniform(-np.pi, np.pi))
    kinds = [kind for kind in KINDS if kind in output_of]
    shares = np.array([share for kind, share in zip(KINDS, _SHARES, strict=True) if kind in output_of])
    placed: list[tuple[str, tuple[float, float], float]] = []
    for _ in range(int(rng.integers(1, _MAX_VEHICLES + 1))):
        kind = kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))]
        place = eye.ground_at(float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        if place is None or not all(_apart(road_rad, kind, place, other, there) for other, there, _ in placed):
            continue
        heading = road_rad + float(rng.uniform(-0.12, 0.12)) + (np.pi if rng.random() < 0.5 else 0.0)
        placed.append((kind, place, heading))
    rgb = ground.rgb.copy()
    objects: list[TrainingObject] = list(ground.objects)
    for kind, place, heading in sorted(placed, key=lambda item: -item[1][0]):
        faces = [_moved(face, place, heading) for face in _vehicle(rng, kind)]
        mask = _painted(rng, rgb, faces, eye)
        drawn = cropped_to_mask(TrainingObject(output_of[kind], 0, 0, mask, ignored=False))
        if drawn is None:
            continue
        objects = [kept for kept in (visible_part(other, drawn) for other in objects) if kept is not None]
        objects.append(drawn)
    return TrainingPicture(rgb, tuple(objects), ground.labelled)


def _apart(road_rad: float, kind: str, place: tuple[float, float], other: str, there: tuple[float, float]) -> bool:
    x, y = place[0] - there[0], place[1] - there[1]
    along = abs(x * np.cos(road_rad) + y * np.sin(road_rad))
    across = abs(y * np.cos(road_rad) - x * np.sin(road_rad))
    length, width = (max(sizes) for sizes in zip(_ROOM_M[kind], _ROOM_M[other], strict=True))
    return bool(along > length or across > width)


def _painted(rng: Generator, rgb: Rgb, faces: Sequence[Face], eye: Eye) -> NDArray[np.uint8]:
    """Draw into rgb (H, W, 3), with a shadow on the ground; return the mask (H, W), 0 or 255."""
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    if any((eye.project(face.points)[:, 2] < 0.5).any() for face in faces):
        return mask
    shadow = np.zeros((height, width), np.uint8)
    for face in faces:
        flat = face.points - face.points[:, 2:] * (_SUN / _SUN[2])
        points, shift = _fixed(eye.project(flat))
        cv2.fillConvexPoly(shadow, points, 255, cv2.LINE_8, shift)
    softness = float(rng.uniform(1.0, 4.0))
    depth = float(rng.uniform(0.15, 0.65))
    dark = cv2.GaussianBlur(shadow, (0, 0), softness).astype(np.float32)[..., None] * np.float32(depth / 255)
    rgb[:] = (rgb * (1 - dark)).astype(np.uint8)
    for face in faces:
        projected = eye.project(face.points)
        if not _looks_at(face, eye):
            continue
        points, shift = _fixed(projected)
        cv2.fillConvexPoly(rgb, points, _lit(face), cv2.LINE_AA, shift)
        cv2.fillConvexPoly(mask, points, 255, cv2.LINE_8, shift)
    _gleam(rng, rgb, mask)
    return mask


def _vehicle(rng: Generator, kind: str) -> list[Face]:
    """The faces in painting order, lower ones first."""
    paint = _paint(rng)
    if kind == "car":
        return _car(rng, paint)
    length, width = float(rng.uniform(8.5, 13.0)), float(rng.uniform(2.4, 2.6))
    height = float(rng.uniform(2.9, 3.4))
    if kind == "bus":
        faces = _prism(_outline(length, width, 0.35), 0.3, height, paint)
        faces += _side_windows(length * 0.92, width, 1.4, height - 0.5, pieces=int(rng.integers(5, 9)))
        for at in rng.uniform(-0.4, 0.4, int(rng.integers(1, 4))):
            faces += _block(float(at) * length, 0.0, 1.6, 1.2, height, height + 0.25, (215, 215, 215))
        return faces
    cab, load = float(rng.uniform(1.6, 2.2)), _paint(rng)
    middle = -cab / 2
    faces = _block(middle, 0.0, length - cab, width, 0.6, height + float(rng.uniform(-0.8, 0.5)), load)
    front = length / 2 - cab / 2
    faces += _block(front, 0.0, cab * 0.94, width * 0.95, 0.4, 2.6, paint)
    edge = front + cab * 0.47
    side = width * 0.4
    screen = [[edge + 0.02, y, z] for y, z in ((-side, 1.5), (side, 1.5), (side, 2.3), (-side, 2.3))]
    faces.append(Face(np.array(screen), _GLASS))
    return faces


def _car(rng: Generator, paint: Colour) -> list[Face]:
    """The faces of a car: a hull with rounded corners, and a glass cabin whose roof is smaller than its base."""
    length, width = float(rng.uniform(3.7, 5.0)), float(rng.uniform(1.65, 1.95))
    waist, height = float(rng.uniform(0.8, 1.0)), float(rng.uniform(1.35, 1.8))
    faces = []
    for x in (-0.31 * length, 0.31 * length):
        for y in (-width / 2, width / 2):
            faces += _block(x, y * 0.97, 0.64, 0.2, 0.0, 0.62, _TYRE)
    faces += _prism(_outline(length, width, float(rng.uniform(0.28, 0.5))), 0.2, waist, paint)
    # fractions of the length, from the centre: bottom and top of the windscreen, top and bottom of the rear window
    foot, head = float(rng.uniform(0.14, 0.26)), float(rng.uniform(0.0, 0.1))
    back_head = float(rng.uniform(-0.4, -0.2))
    back_foot = max(back_head - float(rng.uniform(0.03, 0.16)), -0.47)
    low, high = width * 0.45, width * float(rng.uniform(0.34, 0.4))
    corners = {
        "low": [(foot * length, low), (foot * length, -low), (back_foot * length, -low), (back_foot * length, low)],
        "high": [
            (head * length, high),
            (head * length, -high),
            (back_head * length, -high),
            (back_head * length, high),
        ],
    }
    base = [np.array([x, y, waist]) for x, y in corners["low"]]
    roof = [np.array([x, y, height]) for x, y in corners["high"]]
    sky = float(rng.uniform(-20, 70))
    for first in range(4):
        second = (first + 1) % 4
        pane = np.array([base[second], base[first], roof[first], roof[second]])
        faces.append(Face(pane, paint))
        faces.append(Face(_shrunk(pane, 0.88), (_GLASS[0] + sky, _GLASS[1] + sky, _GLASS[2] + sky)))
        if first in (1, 3):  # the pillar between the doors
            middle = np.array([base[second] * 0.5 + base[first] * 0.5, roof[first] * 0.5 + roof[second] * 0.5])
            thick = np.array([0.05, 0.0, 0.0])
            bar = np.array([middle[0] - thick, middle[0] + thick, middle[1] + thick, middle[1] - thick])
            faces.append(Face(bar if first == 1 else bar[::-1], paint))
    faces.append(Face(np.array(roof)[::-1], paint))
    if rng.random() < 0.25:
        faces.append(Face(_shrunk(np.array(roof)[::-1], float(rng.uniform(0.4, 0.7))), _GLASS))
    for side in (-1, 1):
        faces += _block(foot * length - 0.15, side * (width / 2 + 0.1), 0.16, 0.24, waist, waist + 0.12, paint)
        for end, lamp in ((0.45, (225, 225, 215)), (-0.46, (150, 20, 25))):
            faces += _block(end * length, side * width * 0.37, 0.2, 0.26, waist - 0.22, waist + 0.005, lamp)
    for end in (-1, 1):
        x = end * (length / 2 + 0.01)
        plate = np.array([[x, y, z] for y, z in ((-0.26, 0.4), (0.26, 0.4), (0.26, 0.53), (-0.26, 0.53))])
        faces.append(Face(plate if end == 1 else plate[::-1], (225, 225, 220)))
    return faces


def _outline(length: float, width: float, roundness: float) -> Points:
    """Outline (24, 2) of a rectangle with elliptical corners, counter-clockwise seen from above."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack(
        [
            length / 2 * np.sign(cosine) * np.abs(cosine) ** (roundness),
            width / 2 * np.sign(sine) * np.abs(sine) ** (roundness * 0.7),
        ],
        axis=1,
    )


def _prism(outline: Points, bottom: float, top: float, rgb: Colour) -> list[Face]:
    """The side faces and the top face over an outline (N, 2), counter-clockwise seen from above."""
    faces = []
    for start, end in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        faces.append(Face(np.array([[*start, bottom], [*end, bottom], [*end, top], [*start, top]]), rgb))
    return [*faces, Face(np.column_stack([outline, np.full(len(outline), top)]), rgb)]


def _block(x: float, y: float, length: float, width: float, bottom: float, top: float, rgb: Colour) -> list[Face]:
    half_l, half_w = length / 2, width / 2
    corners = [[x + half_l, y - half_w], [x + half_l, y + half_w], [x - half_l, y + half_w], [x - half_l, y - half_w]]
    return _prism(np.array(corners), bottom, top, rgb)


def _side_windows(length: float, width: float, bottom: float, top: float, *, pieces: int) -> list[Face]:
    edges = np.linspace(-length / 2, length / 2, pieces + 1)
    faces = []
    for start, end in zip(edges[:-1] + 0.08, edges[1:] - 0.08, strict=True):
        for side in (-1, 1):
            y = side * (width / 2 + 0.01)
            pane = np.array([[start, y, bottom], [end, y, bottom], [end, y, top], [start, y, top]])
            faces.append(Face(pane if side == -1 else pane[::-1], _GLASS))
    return faces


def _shrunk(points: Points, share: float) -> Points:
    middle = points.mean(axis=0)
    return np.asarray(middle + (points - middle) * share, np.float64)


def _moved(face: Face, place: tuple[float, float], heading_rad: float) -> Face:
    cosine, sine = np.cos(heading_rad), np.sin(heading_rad)
    turn = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])
    return Face(face.points @ turn + (*place, 0.0), face.rgb)


def _normal(face: Face) -> Points:
    first, second, third = face.points[:3]
    normal = np.cross(second - first, third - second)
    return np.asarray(normal / max(float(np.linalg.norm(normal)), 1e-9), np.float64)


def _looks_at(face: Face, eye: Eye) -> bool:
    return float(_normal(face) @ (np.array([0.0, 0.0, eye.height_m]) - face.points[0])) > 0


def _lit(face: Face) -> Colour:
    light = 0.55 + 0.45 * max(float(_normal(face) @ _SUN), 0.0)
    red, green, blue = (min(level * light, 255.0) for level in face.rgb)
    return red, green, blue


def _paint(rng: Generator) -> Colour:
    red, green, blue = _PAINTS[int(rng.integers(len(_PAINTS)))]
    if rng.random() < 0.15:
        red, green, blue = rng.integers(10, 240, 3).tolist()
    tone = rng.uniform(-12, 12)
    return float(red + tone), float(green + tone), float(blue + tone)


def _gleam(rng: Generator, rgb: Rgb, mask: NDArray[np.uint8]) -> None:
    """Simulate reflections: a brightness that varies slowly over the vehicle."""
    height, width = mask.shape
    coarse = rng.normal(0, float(rng.uniform(3, 22)), (6, 10)).astype(np.float32)
    spread = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
    inside = mask > 0
    rgb[inside] = np.clip(rgb[inside] + spread[inside], 0, 255).astype(np.uint8)


def _fixed(projected: Points) -> tuple[NDArray[np.int32], int]:
    """Pixel coordinates for OpenCV: fixed point with 4 fractional bits, origin at the centre of the first pixel."""
    return ((projected[:, :2] - 0.5) * 16).round().astype(np.int32), 4
