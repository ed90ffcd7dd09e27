"""`evaluate coco`: the accuracy of a model on pictures with ground truth in COCO's format."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.coco.annotations import Annotation
from pipeline.coco.average_precision import CocoMetrics, coco_entry, coco_metrics
from pipeline.coco.data import CocoData, PictureRecord, read_coco
from pipeline.coco.ground_truth import ground_truth_of_data
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.contract.config import JobConfig
from pipeline.contract.defaults import CONF
from pipeline.errors import SourceError, UsageError
from pipeline.evaluation.class_masks import ClassMasks
from pipeline.evaluation.comparison_sheet import SheetRow, write_sheet
from pipeline.evaluation.evaluated_model import describe, evaluated_spec, load_engine, shared_classes
from pipeline.evaluation.matching import Matching, confident_detections, crowd_flags, match_objects, pairwise_ious
from pipeline.evaluation.progress import Progress, no_progress
from pipeline.evaluation.report_files import json_metrics, json_number, make_folder, worst_and_best, write_json
from pipeline.models.registry import ModelSpec, bus_hw
from pipeline.source import Converter, Picture
from pipeline.source.picture import UPRIGHT
from pipeline.source.picture_files import check_picture, read_rgb

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoSettings:
    """What to evaluate.

    data     COCO JSON file, or a folder with one
    images   folder that the file names are relative to; None: see `read_coco`
    num      number of pictures, evenly spread over the data; None: all
    config   model, weights, device, precision and conf
    output   folder for metrics, detections and sheets; None: no files
    """

    data: Path
    images: Path | None
    num: int | None
    config: JobConfig
    output: Path | None


@dataclass(frozen=True, slots=True)
class _EvaluatedPicture:
    """One picture. The class ids of its detections are category ids of the data.

    found       all detections
    confident   those with a score of at least conf; `matching` is theirs
    """

    record: PictureRecord
    annotations: Sequence[Annotation]
    found: Detections
    confident: Detections
    matching: Matching


def evaluate_coco(
    settings: CocoSettings, progress: Progress = no_progress, warn: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Evaluates a model and returns the metrics, as `metrics.json` has them.

    The pictures are converted as those of a folder of pictures in the pipeline. A picture that turns out to be damaged
    when it is decoded is left out. With settings.output, metrics.json, detections.json and the sheets worst.png and
    best.png are written.

    progress   shows how far the evaluation is
    warn       receives a line for each kind of annotation that is skipped, and for each picture that is left out

    Raises MaskStreamError. Weights, annotations and the sizes of all pictures are checked before the model is loaded.
    """
    spec = evaluated_spec(settings.config)
    data = read_coco(settings.data, need_masks=False, folder=_folder(settings.images))
    for line in data.warnings:
        warn(line)
    category_of = shared_classes(spec, data.categories)
    if not category_of:
        raise UsageError(
            f"data {data.path}: model {spec.name} knows none of its categories "
            f"({', '.join(label for _, label in data.categories)}); it knows {', '.join(spec.labels.values())}"
        )
    labels = {category_id: label for category_id, label in data.categories if category_id in category_of.values()}
    records = _evenly_spread(data.pictures, settings.num)
    annotations = {
        record.image_id: [entry for entry in record.annotations if entry.category_id in labels] for record in records
    }
    if _num_objects(annotations.values()) == 0:
        raise UsageError(f"data {data.path}: expected annotations of {', '.join(labels.values())}, got none")
    for record in records:
        check_picture(record.path, (record.height, record.width))
    no_masks = _why_no_masks(spec, data, annotations)
    output = make_folder(settings.output)
    engine = load_engine(settings.config)

    conf = CONF if settings.config.conf is None else settings.config.conf
    class_masks = ClassMasks(labels, conf)
    detector = _Detector(engine, category_of, with_masks=no_masks is None)
    pictures: list[_EvaluatedPicture] = []
    damaged: list[SourceError] = []
    with progress("pictures", len(records)) as step:
        for record in records:
            own = annotations[record.image_id]
            try:
                found = detector.detections(record)
            except SourceError as error:
                damaged.append(error)
                warn(f"{error}; the picture is left out")
            else:
                if no_masks is None:
                    class_masks.add(own, found, record.labelled)
                pictures.append(_evaluated(record, own, found, conf))
            step()
    if not pictures:
        raise damaged[0]

    coco = ground_truth_of_data(data, labels, with_masks=no_masks is None)
    precision = coco_metrics(coco, {picture.record.image_id: picture.found for picture in pictures})
    truths = [picture.annotations for picture in pictures]
    metrics = describe(engine, settings.config) | {
        "data": os.fsencode(data.path).decode(errors="replace"),
        "num_pictures": len(pictures),
        "num_damaged_pictures": len(damaged),
        "num_objects": _num_objects(truths),
        "conf": conf,
        "left_out_classes": [label for category_id, label in data.categories if category_id not in labels],
        "no_masks": no_masks,
        "box": json_metrics(precision.boxes),
        "mask": json_metrics(precision.masks),
        "classes": _class_metrics(labels, truths, precision, class_masks),
        "mean_iou": _mean([counts.iou for counts in class_masks.counts.values()]),
        "mean_dice": _mean([counts.dice for counts in class_masks.counts.values()]),
        "mean_quality": _mean([picture.matching.panoptic_quality for picture in pictures]),
        "pictures_per_s": round(len(pictures) / detector.total_s, 3),
        "engine_ms": round(1000 * statistics.median(detector.engine_s), 2),
    }
    if output is not None:
        write_json(output / "metrics.json", metrics)
        detections = (
            coco_entry(picture.record.image_id, picture.found, index)
            for picture in pictures
            for index in range(len(picture.found))
        )
        write_json(output / "detections.json", list(detections))
        _write_sheets(output, pictures, labels, settings, conf)
    return metrics


class _Detector:
    """Runs the engine on pictures, converted as the pipeline converts them, and measures the time.

    engine_s   seconds that the engine needed for each picture
    total_s    seconds for all pictures, reading and conversion included, without the warm-up
    """

    def __init__(self, engine: Engine, category_of: dict[int, int], *, with_masks: bool) -> None:
        """category_of: class id of the model -> category id of the data, for the classes to look for."""
        self._engine = engine
        self._category_of = category_of
        self._with_masks = with_masks
        self._converter = Converter()
        self.engine_s: list[float] = []
        self.total_s = 0.0

    def detections(self, record: PictureRecord) -> Detections:
        """The detections on a picture; their class ids are category ids. Raises SourceError for a damaged file."""
        start_s = time.perf_counter()
        frame = self._frame(read_rgb(record.path, (record.height, record.width)))
        if not self.engine_s:
            self._engine.warm_up([(frame.height, frame.width)])
            start_s = time.perf_counter()
        engine_start_s = time.perf_counter()
        (found,) = self._engine.infer([frame], min_scores=[0.0], class_ids=[list(self._category_of)])
        end_s = time.perf_counter()
        self.engine_s.append(end_s - engine_start_s)
        self.total_s += end_s - start_s
        category_ids = [self._category_of[class_id] for class_id in found.class_ids.tolist()]
        return replace(
            found,
            class_ids=np.array(category_ids, np.int32),
            rle_counts=found.rle_counts if self._with_masks else None,
        )

    def _frame(self, rgb: NDArray[np.uint8]) -> I420Frame:
        video_frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
        picture = Picture(1, 0.0, video_frame, UPRIGHT, 0.0, None, "file")
        height, width = bus_hw(self._engine.spec, rgb.shape[:2])
        return self._converter.to_i420(picture, (width, height))


def _folder(images: Path | None) -> Path | None:
    if images is None:
        return None
    folder = Path(os.path.expanduser(images))
    if not folder.is_dir():
        raise UsageError(f"--images {images}: there is no such folder")
    return folder


def _why_no_masks(spec: ModelSpec, data: CocoData, annotations: dict[int, list[Annotation]]) -> str | None:
    """Why masks cannot be evaluated; None if they can."""
    if spec.output == "boxes":
        return f"model {spec.name} finds boxes alone"
    if any(entry.rle is None for own in annotations.values() for entry in own):
        return f"annotations in {data.path.name} have no segmentation"
    return None


def _evenly_spread(pictures: Sequence[PictureRecord], num: int | None) -> list[PictureRecord]:
    """All pictures, or `num` of them at equal distances."""
    if num is None or num >= len(pictures):
        return list(pictures)
    return [pictures[index * len(pictures) // num] for index in range(num)]


def _evaluated(
    record: PictureRecord, annotations: Sequence[Annotation], found: Detections, conf: float
) -> _EvaluatedPicture:
    confident = confident_detections(found, conf, record.labelled)
    matching = match_objects(pairwise_ious(annotations, confident), crowd_flags(annotations))
    return _EvaluatedPicture(record, annotations, found, confident, matching)


def _num_objects(annotations: Iterable[Sequence[Annotation]]) -> int:
    """The number of annotations that are not crowd regions."""
    return sum(not entry.is_crowd for own in annotations for entry in own)


def _class_metrics(
    labels: dict[int, str],
    annotations: Sequence[Sequence[Annotation]],
    precision: CocoMetrics,
    class_masks: ClassMasks,
) -> dict[str, dict[str, float | int | None]]:
    objects = [entry.category_id for own in annotations for entry in own if not entry.is_crowd]
    return {
        label: {
            "num_objects": objects.count(category_id),
            "box_ap": json_number(precision.boxes.per_class[label]),
            "mask_ap": None if precision.masks is None else json_number(precision.masks.per_class[label]),
            "iou": json_number(class_masks.counts[category_id].iou),
            "dice": json_number(class_masks.counts[category_id].dice),
        }
        for category_id, label in labels.items()
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are neither None nor NaN; None if there are none."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return json_number(sum(known) / len(known)) if known else None


def _write_sheets(
    output: Path, pictures: Sequence[_EvaluatedPicture], labels: dict[int, str], settings: CocoSettings, conf: float
) -> None:
    ranked = worst_and_best([picture.matching.panoptic_quality for picture in pictures])
    for name, indices in zip(("worst", "best"), ranked, strict=True):
        rows = [_sheet_row(pictures[index], labels) for index in indices]
        heading = (
            f"{settings.data.name}: the {name} pictures. Left: ground truth. Right: detections with score >= {conf:g}"
        )
        write_sheet(output / f"{name}.png", heading, rows)


def _sheet_row(picture: _EvaluatedPicture, labels: dict[int, str]) -> SheetRow:
    record = picture.record
    return SheetRow(
        rgb=read_rgb(record.path, (record.height, record.width)),
        annotations=picture.annotations,
        found=picture.confident,
        matching=picture.matching,
        labels=labels,
        caption=f"{record.path.name}    {picture.matching.caption}",
    )
