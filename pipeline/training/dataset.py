"""The training data set: order of the pictures and their augmentation, as a function of seed and position alone."""

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

from ops.mask_format import decode_rle, rle_area
from pipeline.coco.annotations import Annotation
from pipeline.coco.data import CocoData, PictureRecord
from pipeline.models.registry import ModelSpec, input_hw
from pipeline.source.picture_files import read_rgb
from pipeline.training.augment import plain_ground, random_view, with_pasted_objects
from pipeline.training.camera_noise import with_camera_noise
from pipeline.training.clutter import with_clutter
from pipeline.training.picture import TrainingObject, TrainingPicture
from pipeline.training.sample import Sample, to_sample
from pipeline.training.synthetic_pictures import SyntheticPictures
from pipeline.training.top_view import KINDS, with_vehicles

# Repeat-factor sampling (Gupta et al., LVIS, 2019): a class that occurs on a smaller share f of the pictures is shown
# more often, by the factor sqrt(0.25 / f).
_FREQUENT_CLASS_SHARE = 0.25
# Shares of all samples that show objects on an empty ground, as a camera above a car park sees them: objects cut out of
# other pictures, and vehicles drawn in top view.
_SHARE_PASTED_ON_GROUND = 0.15
_SHARE_TOP_VIEW = 0.1
# Probability of unlabelled clutter in front of an empty ground, and in front of any other picture.
_SHARE_CLUTTERED_GROUND = 0.7
_SHARE_CLUTTERED = 0.2
# Smallest mask of an object that is cut out and pasted into other pictures.
_MIN_DONOR_AREA_PX = 600

# Keys of the independent random number streams.
_ORDER_STREAM, _SAMPLE_STREAM = 0, 1


@dataclass(frozen=True, slots=True)
class Mixture:
    """How samples are made.

    seed
    crop_hw           height and width of every sample in pixels
    synthetic_share   share of samples from the synthetic scene, 0 to 1
    """

    seed: int
    crop_hw: tuple[int, int]
    synthetic_share: float


class TrainingDataset(Dataset[Sample]):
    """An endless sequence of samples. The same position gives the same sample in every process and in every run."""

    def __init__(self, data: CocoData, spec: ModelSpec, mixture: Mixture) -> None:
        self._data, self._spec, self._mixture = data, spec, mixture
        self._output_of = output_of_category(data, spec)
        self._all_outputs = frozenset(self._output_of.values())
        self._num_outputs = len(spec.head_class_ids) + 1
        labels = {label: output for (_, label), output in zip(spec.categories, self._outputs_in_order(), strict=True)}
        self._synthetic = SyntheticPictures(labels, self._all_outputs)
        self._vehicles = {kind: labels[kind] for kind in KINDS if kind in labels}
        self._repeats = repeat_factors(data)
        self._donors = _donors(data)

    def _outputs_in_order(self) -> Iterator[int]:
        """The class head's output of each category of the model."""
        return (self._spec.head_class_ids.index(class_id) + 1 for class_id, _ in self._spec.categories)

    @property
    def epoch_length(self) -> int:
        """The number of samples of an epoch: the sum of the repeat factors of all pictures."""
        return math.ceil(sum(self._repeats))

    def __getitem__(self, position: int) -> Sample:
        cv2.setNumThreads(0)  # leave the cores to the network
        mixture = self._mixture
        rng = np.random.default_rng([mixture.seed, _SAMPLE_STREAM, position])
        draw = float(rng.random()) - mixture.synthetic_share
        if draw < 0:
            picture = self._synthetic.pick(rng)
            picture = random_view(rng, picture, self._scale(picture.hw), mixture.crop_hw)
        elif draw < _SHARE_PASTED_ON_GROUND and self._donors:
            picture = with_pasted_objects(rng, self._ground(rng), self._donor, share=1.0)
        elif draw < _SHARE_PASTED_ON_GROUND + _SHARE_TOP_VIEW and self._vehicles:
            picture = with_vehicles(rng, self._ground(rng), self._vehicles)
            if self._donors:
                picture = with_pasted_objects(rng, picture, self._donor)
        else:
            picture = self._read(self._data.pictures[self._index(position)])
            picture = random_view(rng, picture, self._scale(picture.hw), mixture.crop_hw)
            if rng.random() < _SHARE_CLUTTERED:
                picture = with_clutter(rng, picture)
            if self._donors:
                picture = with_pasted_objects(rng, picture, self._donor)
        return to_sample(
            TrainingPicture(with_camera_noise(rng, picture.rgb), picture.objects, picture.labelled), self._num_outputs
        )

    def _ground(self, rng: Generator) -> TrainingPicture:
        ground = plain_ground(rng, self._mixture.crop_hw, self._all_outputs)
        return with_clutter(rng, ground) if rng.random() < _SHARE_CLUTTERED_GROUND else ground

    def _index(self, position: int) -> int:
        """The index of the picture at a position. An epoch permutes the pictures, some of which are repeated."""
        epoch, offset = divmod(position, self.epoch_length)
        return int(_epoch_order(self._repeats, self._mixture.seed, epoch, self.epoch_length)[offset])

    def _scale(self, hw: tuple[int, int]) -> float:
        """The scale at which the engine sees a picture of this size."""
        return input_hw(self._spec, hw)[0] / hw[0]

    def _read(self, record: PictureRecord) -> TrainingPicture:
        objects = (self._instance(annotation, (record.height, record.width)) for annotation in record.annotations)
        return TrainingPicture(
            read_rgb(record.path, (record.height, record.width)),
            tuple(item for item in objects if item is not None),
            frozenset(self._output_of[category_id] for category_id in record.labelled),
        )

    def _instance(self, annotation: Annotation, hw: tuple[int, int]) -> TrainingObject | None:
        output = self._output_of[annotation.category_id]
        if annotation.rle is None:
            x1, y1, x2, y2 = (round(edge) for edge in annotation.box_xyxy)
            box = np.full((y2 - y1, x2 - x1), 255, np.uint8)
            return TrainingObject(output, x1, y1, box, annotation.is_crowd) if box.size else None
        mask = np.ascontiguousarray(decode_rle(annotation.rle["counts"], hw)).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if width == 0:
            return None
        return TrainingObject(output, x, y, mask[y : y + height, x : x + width] * np.uint8(255), annotation.is_crowd)

    def _donor(self, rng: Generator, labelled: frozenset[int]) -> tuple[TrainingPicture, TrainingObject, float] | None:
        """A random object to paste, of a labelled class. Every class has the same probability, so rare ones gain."""
        categories = sorted(category_id for category_id in self._donors if self._output_of[category_id] in labelled)
        if not categories:
            return None
        indices = self._donors[categories[int(rng.integers(len(categories)))]]
        picture_idx, annotation_idx = indices[int(rng.integers(len(indices)))]
        record = self._data.pictures[picture_idx]
        hw = (record.height, record.width)
        item = self._instance(record.annotations[annotation_idx], hw)
        if item is None:
            return None
        return TrainingPicture(read_rgb(record.path, hw), (), frozenset()), item, self._scale(hw)


class BatchPositions(Sampler[list[int]]):
    """The positions of each batch, from step `first_step` on, without end."""

    def __init__(self, first_step: int, batch: int) -> None:
        self._first_step, self._batch = first_step, batch

    def __iter__(self) -> Iterator[list[int]]:
        step = self._first_step
        while True:
            yield list(range(step * self._batch, (step + 1) * self._batch))
            step += 1


def output_of_category(data: CocoData, spec: ModelSpec) -> dict[int, int]:
    """Category id of the data -> output of the class head, by the name of the category."""
    class_id_of = {label: class_id for class_id, label in spec.categories}
    return {category_id: spec.head_class_ids.index(class_id_of[label]) + 1 for category_id, label in data.categories}


def repeat_factors(data: CocoData) -> tuple[float, ...]:
    """The repeat factor of each picture: how often it occurs in an epoch on average, at least 1."""
    num_pictures_with = Counter(
        category_id
        for record in data.pictures
        for category_id in {entry.category_id for entry in record.annotations if not entry.is_crowd}
    )
    factors = {
        category_id: max(1.0, math.sqrt(_FREQUENT_CLASS_SHARE * len(data.pictures) / count))
        for category_id, count in num_pictures_with.items()
    }
    return tuple(
        max((factors[entry.category_id] for entry in record.annotations if not entry.is_crowd), default=1.0)
        for record in data.pictures
    )


def _epoch_order(repeats: Sequence[float], seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    """`length` picture indices in random order.

    The fractional part of a repeat factor is the probability of one more repetition. Missing indices are drawn at
    random from all pictures.
    """
    rng = np.random.default_rng([seed, _ORDER_STREAM, epoch])
    factors = np.asarray(repeats)
    counts = np.floor(factors + rng.random(len(factors))).astype(np.int64)
    order = rng.permutation(np.repeat(np.arange(len(factors)), counts))
    return np.concatenate([order, rng.integers(0, len(factors), max(length - len(order), 0))])[:length]


def _donors(data: CocoData) -> dict[int, list[tuple[int, int]]]:
    """Category id -> (picture index, annotation index) of the objects that can be pasted into other pictures."""
    donors: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for picture_idx, record in enumerate(data.pictures):
        for annotation_idx, entry in enumerate(record.annotations):
            if entry.rle is not None and not entry.is_crowd and rle_area(entry.rle["counts"]) >= _MIN_DONOR_AREA_PX:
                donors[entry.category_id].append((picture_idx, annotation_idx))
    return dict(donors)
