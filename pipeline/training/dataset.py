"""Which pictures come when, and each of them ready for the loss: all of it a function of seed and position."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from ops.masks import decode_rle, rle_area
from pipeline.coco.annotations import Annotation
from pipeline.coco.data import CocoData, PictureRecord
from pipeline.models.registry import ModelSpec, input_hw
from pipeline.source.picture_files import read_rgb
from pipeline.training.augment import plain_ground, random_view, with_pasted
from pipeline.training.camera_noise import photographed
from pipeline.training.clutter import with_clutter
from pipeline.training.picture import Instance, Picture, Sample, to_sample
from pipeline.training.synthetic_pictures import SyntheticPictures
from pipeline.training.top_view import KINDS, with_vehicles

# Pictures of classes that are on fewer than this share of all are shown more often, by the root of what they lack
# (repeat-factor sampling, Gupta et al., LVIS, 2019).
_FREQUENT_SHARE = 0.25
# Of all: pictures of objects alone on a plain ground, as a camera above a car park shows them; objects of other
# pictures, or vehicles drawn as they are seen from above.
_SHARE_PLAIN_GROUND = 0.15
_SHARE_SEEN_FROM_ABOVE = 0.1
# Of pictures on such a ground and of all others: those with unlabelled things before it.
_SHARE_CLUTTERED_GROUND = 0.7
_SHARE_CLUTTERED = 0.2
# Objects worth being pasted elsewhere, in pixels of their picture.
_MIN_DONOR_AREA_PX = 600

# streams of random numbers
_ORDER, _SAMPLE = 0, 1


@dataclass(frozen=True, slots=True)
class Mixture:
    """seed; crop_hw of every sample in pixels; synthetic_share, of all pictures, 0 to 1."""

    seed: int
    crop_hw: tuple[int, int]
    synthetic_share: float


class TrainingPictures(Dataset[Sample]):
    """Sample number `position` of an endless row. The same position is the same sample, whoever asks and when."""

    def __init__(self, data: CocoData, spec: ModelSpec, mixture: Mixture) -> None:
        self._data, self._spec, self._mixture = data, spec, mixture
        self._output_of = output_of_category(data, spec)
        self._all_outputs = frozenset(self._output_of.values())
        self._num_outputs = len(spec.head_class_ids) + 1
        labels = {label: output for (_, label), output in zip(spec.categories, self._all_in_order(), strict=True)}
        self._synthetic = SyntheticPictures(labels, self._all_outputs)
        self._vehicles = {kind: labels[kind] for kind in KINDS if kind in labels}
        self._repeats = repeat_factors(data)
        self._donors = _donors(data)

    def _all_in_order(self) -> Iterator[int]:
        return (self._spec.head_class_ids.index(class_id) + 1 for class_id, _ in self._spec.categories)

    @property
    def epoch_length(self) -> int:
        """Samples until every picture was shown about as often as it should."""
        return math.ceil(sum(self._repeats))

    def __getitem__(self, position: int) -> Sample:
        cv2.setNumThreads(0)  # the processor's cores belong to the network
        mixture = self._mixture
        rng = np.random.default_rng([mixture.seed, _SAMPLE, position])
        kind = float(rng.random()) - mixture.synthetic_share
        if kind < 0:
            picture = self._synthetic.pick(rng)
            picture = random_view(rng, picture, self._scale(picture.hw), mixture.crop_hw)
        elif kind < _SHARE_PLAIN_GROUND and self._donors:
            picture = with_pasted(rng, self._ground(rng), self._donor, share=1.0)
        elif kind < _SHARE_PLAIN_GROUND + _SHARE_SEEN_FROM_ABOVE and self._vehicles:
            picture = with_vehicles(rng, self._ground(rng), self._vehicles)
            if self._donors:
                picture = with_pasted(rng, picture, self._donor)
        else:
            picture = self._load(self._data.pictures[self._index(position)])
            picture = random_view(rng, picture, self._scale(picture.hw), mixture.crop_hw)
            if rng.random() < _SHARE_CLUTTERED:
                picture = with_clutter(rng, picture)
            if self._donors:
                picture = with_pasted(rng, picture, self._donor)
        return to_sample(
            Picture(photographed(rng, picture.rgb), picture.instances, picture.labelled), self._num_outputs
        )

    def _ground(self, rng: Generator) -> Picture:
        ground = plain_ground(rng, self._mixture.crop_hw, self._all_outputs)
        return with_clutter(rng, ground) if rng.random() < _SHARE_CLUTTERED_GROUND else ground

    def _index(self, position: int) -> int:
        """Of the picture: each epoch is a permutation of the pictures, those of rare classes more than once."""
        epoch, place = divmod(position, self.epoch_length)
        return int(_epoch_order(self._repeats, self._mixture.seed, epoch, self.epoch_length)[place])

    def _scale(self, hw: tuple[int, int]) -> float:
        """At which the engine looks at a picture of this size."""
        return input_hw(self._spec, hw)[0] / hw[0]

    def _load(self, record: PictureRecord) -> Picture:
        instances = (self._instance(annotation, (record.height, record.width)) for annotation in record.annotations)
        return Picture(
            read_rgb(record.path, (record.height, record.width)),
            tuple(instance for instance in instances if instance is not None),
            frozenset(self._output_of[category_id] for category_id in record.labelled),
        )

    def _instance(self, annotation: Annotation, hw: tuple[int, int]) -> Instance | None:
        output = self._output_of[annotation.category_id]
        if annotation.rle is None:
            x1, y1, x2, y2 = (round(edge) for edge in annotation.box_xyxy)
            box = np.full((y2 - y1, x2 - x1), 255, np.uint8)
            return Instance(output, x1, y1, box, annotation.is_crowd) if box.size else None
        mask = np.ascontiguousarray(decode_rle(annotation.rle["counts"], hw)).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if width == 0:
            return None
        return Instance(output, x, y, mask[y : y + height, x : x + width] * np.uint8(255), annotation.is_crowd)

    def _donor(self, rng: Generator, labelled: frozenset[int]) -> tuple[Picture, Instance, float] | None:
        """Any class with the same chance, so that rare ones are seen more often."""
        categories = sorted(category_id for category_id in self._donors if self._output_of[category_id] in labelled)
        if not categories:
            return None
        places = self._donors[categories[int(rng.integers(len(categories)))]]
        picture_idx, annotation_idx = places[int(rng.integers(len(places)))]
        record = self._data.pictures[picture_idx]
        hw = (record.height, record.width)
        instance = self._instance(record.annotations[annotation_idx], hw)
        if instance is None:
            return None
        return Picture(read_rgb(record.path, hw), (), frozenset()), instance, self._scale(hw)


class Positions(Sampler[list[int]]):
    """The positions of each batch, from a step on, without end."""

    def __init__(self, first_step: int, batch: int) -> None:
        self._first_step, self._batch = first_step, batch

    def __iter__(self) -> Iterator[list[int]]:
        step = self._first_step
        while True:
            yield list(range(step * self._batch, (step + 1) * self._batch))
            step += 1


def output_of_category(data: CocoData, spec: ModelSpec) -> dict[int, int]:
    """The class head's output of each category of the data, by the label."""
    class_id_of = {label: class_id for class_id, label in spec.categories}
    return {category_id: spec.head_class_ids.index(class_id_of[label]) + 1 for category_id, label in data.categories}


def repeat_factors(data: CocoData) -> tuple[float, ...]:
    """How often each picture is shown in an epoch, at least 1."""
    shown = Counter(
        category_id
        for record in data.pictures
        for category_id in {entry.category_id for entry in record.annotations if not entry.is_crowd}
    )
    wanted = {
        category_id: max(1.0, math.sqrt(_FREQUENT_SHARE * len(data.pictures) / count))
        for category_id, count in shown.items()
    }
    return tuple(
        max((wanted[entry.category_id] for entry in record.annotations if not entry.is_crowd), default=1.0)
        for record in data.pictures
    )


def _epoch_order(repeats: Sequence[float], seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """`length` indices: a share of repeats below one is left to chance, and what is missing is drawn again."""
    rng = np.random.default_rng([seed, _ORDER, epoch])
    factors = np.asarray(repeats)
    counts = np.floor(factors + rng.random(len(factors))).astype(np.int64)
    order = rng.permutation(np.repeat(np.arange(len(factors)), counts))
    return np.concatenate([order, rng.integers(0, len(factors), max(length - len(order), 0))])[:length]


def _donors(data: CocoData) -> dict[int, list[tuple[int, int]]]:
    """(picture, annotation) indices of objects with masks that are large enough, by category."""
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for picture_idx, record in enumerate(data.pictures):
        for annotation_idx, entry in enumerate(record.annotations):
            if entry.rle is not None and not entry.is_crowd and rle_area(entry.rle["counts"]) >= _MIN_DONOR_AREA_PX:
                found[entry.category_id].append((picture_idx, annotation_idx))
    return dict(found)
