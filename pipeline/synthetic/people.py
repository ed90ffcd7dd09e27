"""Draws people, limb by limb, from far to near."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.body import Body, Look, walking_body
from pipeline.synthetic.camera import Camera, Points, Pose
from pipeline.synthetic.draw import Canvas, Colour, capsules, ellipse, mix, open_canvas, tint
from pipeline.synthetic.figure import Layer, crop_texture, ground_ellipse
from pipeline.synthetic.street_plan import LIGHT

# Nested bands that make a limb look round: (share of the width, shift towards the light in radii, brightness).
_BANDS = ((1.0, 0.0, 0.68), (0.72, 0.2, 0.94), (0.36, 0.38, 1.16))


def shade_round(canvas: Canvas, start: Points, end: Points, start_r: Points, end_r: Points) -> list[Points]:
    """Shade K limbs on the canvas so that they look round, and return their K outlines.

    Each limb is a capsule from `start` to `end`, (K, 2) picture points, with radii `start_r` and `end_r`, (K,) pixels.
    """
    offset = ((start_r + end_r) / 2)[:, None] * np.array([-1.0, -0.6])
    starts = np.concatenate([start + shift * offset for _, shift, _ in _BANDS])
    ends = np.concatenate([end + shift * offset for _, shift, _ in _BANDS])
    start_radii = np.concatenate([start_r * width for width, _, _ in _BANDS])
    end_radii = np.concatenate([end_r * width for width, _, _ in _BANDS])
    outlines = capsules(starts, ends, start_radii, end_radii)
    count = len(start)
    for k in range(count):
        for band, (_, _, light) in enumerate(_BANDS):
            canvas.shade(outlines[k + band * count], light)
    return list(outlines[:count])


class BodyPainter:
    """Draws one person onto a canvas. Parts farther from the camera are drawn first."""

    def __init__(self, canvas: Canvas, body: Body, look: Look, pose: Pose, camera: Camera) -> None:
        self._canvas, self._look, self._camera = canvas, look, camera
        self._px = camera.scale_at(pose.z_m)
        sight = np.array([pose.x_m, 0.0, pose.z_m]) / np.hypot(pose.x_m, pose.z_m)
        across = np.array([sight[2], 0.0, -sight[0]])
        self._towards = float(-pose.forward @ sight)
        self._forward_x, self._right_x = float(pose.forward @ across), float(pose.right @ across)
        self._near = 0 if pose.right @ sight > 0 else 1
        project = camera.project
        self._pelvis, self._neck, self._head = project(body.pelvis), project(body.neck), project(body.head)
        self._arms = np.stack([project(p) for p in (body.shoulders, body.elbows, body.hands)])
        self._legs = np.stack([project(p) for p in (body.hips, body.knees, body.ankles, body.toes)])

    def far_limbs(self) -> None:
        """Draw the arm and the leg on the side away from the camera."""
        self._arm(1 - self._near, 0.8)
        self._leg(1 - self._near, 0.8)

    def near_part(self) -> None:
        """Draw the rest of the body."""
        self._leg(self._near, 1.0)
        if self._look.backpack and self._towards > -0.2:
            self._backpack(self._look.backpack)
        self._torso()
        if self._look.backpack and self._towards <= -0.2:
            self._backpack(self._look.backpack)
        self._draw_head()
        self._arm(self._near, 1.0)

    def _bars(self, path: Points, radii_m: list[tuple[float, float]], colours: list[Colour]) -> None:
        radii = np.array(radii_m) * self._px * self._look.height_m / 1.75
        outlines = shade_round(self._canvas, path[:-1], path[1:], radii[:, 0], radii[:, 1])
        for outline, colour in zip(outlines, colours, strict=True):
            self._canvas.polygon(outline, colour)

    def _leg(self, index: int, light: float) -> None:
        look, path, b = self._look, self._legs[:, index], self._look.build
        cloth, shoe = tint(look.trousers, light), tint(look.shoes, light)
        shank = tint(look.skin, light) if look.bare_legs else cloth
        calf = (0.05, 0.036) if look.bare_legs else (0.064, 0.052)
        self._bars(path[2:], [(0.048, 0.034)], [shoe])
        self._bars(path[:3], [(0.094 * b, 0.066), calf], [cloth, shank])

    def _arm(self, index: int, light: float) -> None:
        look, path = self._look, self._arms[:, index]
        sleeve, skin = tint(look.top, light * 0.96), tint(look.skin, light)
        wrist = path[1] + 0.94 * (path[2] - path[1])
        self._bars(np.stack([wrist, path[2] + 0.1 * (path[2] - path[1])]), [(0.036, 0.036)], [skin])
        fore = skin if look.bare_legs else sleeve
        radii = [(0.058, 0.05), (0.038, 0.03) if look.bare_legs else (0.05, 0.04)]
        self._bars(np.stack([path[0], path[1], wrist]), radii, [sleeve, fore])

    def _torso(self) -> None:
        look = self._look
        hem = -0.55 if look.coat else -0.14
        # (position along the spine, 0 pelvis to 1 neck; half width and half depth in metres for a height of 1.75 m)
        levels = np.array(
            [(hem, 0.185 if look.coat else 0.165, 0.13), (0.06, 0.158, 0.118), (0.32, 0.158, 0.112), (0.62, 0.18, 0.13),
             (0.88, 0.198, 0.115), (0.97, 0.165, 0.085), (1.03, 0.075, 0.06)]
        )  # fmt: skip
        scale = self._px * look.height_m / 1.75 * look.build
        half = scale * np.hypot(levels[:, 1] * self._right_x, levels[:, 2] * self._forward_x)
        spine = self._neck - self._pelvis
        normal = np.array([-spine[1], spine[0]]) / max(float(np.hypot(*spine)), 1e-6)
        centre = self._pelvis + levels[:, :1] * spine

        def outline(share: float, shift: float) -> Points:
            middle = centre - normal * (shift * half)[:, None]
            edge = normal * (half * share)[:, None]
            return np.concatenate([middle + edge, (middle - edge)[::-1]])

        self._canvas.polygon(outline(1.0, 0.0), look.top)
        for share, shift, light in ((1.0, 0.0, 0.66), (0.78, 0.14, 0.86), (0.5, 0.3, 1.04), (0.24, 0.42, 1.16)):
            self._canvas.shade(outline(share, shift), light)
        self._canvas.shade(np.concatenate([outline(1.0, 0.0)[:2], outline(1.0, 0.0)[-2:]]), 0.62)
        if self._towards > 0.25:
            self._open_jacket(centre, normal, half)

    def _open_jacket(self, centre: Points, normal: Points, half: Points) -> None:
        shift = normal * (half * -0.5 * self._forward_x)[:, None]
        width = normal * (half * np.array([0.0, 0.05, 0.1, 0.2, 0.3, 0.36, 0.5]))[:, None] * self._towards
        self._canvas.polygon(np.concatenate([centre + shift + width, (centre + shift - width)[::-1]]), self._look.shirt)

    def _backpack(self, colour: Colour) -> None:
        spine = self._neck - self._pelvis
        centre = self._pelvis + 0.66 * spine
        centre = centre - np.array([0.14 * self._px * self._forward_x, 0.0])
        half_width = self._px * float(np.hypot(0.15 * self._right_x, 0.1 * self._forward_x))
        bag = ellipse(centre, half_width, 0.24 * self._px, 14)
        self._canvas.polygon(bag, colour)
        self._canvas.shade(bag, 0.75)
        self._canvas.shade(ellipse(centre - 0.05 * self._px, half_width * 0.6, 0.15 * self._px), 1.1)

    def _draw_head(self) -> None:
        look, canvas = self._look, self._canvas
        px = self._px * look.height_m / 1.75
        turned = self._forward_x
        drop = np.array([0.0, 0.02 * px])
        throat = np.stack([self._neck + drop, self._head + drop])
        self._bars(throat, [(0.055, 0.05)], [tint(look.skin, 0.82)])
        back = np.array([-0.022 * turned, -0.012]) * px
        half_width = (0.083 + 0.012 * abs(turned)) * px
        hair = ellipse(self._head + back, half_width, 0.118 * px)
        if look.long_hair:
            mane = ellipse(self._head + np.array([-0.05 * turned, 0.07]) * px, half_width * 0.95, 0.15 * px)
            canvas.polygon(mane, look.hair)
            canvas.shade(mane, 0.8)
        canvas.polygon(hair, look.hair)
        canvas.shade(hair, 0.8)
        canvas.shade(ellipse(self._head + back - 0.03 * px, half_width * 0.55, 0.06 * px), 1.3)
        if self._towards > -0.45:
            self._face(px, turned)
        if look.helmet:
            turn = np.linspace(np.pi, 2 * np.pi, 12)
            dome = np.stack([np.cos(turn) * half_width * 1.12, np.sin(turn) * 0.11 * px], -1)
            canvas.polygon(self._head + back - drop + dome, look.helmet)

    def _face(self, px: float, turned: float) -> None:
        canvas, skin = self._canvas, self._look.skin
        centre = self._head + np.array([0.03 * turned, 0.03]) * px
        half_width = (0.074 if self._towards > 0 else 0.058) * px
        face = ellipse(centre, half_width, 0.092 * px)
        canvas.polygon(face, skin)
        canvas.shade(face, 0.74)
        canvas.shade(ellipse(centre - 0.015 * px, half_width * 0.66, 0.07 * px), 1.02)
        if px < 50 or self._towards < -0.2:
            return
        gaze = centre + np.array([0.03 * turned, -0.018]) * px
        apart = 0.03 * px * max(self._towards, 0.0)
        dark = mix(skin, (30, 20, 18), 0.6)
        for sign in (-1.0, 1.0):
            canvas.polygon(ellipse(gaze + np.array([sign * apart, 0.0]), 0.011 * px, 0.007 * px, 8), dark)
        mouth = gaze + np.array([0.0, 0.06 * px])
        canvas.polygon(
            ellipse(mouth, 0.022 * px * (0.4 + 0.6 * abs(self._towards)), 0.006 * px, 8), mix(skin, (120, 40, 40), 0.6)
        )


def body_shadow(body: Body, look: Look, camera: Camera) -> list[Points]:
    """Outlines of the cast shadow: each bone, projected along the light onto the ground."""
    bones = [(body.pelvis, body.neck, 0.17), (body.neck, body.head, 0.09)]
    for k in range(2):
        bones += [(body.hips[k], body.knees[k], 0.08), (body.knees[k], body.ankles[k], 0.06)]
        bones += [(body.shoulders[k], body.elbows[k], 0.06), (body.elbows[k], body.hands[k], 0.05)]
    ends = np.array([(start, end) for start, end, _ in bones])
    ground = ends - LIGHT * (ends[..., 1:2] / LIGHT[1])
    radius = np.array([r for _, _, r in bones]) * camera.focal_px / ground[:, 0, 2] * look.build * 0.8
    points = camera.project(ground)
    return list(capsules(points[:, 0], points[:, 1], radius, radius))


class Walker:
    """A person on foot."""

    class_ids: tuple[int, ...] = (1,)

    def __init__(self, rng: np.random.Generator) -> None:
        self._look = Look.random(rng)

    def layers(self, pose: Pose, camera: Camera, texture: NDArray[np.uint8]) -> list[Layer]:
        """See `Figure`."""
        body = walking_body(self._look, pose)
        px = camera.scale_at(pose.z_m)
        canvas = open_canvas(camera.project(body.all_points()), 0.24 * px, camera.width, camera.height)
        if canvas is None:
            return []
        painter = BodyPainter(canvas, body, self._look, pose, camera)
        painter.far_limbs()
        painter.near_part()
        return [Layer(0, pose.z_m, canvas.finish(0.018 * px, crop_texture(texture, canvas)))]

    def shadow(self, pose: Pose, camera: Camera) -> list[Points]:
        """See `Figure`."""
        return body_shadow(walking_body(self._look, pose), self._look, camera)

    def contacts(self, pose: Pose, camera: Camera) -> list[Points]:
        """See `Figure`."""
        return [ground_ellipse(pose.ground, pose.forward, 0.32, pose.right, 0.2, camera)]
