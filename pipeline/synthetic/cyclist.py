"""A bicycle and its rider: one figure that consists of two objects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.body import Body, Look
from pipeline.synthetic.camera import Camera, Points, Pose
from pipeline.synthetic.draw import Canvas, Colour, capsules, open_canvas, tint
from pipeline.synthetic.figure import Layer, crop_texture, ground_ellipse
from pipeline.synthetic.people import BodyPainter, body_shadow

_FRAMES: tuple[Colour, ...] = ((38, 40, 44), (140, 40, 38), (44, 82, 120), (196, 196, 190), (52, 96, 76))
_RUBBER: Colour = (28, 28, 30)
_METAL: Colour = (128, 132, 136)

# Side view of the bicycle: (forward, up) in metres, relative to the point on the ground between the wheels.
_REAR, _FRONT = (-0.52, 0.34), (0.53, 0.34)
_WHEEL_M = 0.34
_CRANK, _CRANK_M = (-0.08, 0.28), 0.17
_SEAT_TOP, _SADDLE = (-0.21, 0.80), (-0.24, 0.93)
_HEAD_LOW, _HEAD_TOP, _BARS = (0.40, 0.70), (0.36, 0.88), (0.34, 1.04)
_PELVIS, _NECK = (-0.24, 1.0), (0.02, 1.53)
_TUBES = (
    (_CRANK, _SEAT_TOP), (_SEAT_TOP, _HEAD_TOP), (_CRANK, _HEAD_LOW), (_SEAT_TOP, _REAR), (_CRANK, _REAR),
    (_HEAD_TOP, _HEAD_LOW), (_HEAD_LOW, _FRONT),
)  # fmt: skip
_GEAR_M = 4.6
"""distance travelled during one turn of the crank"""


def _world(pose: Pose, u_m: float, up_m: float, right_m: float = 0.0) -> Points:
    """World point (3,) `u_m` metres forward, `up_m` above the ground and `right_m` to the right of the pose."""
    point: Points = pose.ground + u_m * pose.forward + right_m * pose.right
    point[1] = up_m
    return point


def _knee(hip: Points, ankle: Points, thigh_m: float, shank_m: float, forward: Points) -> Points:
    """Position of the knee between hip and ankle, bent forward, by the law of cosines."""
    reach = ankle - hip
    distance = min(max(float(np.linalg.norm(reach)), 1e-3), thigh_m + shank_m - 1e-3)
    axis = reach / np.linalg.norm(reach)
    along = (thigh_m**2 - shank_m**2 + distance**2) / (2 * distance)
    bend = forward - (forward @ axis) * axis
    bend /= np.linalg.norm(bend)
    knee: Points = hip + axis * along + bend * np.sqrt(max(thigh_m**2 - along**2, 0.0))
    return knee


class Cyclist:
    """A cyclist. Member 0 of the figure is the bicycle, member 1 the rider.

    The mask of the bicycle includes the whole discs of the wheels, as annotators draw them, although the street is
    visible between the spokes.
    """

    class_ids: tuple[int, ...] = (2, 1)

    def __init__(self, rng: np.random.Generator) -> None:
        self._look = Look.random(rng, helmet=True)
        self._frame = _FRAMES[int(rng.integers(len(_FRAMES)))]

    def _crank_angle(self, pose: Pose) -> float:
        return -2 * np.pi * pose.travelled_m / _GEAR_M

    def _body(self, pose: Pose) -> Body:
        scale = self._look.height_m / 1.75
        forward, up = pose.forward, np.array([0.0, 1.0, 0.0])
        side = np.array([-1.0, 1.0])[:, None] * pose.right
        pelvis = _world(pose, *_PELVIS)
        neck = pelvis + scale * (_world(pose, *_NECK) - pelvis)
        angle = self._crank_angle(pose) + np.array([0.0, np.pi])
        crank = _world(pose, *_CRANK) + side * 0.09
        pedals = crank + _CRANK_M * (np.cos(angle)[:, None] * forward + np.sin(angle)[:, None] * up)
        ankles = pedals + 0.07 * up - 0.07 * forward
        hips = pelvis + side * 0.085
        knees = np.stack([_knee(hips[k], ankles[k], 0.43 * scale, 0.43 * scale, forward) for k in range(2)])
        shoulders = neck - 0.04 * up + side * 0.175 * self._look.build
        hands = _world(pose, *_BARS) + side * 0.25
        elbows = (shoulders + hands) / 2 - 0.06 * up - 0.03 * forward + side * 0.03
        head = neck + scale * (0.19 * up + 0.07 * forward)
        return Body(pelvis, neck, head, shoulders, elbows, hands, hips, knees, ankles, pedals + 0.09 * forward)

    def _wheel(self, axle: tuple[float, float], radius_m: float, pose: Pose, camera: Camera) -> Points:
        turn = np.linspace(0, 2 * np.pi, 28, endpoint=False)[:, None]
        centre = _world(pose, *axle)
        ring = centre + radius_m * (np.cos(turn) * pose.forward + np.sin(turn) * np.array([0.0, 1.0, 0.0]))
        return camera.project(ring)

    def _paint_bicycle(self, canvas: Canvas, pose: Pose, camera: Camera) -> None:
        px = camera.scale_at(pose.z_m)
        # A wheel seen from the front is as wide as its tyre.
        tyre_px = max(0.05 * px, 0.9)
        for axle in (_REAR, _FRONT):
            rim = self._wheel(axle, _WHEEL_M - 0.02, pose, camera)
            hub = camera.project(_world(pose, *axle))
            for spoke in range(10):
                place = (spoke * 2.8 - pose.travelled_m / _WHEEL_M * 28 / (2 * np.pi)) % 28
                canvas.line(np.stack([hub, rim[int(place)]]), _METAL, 0.012 * px)
            canvas.line(rim, _RUBBER, tyre_px, closed=True)
            canvas.add_to_mask(self._wheel(axle, _WHEEL_M, pose, camera))
        for start, end in _TUBES:
            tube = camera.project(np.stack([_world(pose, *start), _world(pose, *end)]))
            radius = np.array([max(0.021 * px, 0.45)])
            outline = capsules(tube[:1], tube[1:], radius, radius)[0]
            canvas.polygon(outline, self._frame)
        thick = max(0.045 * px, 0.9)
        angle = self._crank_angle(pose)
        crank = _world(pose, *_CRANK)
        for k, right in ((0, -0.09), (1, 0.09)):
            turn = angle + np.pi * k
            pedal = crank + _CRANK_M * (np.cos(turn) * pose.forward + np.sin(turn) * np.array([0.0, 1.0, 0.0]))
            arm = np.stack([crank, pedal]) + right * pose.right
            canvas.line(camera.project(arm), _METAL, thick * 0.7)
        post = np.stack([_world(pose, *_SEAT_TOP), _world(pose, *_SADDLE)])
        canvas.line(camera.project(post), _METAL, thick * 0.7)
        saddle = np.stack([_world(pose, -0.36, 0.95), _world(pose, -0.1, 0.94)])
        canvas.line(camera.project(saddle), _RUBBER, thick * 1.6)
        stem = np.stack([_world(pose, *_HEAD_TOP), _world(pose, *_BARS)])
        canvas.line(camera.project(stem), _METAL, thick * 0.8)
        bars = np.stack([_world(pose, *_BARS, -0.27), _world(pose, *_BARS, 0.27)])
        canvas.line(camera.project(bars), tint(_RUBBER, 1.4), thick)

    def layers(self, pose: Pose, camera: Camera, texture: NDArray[np.uint8]) -> list[Layer]:
        """See `Figure`."""
        body, px = self._body(pose), camera.scale_at(pose.z_m)
        wheels = np.concatenate([self._wheel(axle, _WHEEL_M, pose, camera) for axle in (_REAR, _FRONT)])
        handle = camera.project(np.stack([_world(pose, *_BARS, side) for side in (-0.3, 0.3)]))
        bicycle_extent = np.concatenate([wheels, handle])
        body_extent = camera.project(body.all_points())
        size = (camera.width, camera.height)
        far, machine, near = (
            open_canvas(body_extent, 0.24 * px, *size),
            open_canvas(bicycle_extent, 0.08 * px, *size),
            open_canvas(body_extent, 0.24 * px, *size),
        )
        layers = []
        if far is not None:
            BodyPainter(far, body, self._look, pose, camera).far_limbs()
            layers.append(Layer(1, pose.z_m, far.finish(0.018 * px, crop_texture(texture, far))))
        if machine is not None:
            self._paint_bicycle(machine, pose, camera)
            layers.append(Layer(0, pose.z_m, machine.finish(0.5, crop_texture(texture, machine))))
        if near is not None:
            BodyPainter(near, body, self._look, pose, camera).near_part()
            layers.append(Layer(1, pose.z_m, near.finish(0.018 * px, crop_texture(texture, near))))
        return layers

    def shadow(self, pose: Pose, camera: Camera) -> list[Points]:
        """See `Figure`."""
        return body_shadow(self._body(pose), self._look, camera)

    def contacts(self, pose: Pose, camera: Camera) -> list[Points]:
        """See `Figure`."""
        return [ground_ellipse(pose.ground, pose.forward, 0.95, pose.right, 0.16, camera)]
