"""`evaluate coco`: how good a model is on pictures with annotations in COCO's format."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.coco.data import Annotation, CocoData, PictureRecord, read_coco
from pipeline.coco.precision import CocoPrecision, coco_entry, coco_precision
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.contract.config import JobConfig
from pipeline.contract.defaults import CONF
from pipeline.errors import UsageError
from pipeline.evaluation.pairing import Pairing, chosen, crowds_of, overlaps, pair_objects
from pipeline.evaluation.regions import Regions
from pipeline.evaluation.session import (
    about,
    bar,
    figure,
    figures_of,
    judged_spec,
    load,
    make_folder,
    worst_and_best,
    write_json,
)
from pipeline.evaluation.sheet import SheetRow, write_sheet
from pipeline.evaluation.truth import coco_of_file
from pipeline.models.registry import ModelSpec, bus_hw
from pipeline.source import Converter, Picture
from pipeline.source.picture import UPRIGHT
from pipeline.source.picture_files import read_rgb

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoSettings:
    """data: COCO JSON; images: where its file names begin, None: beside it; num: of them, spread evenly, None: all."""

    data: Path
    images: Path | None
    num: int | None
    config: JobConfig
    output: Path | None


@dataclass(frozen=True, slots=True)
class _Judged:
    """One picture. Classes are categories of the data."""

    record: PictureRecord
    annotations: Sequence[Annotation]
    confident: Detections
    pairing: Pairing


def evaluate_coco(settings: CocoSettings) -> dict[str, Any]:
    """All figures, as `metrics.json` has them. Pictures take the way of a folder of pictures through the pipeline.

    With settings.output it also writes metrics.json, detections.json and the sheets worst.png and best.png.
    Raises MaskStreamError.
    """
    spec = judged_spec(settings.config)
    data = read_coco(settings.data, need_masks=False, folder=_folder(settings.images))
    category_of = _shared_categories(spec, data)
    labels = {category_id: label for category_id, label in data.categories if category_id in category_of.values()}
    records = _spread(data.pictures, settings.num)
    kept = {record.image_id: [a for a in record.annotations if a.category_id in labels] for record in records}
    if not any(not annotation.is_crowd for own in kept.values() for annotation in own):
        raise UsageError(f"data {data.path}: expected annotations of {', '.join(labels.values())}, got none")
    no_masks = _why_no_masks(spec, data, kept)
    with_masks = no_masks is None
    output = make_folder(settings.output)
    engine = load(settings.config)

    conf = CONF if settings.config.conf is None else settings.config.conf
    regions = Regions(labels, conf)
    founds: dict[int, Detections] = {}
    judged: list[_Judged] = []
    runner = _Runner(engine, category_of, with_masks=with_masks)
    with bar("pictures", len(records)) as step:
        for record in records:
            found = founds[record.image_id] = runner.detections(record)
            annotations = kept[record.image_id]
            if with_masks:
                regions.add(annotations, found, record.labelled)
            confident = chosen(found, conf, record.labelled)
            pairing = pair_objects(overlaps(annotations, confident), crowds_of(annotations))
            judged.append(_Judged(record, annotations, confident, pairing))
            step()

    precision = coco_precision(coco_of_file(data, labels, with_masks=with_masks), founds)
    metrics = about(engine, settings.config) | {
        "data": str(data.path),
        "num_pictures": len(records),
        "num_objects": sum(not entry.is_crowd for own in kept.values() for entry in own),
        "conf": conf,
        "left_out_classes": [label for category_id, label in data.categories if category_id not in labels],
        "no_masks": no_masks,
        "box": figures_of(precision.boxes),
        "mask": figures_of(precision.masks),
        "classes": _of_classes(labels, kept, precision, regions),
        "mean_iou": _mean([region.iou for region in regions.of_category.values()]),
        "mean_dice": _mean([region.dice for region in regions.of_category.values()]),
        "mean_quality": _mean([float("nan") if j.pairing.quality is None else j.pairing.quality for j in judged]),
        "pictures_per_s": round(len(records) / runner.total_s, 3),
        "engine_ms": round(1000 * statistics.median(runner.engine_s), 2),
    }
    if output is not None:
        write_json(output / "metrics.json", metrics)
        write_json(
            output / "detections.json",
            [coco_entry(name, found, index) for name, found in founds.items() for index in range(len(found))],
        )
        _write_sheets(output, judged, labels, settings, conf)
    return metrics


class _Runner:
    """Takes pictures to the engine as the pipeline does, and the time it needs."""

    def __init__(self, engine: Engine, category_of: dict[int, int], *, with_masks: bool) -> None:
        self._engine = engine
        self._category_of = category_of
        self._with_masks = with_masks
        self._converter = Converter()
        self.engine_s: list[float] = []
        self.total_s = 0.0

    def detections(self, record: PictureRecord) -> Detections:
        """Classes as the data's categories. Raises SourceError for a picture that cannot be read."""
        start_s = time.perf_counter()
        frame = self._frame(read_rgb(record.path, (record.height, record.width)))
        if not self.engine_s:
            self._engine.warm_up([(frame.height, frame.width)])
            start_s = time.perf_counter()
        begin_s = time.perf_counter()
        (found,) = self._engine.infer([frame], min_scores=[0.0], class_ids=[list(self._category_of)])
        end_s = time.perf_counter()
        self.engine_s.append(end_s - begin_s)
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
    if images is not None and not Path(os.path.expanduser(images)).is_dir():
        raise UsageError(f"--images {images}: there is no such folder")
    return None if images is None else Path(os.path.expanduser(images))


def _shared_categories(spec: ModelSpec, data: CocoData) -> dict[int, int]:
    """The model's class id -> the data's category id, by name. Raises UsageError when they have none in common."""
    of_label = {label: category_id for category_id, label in data.categories}
    shared = {class_id: of_label[label] for class_id, label in spec.categories if label in of_label}
    if not shared:
        raise UsageError(
            f"data {data.path}: model {spec.name} knows none of their categories ({', '.join(of_label)}); "
            f"it knows {', '.join(spec.labels.values())}"
        )
    return shared


def _why_no_masks(spec: ModelSpec, data: CocoData, kept: dict[int, list[Annotation]]) -> str | None:
    if spec.output == "boxes":
        return f"model {spec.name} finds boxes alone"
    if any(entry.rle is None for own in kept.values() for entry in own):
        return f"annotations in {data.path.name} have no segmentation"
    return None


def _spread(pictures: Sequence[PictureRecord], num: int | None) -> list[PictureRecord]:
    """All, or `num` at even distances."""
    if num is None or num >= len(pictures):
        return list(pictures)
    return [pictures[index * len(pictures) // num] for index in range(num)]


def _of_classes(
    labels: dict[int, str], kept: dict[int, list[Annotation]], precision: CocoPrecision, regions: Regions
) -> dict[str, dict[str, float | int | None]]:
    objects = [entry.category_id for own in kept.values() for entry in own if not entry.is_crowd]
    return {
        label: {
            "num_objects": objects.count(category_id),
            "box_ap": figure(precision.boxes.per_class[label]),
            "mask_ap": None if precision.masks is None else figure(precision.masks.per_class[label]),
            "iou": figure(regions.of_category[category_id].iou),
            "dice": figure(regions.of_category[category_id].dice),
        }
        for category_id, label in labels.items()
    }


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not np.isnan(value)]
    return figure(sum(known) / len(known)) if known else None


def _write_sheets(
    output: Path, judged: Sequence[_Judged], labels: dict[int, str], settings: CocoSettings, conf: float
) -> None:
    indices = worst_and_best([entry.pairing.quality for entry in judged])
    for name, chosen_indices in zip(("worst", "best"), indices, strict=True):
        rows = [_row(judged[index], labels) for index in chosen_indices]
        heading = f"{settings.data.name}: the {name} pictures. Left the truth, right what was found (score >= {conf:g})"
        write_sheet(output / f"{name}.png", heading, rows)


def _row(entry: _Judged, labels: dict[int, str]) -> SheetRow:
    return SheetRow(
        rgb=read_rgb(entry.record.path, (entry.record.height, entry.record.width)),
        annotations=entry.annotations,
        found=entry.confident,
        pairing=entry.pairing,
        labels=labels,
        caption=f"{entry.record.path.name}    {entry.pairing.caption}",
    )
