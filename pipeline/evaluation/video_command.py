"""`evaluate video`: what the pipeline's own path leaves of a model's accuracy, on a drawn scene with exact truth."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ops.preprocess import rgb_to_i420
from pipeline.coco.data import Annotation
from pipeline.coco.precision import CocoPrecision, coco_precision
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.contract.config import JobConfig
from pipeline.contract.defaults import CONF
from pipeline.contract.results import FrameResult
from pipeline.errors import UsageError
from pipeline.evaluation.mot import TrackedFrame, TrackingFigures, tracking_figures
from pipeline.evaluation.pairing import Pairing, chosen, crowds_of, overlaps, pair_objects
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
from pipeline.evaluation.truth import MIN_AREA_PX, coco_of_scene, scene_truth
from pipeline.models.registry import ModelSpec
from pipeline.synthetic import LABELS, Scene, SceneConfig, write_video
from pipeline.tracking.tracker import TrackedDetections, Tracker, TrackerConfig

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings:
    """The scene that is drawn, the model and its options, the folder of the files or None."""

    scene: SceneConfig
    config: JobConfig
    output: Path | None


@dataclass(frozen=True, slots=True)
class FrameTruth:
    """The objects of one frame; those too small to count are crowds. `object_ids` are the same over all frames."""

    annotations: Sequence[Annotation]
    object_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class FrameFound:
    """What was found on one frame, with the truth's class ids; track_ids (N,) int64, 0 for no track."""

    detections: Detections
    track_ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Of all frames. Tracks are held to the truth by boxes, as MOTChallenge does, and by masks, as MOTS does (None for
    a model without masks).
    """

    precision: CocoPrecision
    tracking: TrackingFigures
    mask_tracking: TrackingFigures | None


def evaluate_video(settings: VideoSettings) -> dict[str, Any]:
    """All figures, as `metrics.json` has them: of the pipeline's results for the scene as an MP4 file, and of engine
    and tracker alone on the frames as they were drawn, at full size.

    With settings.output it also writes scene.mp4, metrics.json and the sheets worst.png and best.png.
    Raises MaskStreamError.
    """
    spec = judged_spec(settings.config)
    class_of = _shared_classes(spec)
    with_masks = spec.output == "masks"
    output = make_folder(settings.output)
    engine = load(settings.config)
    labels = {class_id: label for class_id, label in LABELS.items() if class_id in class_of.values()}
    scene = Scene(settings.scene)
    with tempfile.TemporaryDirectory(prefix="maskstream-") as temporary:
        video = (output or Path(temporary)) / "scene.mp4"
        with bar("drawing the scene", len(scene)) as step:
            write_video(scene, video, progress=lambda done, total: step())
        start_s = time.perf_counter()
        through = _through_the_pipeline(video, scene, labels, settings.config, Path(temporary) / "run")
        pipeline_s = time.perf_counter() - start_s
    truth, alone = _engine_alone(engine, scene, class_of, settings.config)

    hw = (settings.scene.height, settings.scene.width)
    judged = judge(truth, through, labels, hw, with_masks=with_masks)
    judged_alone = judge(truth, alone, labels, hw, with_masks=with_masks)
    objects = [entry.category_id for frame in truth for entry in frame.annotations if not entry.is_crowd]
    metrics = about(engine, settings.config) | {
        "scene": {
            "width": hw[1],
            "height": hw[0],
            "fps": settings.scene.fps,
            "num_frames": len(scene),
            "seed": settings.scene.seed,
        },
        "conf": _conf(settings.config),
        "num_objects": len(objects),
        "min_area_px": MIN_AREA_PX,
        "classes": {label: {"num_objects": objects.count(class_id)} for class_id, label in labels.items()},
        "no_masks": None if with_masks else f"model {spec.name} finds boxes alone",
        "pipeline": _figures(judged) | {"wall_s": round(pipeline_s, 3)},
        "engine_alone": _figures(judged_alone),
    }
    if output is not None:
        write_json(output / "metrics.json", metrics)
        _write_sheets(output, scene, truth, through, labels, _conf(settings.config))
    return metrics


def judge(
    truth: Sequence[FrameTruth],
    found: Sequence[FrameFound],
    labels: dict[int, str],
    hw: tuple[int, int],
    *,
    with_masks: bool,
) -> Judgement:
    """AP of all instances, MOTA and IDF1 of those that carry a track id. Frames of truth and found are the same."""
    coco = coco_of_scene([frame.annotations for frame in truth], labels, hw)
    empty = Detections.empty(hw[1], hw[0], with_masks=with_masks)
    detections = {index: frame.detections if len(frame.detections) else empty for index, frame in enumerate(found)}
    by_boxes, by_masks = (
        tracking_figures([_tracked(*pair, of_boxes=of_boxes) for pair in zip(truth, found, strict=True)])
        for of_boxes in (True, False)
    )
    return Judgement(coco_precision(coco, detections), by_boxes, by_masks if with_masks else None)


def _tracked(truth: FrameTruth, found: FrameFound, *, of_boxes: bool) -> TrackedFrame:
    """Without objects that are too small to count, and without what was found of them."""
    table = overlaps(truth.annotations, found.detections, of_boxes=of_boxes)
    is_crowd = crowds_of(truth.annotations)
    with_id = found.track_ids > 0
    places = np.flatnonzero(with_id)
    neutral = places[list(pair_objects(table[:, with_id], is_crowd).neutral)]
    with_id[neutral] = False
    return TrackedFrame(
        truth_ids=np.array(truth.object_ids, np.int64)[~is_crowd],
        track_ids=found.track_ids[with_id],
        ious=table[~is_crowd][:, with_id],
    )


def _shared_classes(spec: ModelSpec) -> dict[int, int]:
    """The model's class id -> the scene's, by name. Raises UsageError when they have none in common."""
    of_label = {label: class_id for class_id, label in LABELS.items()}
    shared = {class_id: of_label[label] for class_id, label in spec.categories if label in of_label}
    if not shared:
        raise UsageError(
            f"model {spec.name} knows nothing that the scene shows ({', '.join(of_label)}); "
            f"it knows {', '.join(spec.labels.values())}"
        )
    return shared


def _through_the_pipeline(
    video: Path, scene: Scene, labels: dict[int, str], config: JobConfig, folder: Path
) -> list[FrameFound]:
    """Encoded, decoded, over the bus, inferred and tracked. A frame without a result has nothing on it."""
    from pipeline.api import run

    options = {name: getattr(config, name) for name in ("model", "weights", "device", "precision", "conf")}
    results: dict[int, FrameFound] = {}
    stream: Any = run(video, **options, classes=list(labels.values()), output=str(folder))
    with bar("through the pipeline", len(scene)) as step, contextlib.closing(stream):
        for result in stream:
            results[result.frame_seq - 1] = _of_result(result, labels)
            step()
    nothing = FrameFound(Detections.empty(scene.config.width, scene.config.height), np.zeros(0, np.int64))
    return [results.get(index, nothing) for index in range(len(scene))]


def _of_result(result: FrameResult, labels: dict[int, str]) -> FrameFound:
    class_of = {label: class_id for class_id, label in labels.items()}
    instances = result.instances
    masks = [instance.mask for instance in instances]
    detections = Detections(
        boxes_xyxy=np.array([instance.box_xyxy for instance in instances], np.float32).reshape(-1, 4),
        scores=np.array([instance.score for instance in instances], np.float32),
        class_ids=np.array([class_of[instance.label] for instance in instances], np.int32),
        mask_bits=None,
        rle_counts=None if None in masks else [mask.counts.encode("ascii") for mask in masks if mask is not None],
        width=result.width,
        height=result.height,
    )
    return FrameFound(detections, np.array([instance.track_id or 0 for instance in instances], np.int64))


def _engine_alone(
    engine: Engine, scene: Scene, class_of: dict[int, int], config: JobConfig
) -> tuple[list[FrameTruth], list[FrameFound]]:
    """The truth of each frame, and what engine and tracker find on it without codec and bus: the drawn RGB as I420 of
    the same size, which the engine resizes itself.
    """
    width, height, conf = scene.config.width, scene.config.height, _conf(config)
    tracker = Tracker(TrackerConfig.for_conf(conf, conf / 2))
    truth, found = [], []
    with bar("engine alone", len(scene)) as step:
        for frame in scene:
            truth.append(FrameTruth(*scene_truth(frame, set(class_of.values()))))
            i420 = I420Frame(
                rgb_to_i420(frame.image), width, height, width, height, ColourMatrix.BT601, full_range=True
            )
            (detections,) = engine.infer([i420], min_scores=[conf / 2], class_ids=[list(class_of)])
            tracked = tracker.update(detections, frame.index + 1, frame.pts_s)
            found.append(_shown(detections, tracked, class_of))
            step()
    return truth, found


def _shown(detections: Detections, tracked: TrackedDetections, class_of: dict[int, int]) -> FrameFound:
    """Those that the tracker shows."""
    rles, places = detections.rle_counts, tracked.detection_idx
    kept = Detections(
        boxes_xyxy=detections.boxes_xyxy[places],
        scores=detections.scores[places],
        class_ids=np.array([class_of[int(class_id)] for class_id in tracked.class_ids], np.int32),
        mask_bits=None,
        rle_counts=None if rles is None else [rles[place] for place in places.tolist()],
        width=detections.width,
        height=detections.height,
    )
    return FrameFound(kept, tracked.track_ids)


def _conf(config: JobConfig) -> float:
    return CONF if config.conf is None else config.conf


def _figures(judged: Judgement) -> dict[str, Any]:
    tracking, precision, by_masks = judged.tracking, judged.precision, judged.mask_tracking
    return {
        "box": figures_of(precision.boxes),
        "mask": figures_of(precision.masks),
        "box_ap_of_class": {label: figure(value) for label, value in precision.boxes.per_class.items()},
        "mask_ap_of_class": None
        if precision.masks is None
        else {label: figure(value) for label, value in precision.masks.per_class.items()},
        "mota": figure(tracking.mota),
        "motsa": None if by_masks is None else figure(by_masks.mota),
        "idf1": figure(tracking.idf1),
        "num_objects": tracking.num_objects,
        "num_missed": tracking.num_missed,
        "num_false": tracking.num_false,
        "num_switches": tracking.num_switches,
    }


def _write_sheets(
    output: Path,
    scene: Scene,
    truth: Sequence[FrameTruth],
    found: Sequence[FrameFound],
    labels: dict[int, str],
    conf: float,
) -> None:
    """Frames at least a second apart: neighbours look alike."""
    confident = [chosen(frame.detections, conf, labels) for frame in found]
    pairings = [_pairing(*pair) for pair in zip(truth, confident, strict=True)]
    indices = worst_and_best([pairing.quality for pairing in pairings], apart=max(round(scene.config.fps), 1))
    for name, chosen_indices in zip(("worst", "best"), indices, strict=True):
        rows = [
            SheetRow(
                rgb=scene.render(index).image,
                annotations=truth[index].annotations,
                found=confident[index],
                pairing=pairings[index],
                labels=labels,
                caption=f"frame {index + 1}, {index / scene.config.fps:.2f} s    {pairings[index].caption}",
            )
            for index in chosen_indices
        ]
        heading = f"The {name} frames. Left the truth, right what the pipeline found (score >= {conf:g})"
        write_sheet(output / f"{name}.png", heading, rows)


def _pairing(truth: FrameTruth, found: Detections) -> Pairing:
    return pair_objects(overlaps(truth.annotations, found), crowds_of(truth.annotations))
