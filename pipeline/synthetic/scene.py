"""The scene: its parameters, its frames and their ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.synthetic.background import paint_background
from pipeline.synthetic.camera import Camera
from pipeline.synthetic.draw import Box, Sprite, union_area_px
from pipeline.synthetic.figure import Layer
from pipeline.synthetic.noise import grain
from pipeline.synthetic.traffic import Visit, plan_visits

LABELS = {1: "person", 2: "bicycle", 3: "car"}

MIN_SIDE_PX = 16
MAX_SIDE_PX = 8192

_SHADOW_STEP = 2
"""shadows are drawn at this fraction of the picture's size, as they are blurred anyway"""
_NOISE_MARGIN_PX = 64
"""each frame crops its noise from a larger sheet, at a random offset of up to this many pixels"""


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """The parameters of a scene. Raises ValueError if a value is out of range.

    width, height   size in pixels, even, from MIN_SIDE_PX to MAX_SIDE_PX
    fps             frames per second, above 0, at most 1000
    num_frames      length in frames, at least 1
    num_people, num_cars, num_bicycles
                    number of figures in the street at any time, some of them out of view. A figure that leaves is
                    replaced by another. The rider of a bicycle is an additional person
    seed            seed of the random generators; the same parameters give the same pixels
    noise           standard deviation of the sensor noise in grey levels, 0 to 50
    """

    width: int = 960
    height: int = 540
    fps: float = 25.0
    num_frames: int = 250
    num_people: int = 6
    num_cars: int = 3
    num_bicycles: int = 1
    seed: int = 92
    noise: float = 2.0

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            side = getattr(self, name)
            if side % 2 or not MIN_SIDE_PX <= side <= MAX_SIDE_PX:
                raise ValueError(f"{name} must be even and from {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels, got {side}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, got {self.fps}")
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {self.num_frames}")
        for name in ("num_people", "num_cars", "num_bicycles", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.noise <= 50:
            raise ValueError(f"noise must be from 0 to 50 grey levels, got {self.noise}")


@dataclass(frozen=True, slots=True)
class SceneObject:
    """The ground truth of one object that is visible in one frame.

    object_id    positive, the same in all frames, unique within the scene
    class_id     COCO category: 1 person, 2 bicycle, 3 car
    box_xyxy     bounding box of the visible pixels in continuous coordinates: x2 is the last column + 1
    visibility   number of visible pixels, divided by the number of pixels without occlusion; above 0, at most 1
    area_px      number of visible pixels
    """

    object_id: int
    class_id: int
    label: str
    box_xyxy: tuple[float, float, float, float]
    visibility: float
    area_px: int


@dataclass(frozen=True, slots=True)
class SceneFrame:
    """One frame and its ground truth.

    image          (H, W, 3) uint8 RGB
    instance_map   (H, W) uint16, the id of the object that is visible at each pixel, 0 for none
    objects        the visible objects in ascending order of their ids
    """

    index: int
    pts_s: float
    image: NDArray[np.uint8]
    instance_map: NDArray[np.uint16]
    objects: tuple[SceneObject, ...]

    def mask(self, object_id: int) -> NDArray[np.bool_]:
        """Mask (H, W) bool of the visible pixels of one object; all False if the object is not in the picture."""
        visible: NDArray[np.bool_] = self.instance_map == object_id
        return visible


class Scene:
    """A street with people, cars and bicycles. Frames can be rendered in any order."""

    def __init__(self, config: SceneConfig | None = None) -> None:
        self.config = config or SceneConfig()
        c = self.config
        self._camera = Camera(c.width, c.height)
        traffic_rng, look_rng = (np.random.default_rng([c.seed, part]) for part in range(2))
        counts = (c.num_people, c.num_cars, c.num_bicycles)
        self._visits = plan_visits(self._camera, c.num_frames / c.fps, counts, traffic_rng)
        self._background = paint_background(self._camera, look_rng)
        self._grain = grain(look_rng, c.height + _NOISE_MARGIN_PX, c.width + _NOISE_MARGIN_PX, c.noise)
        weave = 128 + grain(look_rng, c.height, c.width, 2.5)
        self._texture = np.clip(weave, 0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return self.config.num_frames

    def __iter__(self) -> Iterator[SceneFrame]:
        return (self.render(index) for index in range(len(self)))

    def render(self, index: int) -> SceneFrame:
        """Render a frame. Raises IndexError if `index` is not from 0 to len(self) - 1."""
        image, instance_map, objects = self._compose(index)
        return SceneFrame(index, index / self.config.fps, self._add_sensor_effects(image, index), instance_map, objects)

    def objects_at(self, index: int) -> tuple[SceneObject, ...]:
        """The ground truth of frame `index`. Raises IndexError as `render` does."""
        return self._compose(index)[2]

    def _compose(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint16], tuple[SceneObject, ...]]:
        if not 0 <= index < len(self):
            raise IndexError(f"frame index must be from 0 to {len(self) - 1}, got {index}")
        time_s = index / self.config.fps
        visits = [visit for visit in self._visits if visit.start_s <= time_s <= visit.end_s]
        image = self._background.image.copy()
        self._cast_shadows(image, visits, time_s)
        instance_map = np.zeros(image.shape[:2], np.uint16)
        entries: list[tuple[Visit, Layer]] = []
        for visit in visits:
            layers = visit.figure.layers(visit.pose(time_s), self._camera, self._texture)
            entries += [(visit, layer) for layer in layers]
        solid_masks: dict[int, list[tuple[Box, NDArray[np.bool_]]]] = {}
        classes: dict[int, int] = {}
        # From far to near. The layers of one figure have the same depth, and the sort keeps their order.
        for visit, layer in sorted(entries, key=lambda entry: -entry[1].depth_m):
            object_id = visit.object_ids[layer.member]
            classes[object_id] = visit.figure.class_ids[layer.member]
            solid_masks.setdefault(object_id, []).append((layer.sprite.box, layer.sprite.solid))
            self._paste(image, instance_map, layer, object_id)
        return image, instance_map, _describe(instance_map, solid_masks, classes)

    def _paste(self, image: NDArray[np.uint8], instance_map: NDArray[np.uint16], layer: Layer, object_id: int) -> None:
        sprite: Sprite = layer.sprite
        x0, y0, x1, y1 = sprite.box
        seen = self._background.depth_m[y0:y1, x0:x1] > layer.depth_m
        alpha, rgb, solid = sprite.alpha, sprite.rgb, sprite.solid
        if not seen.all():
            cover = seen.astype(np.uint8)
            alpha, solid = alpha * cover, solid & seen
            rgb = rgb * cover[..., None]
        below = image[y0:y1, x0:x1]
        clear = 255 - alpha
        below[:] = cv2.add(cv2.multiply(below, cv2.merge([clear, clear, clear]), scale=1 / 255), rgb)
        instance_map[y0:y1, x0:x1][solid] = object_id

    def _cast_shadows(self, image: NDArray[np.uint8], visits: list[Visit], time_s: float) -> None:
        """Darken the ground by the cast shadows and, directly below each object, by its contact shadow."""
        height, width = image.shape[0] // _SHADOW_STEP, image.shape[1] // _SHADOW_STEP
        sun, contact = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)

        def fill(sheet: NDArray[np.uint8], outlines: list[NDArray[np.float64]], level: float) -> None:
            for outline in outlines:
                fixed = np.rint(np.clip(outline, -1e5, 1e5) * (16 / _SHADOW_STEP)).astype(np.int32)
                cv2.fillPoly(sheet, [fixed], level, cv2.LINE_AA, 4)

        for visit in visits:
            pose = visit.pose(time_s)
            fill(sun, visit.figure.shadow(pose, self._camera), 92)
            fill(contact, visit.figure.contacts(pose, self._camera), 120)
        unit = image.shape[0] / 540 / _SHADOW_STEP
        sun = cv2.GaussianBlur(sun, (0, 0), 2.2 * unit + 0.2)
        contact = cv2.GaussianBlur(contact, (0, 0), 5.0 * unit + 0.2)
        light = 255 - cv2.add(sun, contact)
        light = cv2.resize(light, (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
        light[np.isfinite(self._background.depth_m)] = 255
        rows = np.flatnonzero(light.min(axis=1) < 255)
        if len(rows) == 0:
            return
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        strip = light[part]
        image[part] = cv2.multiply(image[part], cv2.merge([strip, strip, strip]), scale=1 / 255)

    def _add_sensor_effects(self, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        """The image with the blur of the lens and the noise of the sensor, which differs from frame to frame."""
        soft = cv2.GaussianBlur(image, (3, 3), 0.45 + 0.1 * image.shape[0] / 540)
        if self.config.noise == 0:
            return np.asarray(soft, np.uint8)
        rng = np.random.default_rng([self.config.seed, 2, index])
        height, width = image.shape[:2]
        y, x = rng.integers(0, _NOISE_MARGIN_PX, 2)
        noise = self._grain[y : y + height, x : x + width]
        if rng.random() < 0.5:
            noise = -noise
        return np.asarray(cv2.add(soft, cv2.merge([noise, noise, noise]), dtype=cv2.CV_8U), np.uint8)


def _describe(
    instance_map: NDArray[np.uint16],
    solid_masks: dict[int, list[tuple[Box, NDArray[np.bool_]]]],
    classes: dict[int, int],
) -> tuple[SceneObject, ...]:
    """The visible objects. `solid_masks` holds the masks of each object's sprites, without occlusion by others."""
    objects = []
    for object_id in sorted(solid_masks):
        boxes = np.array([box for box, _ in solid_masks[object_id]])
        x0, y0, x1, y1 = boxes[:, 0].min(), boxes[:, 1].min(), boxes[:, 2].max(), boxes[:, 3].max()
        mask = instance_map[y0:y1, x0:x1] == object_id
        area = int(np.count_nonzero(mask))
        if area == 0:
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (float(x0 + columns[0]), float(y0 + rows[0]), float(x0 + columns[-1] + 1), float(y0 + rows[-1] + 1))
        class_id = classes[object_id]
        objects.append(
            SceneObject(object_id, class_id, LABELS[class_id], box, area / union_area_px(solid_masks[object_id]), area)
        )
    return tuple(objects)


def ground_truth(scene: Scene) -> list[tuple[SceneObject, ...]]:
    """The visible objects of every frame."""
    return [scene.objects_at(index) for index in range(len(scene))]
