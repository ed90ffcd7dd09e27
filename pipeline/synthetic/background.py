"""The street without moving objects: sky, ground, house fronts, trees and lamps. Rendered once per scene."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic import street_plan as plan
from pipeline.synthetic.camera import EYE_M, Camera, Points
from pipeline.synthetic.draw import tint
from pipeline.synthetic.facades import facade, shift_light
from pipeline.synthetic.noise import cloud_noise, grain

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Background:
    """The empty street.

    image     (H, W, 3) uint8 RGB
    depth_m   (H, W) float32, distance in metres of the house front, tree, hedge or lamp at each pixel; it occludes
              objects farther away. inf where the background occludes nothing (sky, ground, distant buildings)
    """

    image: Image
    depth_m: NDArray[np.float32]


def paint_background(camera: Camera, rng: np.random.Generator) -> Background:
    """Render the empty street as `camera` sees it. `rng` chooses colours, sizes and textures."""
    # Small pictures are rendered at twice their size and scaled down, which smooths the textures.
    factor = 2 if camera.height <= 1200 else 1
    large = Camera(camera.width * factor, camera.height * factor)
    painter = _Painter(large, rng)
    painter.sky()
    painter.distant_buildings()
    painter.ground()
    painter.park()
    painter.buildings()
    painter.street_furniture()
    size = (camera.width, camera.height)
    image = cv2.resize(painter.image, size, interpolation=cv2.INTER_AREA)
    depth = cv2.resize(painter.depth, size, interpolation=cv2.INTER_NEAREST)
    return Background(np.asarray(image, np.uint8), np.asarray(depth, np.float32))


class _Painter:
    """Paints the parts of the background into `image` and `depth`, from far to near."""

    def __init__(self, camera: Camera, rng: np.random.Generator) -> None:
        self._camera, self._rng = camera, rng
        self.image: Image = np.zeros((camera.height, camera.width, 3), np.uint8)
        self.depth = np.full((camera.height, camera.width), np.inf, np.float32)

    def _points(self, corners: list[tuple[float, float, float]]) -> Points:
        return self._camera.project(np.array(corners, np.float64))

    def _fill(self, points: Points, colour: tuple[float, float, float], depth_m: float | None = None) -> None:
        fixed = np.rint((np.clip(points, -1e5, 1e5) - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(self.image, [fixed], colour, cv2.LINE_AA, 4)
        if depth_m is not None:
            cv2.fillPoly(self.depth, [fixed], depth_m, cv2.LINE_8, 4)

    def _warp(self, texture: Image, corners: list[tuple[float, float, float]], depth_m: float | None) -> None:
        """Paint a texture (h, w, 3) onto a planar quadrilateral, in perspective.

        `corners` are world points: top left, top right, bottom right, bottom left of the texture. `depth_m` is the
        distance to store for its pixels; None leaves the depth map unchanged.
        """
        height, width = texture.shape[:2]
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32) - 0.5
        target = (self._points(corners) - 0.5).astype(np.float32)
        size = (self._camera.width, self._camera.height)
        matrix = cv2.getPerspectiveTransform(source, target)
        warped = cv2.warpPerspective(texture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        cover = np.zeros(self.depth.shape, np.uint8)
        fixed = np.rint(np.clip(target, -1e5, 1e5) * 16).astype(np.int32)
        cv2.fillPoly(cover, [fixed], 255, cv2.LINE_8, 4)
        cv2.copyTo(warped, cover, self.image)
        if depth_m is not None:
            self.depth[cover > 0] = depth_m

    def sky(self) -> None:
        """Paint a vertical colour gradient with thin clouds."""
        height, width = self.depth.shape
        rows = np.clip(np.arange(height) / self._camera.horizon_px, 0, 1)[:, None, None] ** 0.8
        top, low = np.array([118, 156, 198], np.float32), np.array([214, 222, 226], np.float32)
        clear = top + (low - top) * rows.astype(np.float32)
        clouds = cv2.resize(cloud_noise(self._rng, 64, 128), (width, height), interpolation=cv2.INTER_CUBIC)[..., None]
        cover = np.clip((clouds - 0.5) * 2.2, 0, 0.85)
        cloud_colour = np.array([236, 236, 234], np.float32)
        self.image[:] = np.clip(clear + (cloud_colour - clear) * cover, 0, 255).astype(np.uint8)

    def distant_buildings(self) -> None:
        """Paint the hazy roofs behind the park and the houses at the end of the side street."""
        x, haze = -80.0, (176, 186, 194)
        while x < 60:
            width, top = float(self._rng.uniform(5, 12)), float(self._rng.uniform(8, 17))
            shade = float(self._rng.uniform(0.86, 1.02))
            z = 110.0
            self._fill(
                self._points([(x, 0, z), (x, top, z), (x + width, top, z), (x + width, 0, z)]), tint(haze, shade)
            )
            x += width
        z, x = plan.SIDE_END_Z + 14, -26.0
        while x < 20:
            width = float(self._rng.uniform(7, 11))
            top = float(self._rng.uniform(7, 10))
            texture = shift_light(facade(self._rng, width, top, 14.0), 0.78, 46)
            self._warp(texture, [(x, top, z), (x + width, top, z), (x + width, 0, z), (x, 0, z)], None)
            x += width

    def ground(self) -> None:
        """Paint roads, pavements, markings and grass: first as a map from above, then warped into the picture.

        The near part of the street has a map of its own with more pixels per metre, painted over the far part.
        """
        camera = self._camera
        for z0, z1, detail in ((19.0, 90.0, 16.0), (4.8, 24.0, 56.0)):
            reach = min(camera.half_width_at(z1) + 1.0, 60.0)
            detail = min(detail, detail * camera.height / 1080 * 1.3 + 2, 2400 / reach / 2)
            texture = _ground_map(self._rng, (-reach, reach), (z0, z1), detail)
            self._warp(texture, [(-reach, 0, z1), (reach, 0, z1), (reach, 0, z0), (-reach, 0, z0)], None)
        below = slice(int(camera.horizon_px), None)
        rough = grain(self._rng, camera.height, camera.width, 5.0)[below]
        self.image[below] = np.clip(self.image[below].astype(np.int16) + rough[..., None], 0, 255).astype(np.uint8)
        # Haze: the ground becomes lighter towards the horizon.
        rows = np.arange(camera.height)[below] + 0.5 - camera.horizon_px
        z = EYE_M * camera.focal_px / np.maximum(rows, 0.5)
        share = (0.55 * (1 - np.exp(-z / 90.0)))[:, None, None].astype(np.float32)
        part = self.image[below].astype(np.float32)
        self.image[below] = (part + (np.array([188, 194, 198], np.float32) - part) * share).astype(np.uint8)

    def park(self) -> None:
        """Paint the trees on the lawn and the hedge left of the side street."""
        wall = plan.SIDE_WALL_X[0]
        spots = [(float(self._rng.uniform(-52, wall - 2.5)), float(z)) for z in np.linspace(58, 25, 14)]
        for x, z in spots:
            self._tree(x, z, float(self._rng.uniform(6.0, 9.0)), None)
        for z in (43.0, 36.5, 30.5, 25.0):
            self._tree(wall - 0.9, z, float(self._rng.uniform(5.5, 7.0)), None)
        z = plan.FACADE_Z + 0.3
        reach = min(self._camera.half_width_at(z) + 3, 80.0)
        self._hedge(-reach, wall - 0.2, z)

    def _hedge(self, x0: float, x1: float, z: float) -> None:
        top = 0.95
        if x1 <= x0:
            return
        outline = self._points([(x0, 0, z), (x0, top, z), (x1, top, z), (x1, 0, z)])
        self._fill(outline, (44, 60, 36), z)
        px = self._camera.scale_at(z)
        number = int(min((x1 - x0) * 260, 9000))
        self._leaves(
            np.stack([self._rng.uniform(x0, x1, number), self._rng.uniform(0.0, top + 0.05, number)], -1),
            z,
            px * 0.05,
            top,
            (70, 98, 50),
            z,
        )

    def _leaves(
        self,
        places: Points,
        z: float,
        size_px: float,
        top_m: float,
        colour: tuple[float, float, float],
        depth_m: float | None,
    ) -> None:
        """Paint leaves as discs of about `size_px` pixels radius at `places`, (N, 2) world points [X, Y] at depth `z`.

        Leaves are lighter towards the top and towards the left, where the light comes from.
        """
        low, span = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-6)
        lit = 0.55 + 0.55 * (places[:, 1] - low[1]) / span[1] - 0.18 * (places[:, 0] - low[0]) / span[0]
        lit += self._rng.normal(0, 0.13, len(places))
        points = self._camera.project(np.concatenate([places, np.full((len(places), 1), z)], 1))
        sizes = np.maximum(size_px * self._rng.uniform(0.6, 1.5, len(places)), 0.6)
        for k in np.argsort(lit):
            centre = np.rint(points[k] * 16).astype(int)
            shade = float(np.clip(lit[k], 0.3, 1.35))
            paint = (colour[0] * shade, colour[1] * shade, colour[2] * shade)
            cv2.circle(self.image, centre.tolist(), round(sizes[k] * 16), paint, -1, cv2.LINE_AA, 4)
            if depth_m is not None:
                cv2.circle(self.depth, centre.tolist(), round(sizes[k] * 16), depth_m, -1, cv2.LINE_8, 4)

    def _tree(self, x: float, z: float, top_m: float, depth_m: float | None) -> None:
        px, rng = self._camera.scale_at(z), self._rng
        trunk_m = 0.16 if top_m > 5 else 0.1
        bole = self._points(
            [
                (x - trunk_m, 0, z),
                (x - trunk_m * 0.7, top_m * 0.6, z),
                (x + trunk_m * 0.7, top_m * 0.6, z),
                (x + trunk_m, 0, z),
            ]
        )
        self._fill(bole, (74, 62, 52), depth_m)
        right = self._points([(x, 0, z), (x, top_m * 0.6, z), (x + trunk_m * 0.7, top_m * 0.6, z), (x + trunk_m, 0, z)])
        self._fill(right, (52, 44, 38))
        radius = top_m * 0.3
        centres = np.array([x, top_m - radius * 1.05]) + rng.normal(0, 1, (9, 2)) * [radius * 0.55, radius * 0.42]
        number = int(np.clip(px * 60, 300, 3200))
        which = rng.integers(0, len(centres), number)
        turn, reach = rng.uniform(0, 2 * np.pi, number), radius * 0.72 * np.sqrt(rng.uniform(0, 1, number))
        places = centres[which] + np.stack([np.cos(turn) * reach, np.sin(turn) * reach * 0.85], -1)
        haze = float(np.clip(z / 110, 0, 0.5))
        base = np.array([84.0, 112.0, 56.0]) * rng.uniform(0.85, 1.12)
        red, green, blue = base + (np.array([170.0, 182.0, 180.0]) - base) * haze
        self._leaves(places, z, px * 0.1, top_m, (red, green, blue), depth_m)

    def buildings(self) -> None:
        """Paint the houses on the right: along the side street, then along the main road."""
        wall_x, z0 = plan.SIDE_WALL_X[1], plan.FACADE_Z
        detail = max(self._camera.scale_at(z0), 6.0)
        z = plan.SIDE_END_Z
        while z > z0 + 0.1:
            length = min(float(self._rng.uniform(8, 12)), z - z0)
            if z - length - z0 < 5:
                length = z - z0
            top = float(self._rng.uniform(8, 11))
            texture = shift_light(facade(self._rng, length, top, min(detail, 24.0)), 0.8, 0)
            z_near = z - length
            self._warp(texture, [(wall_x, top, z_near), (wall_x, top, z), (wall_x, 0, z), (wall_x, 0, z_near)], z_near)
            z = z_near
        x, end = wall_x, self._camera.half_width_at(z0) + 1.0
        while x < end:
            width, top = float(self._rng.uniform(7.5, 10.0)), float(self._rng.uniform(8.5, 11.0))
            texture = facade(self._rng, width, top, detail)
            self._warp(texture, [(x, top, z0), (x + width, top, z0), (x + width, 0, z0), (x, 0, z0)], z0)
            x += width

    def street_furniture(self) -> None:
        """Paint the trees along the far pavement and the street lamps."""
        z = plan.FAR_KERB_Z + 0.45
        reach = self._camera.half_width_at(z)
        for x in np.arange(7.0, reach + 3, 6.5):
            self._tree(float(x), z, 4.6, z)
        for x in np.arange(-10.2, -reach - 3, -6.0):
            self._tree(float(x), z, 4.8, z)
        for x, lamp_z in ((-8.4, plan.FAR_KERB_Z + 0.4), (-3.3, plan.NEAR_KERB_Z - 0.25)):
            self._lamp(x, lamp_z)

    def _lamp(self, x: float, z: float) -> None:
        for half, colour in ((0.055, (66, 70, 72)), (0.02, (104, 108, 110))):
            self._fill(
                self._points([(x - half, 0, z), (x - half * 0.8, 7, z), (x + half * 0.8, 7, z), (x + half, 0, z)]),
                colour,
                z,
            )
        self._fill(
            self._points([(x - 0.1, 0, z), (x - 0.1, 0.7, z), (x + 0.1, 0.7, z), (x + 0.1, 0, z)]), (58, 62, 64), z
        )


def _ground_map(
    rng: np.random.Generator, x_range: tuple[float, float], z_range: tuple[float, float], detail: float
) -> Image:
    """The street from above: (rows, columns, 3) uint8 RGB with `detail` pixels per metre; row 0 is the far edge.

    `x_range` and `z_range` are the limits of the map in metres.
    """
    width, height = int((x_range[1] - x_range[0]) * detail), int((z_range[1] - z_range[0]) * detail)
    sheet = np.empty((height, width, 3), np.float32)
    sheet[:] = (158, 152, 144)

    def area(x0: float, x1: float, z0: float, z1: float) -> tuple[slice, slice]:
        """The rows and columns of the map that a rectangle covers, given in metres."""
        rows = np.clip([(z_range[1] - z1) * detail, (z_range[1] - z0) * detail], 0, height)
        columns = np.clip([(x0 - x_range[0]) * detail, (x1 - x_range[0]) * detail], 0, width)
        return slice(*np.rint(rows).astype(int)), slice(*np.rint(columns).astype(int))

    far = 1e3
    road: tuple[float, float, float] = (92, 93, 96)
    kerbs, walls = plan.SIDE_KERB_X, plan.SIDE_WALL_X
    # Joints between the slabs of the pavement.
    for x in np.arange(x_range[0] // 0.6 * 0.6, x_range[1], 0.6):
        sheet[area(x, x + 0.025, -far, far)] -= 16
    for z in np.arange(z_range[0] // 0.6 * 0.6, z_range[1], 0.6):
        sheet[area(-far, far, z, z + 0.035)] -= 16
    sheet[area(-far, walls[0], plan.FACADE_Z, far)] = (98, 116, 66)
    sheet[area(-far, far, plan.NEAR_KERB_Z, plan.FAR_KERB_Z)] = road
    sheet[area(*kerbs, plan.FAR_KERB_Z, far)] = road
    sheet[area(-far, far, plan.SIDE_END_Z + 0.5, plan.SIDE_END_Z + 7)] = road
    stone = (186, 182, 174)
    for z, back in ((plan.NEAR_KERB_Z, -0.2), (plan.FAR_KERB_Z, 0.2)):
        sheet[area(-far, far, min(z, z + back), max(z, z + back))] = stone
        sheet[area(-far, far, z - 0.09 if back > 0 else z, z if back > 0 else z + 0.09)] = (70, 70, 72)
    sheet[area(*kerbs, plan.FAR_KERB_Z - 0.1, plan.FAR_KERB_Z + 0.2)] = road
    for x, back in ((kerbs[0], -0.2), (kerbs[1], 0.2)):
        sheet[area(min(x, x + back), max(x, x + back), plan.FAR_KERB_Z, plan.SIDE_END_Z)] = stone
    paint = (206, 206, 200)
    for x in np.arange(-60.3, 60, 4.0):
        if not (kerbs[0] - 1 < x < plan.ZEBRA_X[1] + 0.3):
            sheet[area(x, x + 2.0, plan.ROAD_MIDDLE_Z - 0.07, plan.ROAD_MIDDLE_Z + 0.07)] = paint
    for z in np.arange(plan.NEAR_KERB_Z + 0.5, plan.FAR_KERB_Z - 0.6, 1.0):
        sheet[area(*plan.ZEBRA_X, z, z + 0.5)] = paint
    middle = (kerbs[0] + kerbs[1]) / 2
    for z in np.arange(plan.FAR_KERB_Z + 2.5, plan.SIDE_END_Z - 3, 5.0):
        sheet[area(middle - 0.06, middle + 0.06, z, z + 2.5)] = paint
    sheet[area(kerbs[0] + 0.3, middle - 0.3, plan.FAR_KERB_Z + 0.8, plan.FAR_KERB_Z + 1.15)] = paint
    for x, z in ((-6.5, 12.4), (6.9, 10.2), (-1.6, 9.6)):
        sheet[area(x, x + 0.62, z, z + 0.62)] = (66, 66, 68)
    # Worn patches, stains and fine grain of the asphalt.
    wear = cv2.resize(cloud_noise(rng, 48, 96), (width, height), interpolation=cv2.INTER_CUBIC)
    fine = rng.normal(0, 1, (height, width)).astype(np.float32)
    coarse = cv2.resize(rng.normal(0, 1, (height // 4 + 1, width // 4 + 1)).astype(np.float32), (width, height))
    sheet *= (1 + 0.34 * (wear - 0.5) + 0.035 * fine + 0.03 * coarse)[..., None]
    return np.clip(sheet, 0, 255).astype(np.uint8)
