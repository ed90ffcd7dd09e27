"""Training pictures of the synthetic scene, with exact annotations."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.random import Generator

from pipeline.synthetic import LABELS, Scene, SceneConfig
from pipeline.synthetic.scene import SceneFrame
from pipeline.training.picture import TrainingObject, TrainingPicture

NUM_SCENES = 24
"""A scene takes 2 s to prepare and a frame 0.05 s to draw, so that few scenes with many frames each are used."""

_SIZES_WH = ((960, 540), (768, 432), (640, 360), (640, 480))
_NUM_FRAMES = 500


class SyntheticPictures:
    """Random frames of NUM_SCENES scenes, drawn on demand."""

    def __init__(self, output_of: dict[str, int], labelled: frozenset[int]) -> None:
        """output_of: label -> output of the class head. labelled: outputs that count as labelled on the pictures."""
        self._output_of, self._labelled = output_of, labelled

    def pick(self, rng: Generator) -> TrainingPicture:
        scene = _scene(int(rng.integers(NUM_SCENES)))
        return scene_picture(scene.render(int(rng.integers(len(scene)))), self._output_of, self._labelled)


def scene_picture(frame: SceneFrame, output_of: dict[str, int], labelled: frozenset[int]) -> TrainingPicture:
    """A frame with its objects whose label is in `output_of`."""
    objects = []
    for item in frame.objects:
        if item.label in output_of:
            x1, y1, x2, y2 = (int(edge) for edge in item.box_xyxy)
            mask = (frame.instance_map[y1:y2, x1:x2] == item.object_id).astype(np.uint8) * 255
            objects.append(TrainingObject(output_of[item.label], x1, y1, mask, ignored=False))
    return TrainingPicture(frame.image, tuple(objects), labelled)


def can_be_mixed_in(labels: set[str]) -> bool:
    """Whether the data has every class that the scene shows. A missing class would be trained as background."""
    return set(LABELS.values()) <= labels


@functools.lru_cache(maxsize=NUM_SCENES)
def _scene(index: int) -> Scene:
    """Scene number `index`: the same in every run."""
    rng = np.random.default_rng([41, index])
    width, height = _SIZES_WH[int(rng.integers(len(_SIZES_WH)))]
    counts = {"num_people": int(rng.integers(2, 12)), "num_cars": int(rng.integers(1, 6))}
    config = SceneConfig(
        width=width,
        height=height,
        num_frames=_NUM_FRAMES,
        num_bicycles=int(rng.integers(0, 4)),
        seed=1000 + index,
        noise=float(rng.uniform(0, 5)),
        **counts,
    )
    cv2.setNumThreads(0)
    return Scene(config)
