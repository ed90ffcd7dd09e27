"""`evaluate video`: the accuracy of the whole pipeline on a synthetic scene with exact ground truth.

The same metrics of engine and tracker on the frames as drawn show how much accuracy the codec, the resizing for the
bus and the bus cost.
"""

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
from pipeline.coco.annotations import Annotation
from pipeline.coco.average_precision import CocoMetrics, coco_metrics
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.contract.config import JobConfig
from pipeline.contract.defaults import CONF
from pipeline.contract.results import FrameResult
from pipeline.errors import UsageError
from pipeline.evaluation.clear_mot import TrackedFrame, TrackingMetrics, tracking_metrics
from pipeline.evaluation.comparison_sheet import SheetRow, write_sheet
from pipeline.evaluation.evaluated_model import describe, evaluated_spec, load_engine, shared_classes
from pipeline.evaluation.matching import Matching, confident_detections, crowd_flags, match_objects, pairwise_ious
from pipeline.evaluation.progress import Progress, no_progress
from pipeline.evaluation.report_files import json_metrics, json_number, make_folder, worst_and_best, write_json
from pipeline.evaluation.scene_truth import MIN_AREA_PX, scene_annotations, scene_ground_truth
from pipeline.synthetic import LABELS, Scene, SceneConfig, write_video
from pipeline.tracking.tracker import TrackedDetections, TrackerConfig
from pipeline.tracking.trackers import make_tracker

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoSettings:
    """What to evaluate.

    scene    the scene to draw
    config   model, weights, device, precision and conf
    output   folder for video, metrics and sheets; None: no files
    """

    scene: SceneConfig
    config: JobConfig
    output: Path | None


@dataclass(frozen=True, slots=True)
class FrameTruth:
    """The ground truth of one frame.

    annotations   the visible objects; those that are too small to count are crowd regions
    object_ids    id of each annotation's object, the same over all frames
    """

    annotations: Sequence[Annotation]
    object_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class FrameTracks:
    """The instances found on one frame.

    detections   boxes, masks and scores; class ids are those of the scene
    track_ids    (N,) int64; 0 for an instance without a track
    """

    detections: Detections
    track_ids: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class VideoMetrics:
    """The metrics over all frames.

    precision       average precision of boxes and masks
    tracking        with IoUs of boxes, as MOTChallenge computes them
    mask_tracking   with IoUs of masks, as MOTS computes them; None for a model without masks
    """

    precision: CocoMetrics
    tracking: TrackingMetrics
    mask_tracking: TrackingMetrics | None


def evaluate_video(settings: VideoSettings, progress: Progress = no_progress) -> dict[str, Any]:
    """Evaluates the pipeline and returns the metrics, as `metrics.json` has them.

    The scene is evaluated twice: as an MP4 file that runs through the pipeline, and frame by frame, uncompressed and at
    full size, by engine and tracker alone. With settings.output, scene.mp4, metrics.json and the sheets worst.png and
    best.png are written. Raises MaskStreamError.
    """
    spec = evaluated_spec(settings.config)
    class_of = shared_classes(spec, LABELS.items())
    if not class_of:
        raise UsageError(
            f"model {spec.name} knows none of the classes of the scene ({', '.join(LABELS.values())}); "
            f"it knows {', '.join(spec.labels.values())}"
        )
    with_masks = spec.output == "masks"
    output = make_folder(settings.output)
    engine = load_engine(settings.config)
    labels = {class_id: label for class_id, label in LABELS.items() if class_id in class_of.values()}
    scene = Scene(settings.scene)
    with tempfile.TemporaryDirectory(prefix="maskstream-") as temporary:
        video = (output or Path(temporary)) / "scene.mp4"
        with progress("drawing the scene", len(scene)) as step:
            write_video(scene, video, progress=lambda done, total: step())
        start_s = time.perf_counter()
        piped = _run_pipeline(video, scene, labels, settings.config, Path(temporary) / "run", progress)
        pipeline_s = time.perf_counter() - start_s
    truth, alone = _run_engine(engine, scene, class_of, settings.config, progress)

    hw = (settings.scene.height, settings.scene.width)
    pipeline_metrics = video_metrics(truth, piped, labels, hw, with_masks=with_masks)
    engine_metrics = video_metrics(truth, alone, labels, hw, with_masks=with_masks)
    objects = [entry.category_id for frame in truth for entry in frame.annotations if not entry.is_crowd]
    metrics = describe(engine, settings.config) | {
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
        "pipeline": _json_of(pipeline_metrics) | {"wall_s": round(pipeline_s, 3)},
        "engine_alone": _json_of(engine_metrics),
    }
    if output is not None:
        write_json(output / "metrics.json", metrics)
        _write_sheets(output, scene, truth, piped, labels, _conf(settings.config))
    return metrics


def video_metrics(
    truth: Sequence[FrameTruth],
    found: Sequence[FrameTracks],
    labels: dict[int, str],
    hw: tuple[int, int],
    *,
    with_masks: bool,
) -> VideoMetrics:
    """AP of all instances, and tracking metrics of those with a track id.

    truth, found   the same frames, in order
    labels         name of each class of the scene that counts
    hw             height and width of the frames
    """
    coco = scene_ground_truth([frame.annotations for frame in truth], labels, hw)
    empty = Detections.empty(hw[1], hw[0], with_masks=with_masks)
    detections = {index: frame.detections if len(frame.detections) else empty for index, frame in enumerate(found)}
    by_boxes, by_masks = (
        tracking_metrics([_tracked_frame(*pair, of_boxes=of_boxes) for pair in zip(truth, found, strict=True)])
        for of_boxes in (True, False)
    )
    return VideoMetrics(coco_metrics(coco, detections), by_boxes, by_masks if with_masks else None)


def _tracked_frame(truth: FrameTruth, found: FrameTracks, *, of_boxes: bool) -> TrackedFrame:
    """Objects and tracks without those that do not count: objects that are too small, and their detections."""
    ious = pairwise_ious(truth.annotations, found.detections, of_boxes=of_boxes)
    is_crowd = crowd_flags(truth.annotations)
    with_id = found.track_ids > 0
    track_idx = np.flatnonzero(with_id)
    ignored = track_idx[list(match_objects(ious[:, with_id], is_crowd).ignored)]
    with_id[ignored] = False
    return TrackedFrame(
        truth_ids=np.array(truth.object_ids, np.int64)[~is_crowd],
        track_ids=found.track_ids[with_id],
        ious=ious[~is_crowd][:, with_id],
    )


def _run_pipeline(
    video: Path, scene: Scene, labels: dict[int, str], config: JobConfig, folder: Path, progress: Progress
) -> list[FrameTracks]:
    """The results of the pipeline for a video file, one entry per frame. A frame without a result has no instances."""
    from pipeline.api import run

    options = {name: getattr(config, name) for name in ("model", "weights", "device", "precision", "conf")}
    results: dict[int, FrameTracks] = {}
    stream: Any = run(video, **options, classes=list(labels.values()), output=str(folder))
    with progress("running the pipeline", len(scene)) as step, contextlib.closing(stream):
        for result in stream:
            results[result.frame_seq - 1] = _tracks_of_result(result, labels)
            step()
    empty = FrameTracks(Detections.empty(scene.config.width, scene.config.height), np.zeros(0, np.int64))
    return [results.get(index, empty) for index in range(len(scene))]


def _tracks_of_result(result: FrameResult, labels: dict[int, str]) -> FrameTracks:
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
    return FrameTracks(detections, np.array([instance.track_id or 0 for instance in instances], np.int64))


def _run_engine(
    engine: Engine, scene: Scene, class_of: dict[int, int], config: JobConfig, progress: Progress
) -> tuple[list[FrameTruth], list[FrameTracks]]:
    """The ground truth of each frame, and the results of engine and tracker without codec and bus.

    The engine receives the drawn RGB as I420 of the same size and resizes it itself.
    """
    width, height, conf = scene.config.width, scene.config.height, _conf(config)
    tracker = make_tracker(TrackerConfig.for_conf(conf, conf / 2))
    truth, found = [], []
    with progress("running the engine alone", len(scene)) as step:
        for frame in scene:
            truth.append(FrameTruth(*scene_annotations(frame, set(class_of.values()))))
            i420 = I420Frame(
                rgb_to_i420(frame.image), width, height, width, height, ColourMatrix.BT601, full_range=True
            )
            (detections,) = engine.infer([i420], min_scores=[conf / 2], class_ids=[list(class_of)])
            tracked = tracker.update(detections, frame.index + 1, frame.pts_s)
            found.append(_tracks_of_engine(detections, tracked, class_of))
            step()
    return truth, found


def _tracks_of_engine(detections: Detections, tracked: TrackedDetections, class_of: dict[int, int]) -> FrameTracks:
    """The detections that the tracker returns, with the class ids of the scene."""
    rles, kept_idx = detections.rle_counts, tracked.detection_idx
    kept = Detections(
        boxes_xyxy=detections.boxes_xyxy[kept_idx],
        scores=detections.scores[kept_idx],
        class_ids=np.array([class_of[int(class_id)] for class_id in tracked.class_ids], np.int32),
        mask_bits=None,
        rle_counts=None if rles is None else [rles[index] for index in kept_idx.tolist()],
        width=detections.width,
        height=detections.height,
    )
    return FrameTracks(kept, tracked.track_ids)


def _conf(config: JobConfig) -> float:
    return CONF if config.conf is None else config.conf


def _json_of(metrics: VideoMetrics) -> dict[str, Any]:
    tracking, precision, by_masks = metrics.tracking, metrics.precision, metrics.mask_tracking
    return {
        "box": json_metrics(precision.boxes),
        "mask": json_metrics(precision.masks),
        "box_ap_of_class": {label: json_number(value) for label, value in precision.boxes.per_class.items()},
        "mask_ap_of_class": None
        if precision.masks is None
        else {label: json_number(value) for label, value in precision.masks.per_class.items()},
        "mota": json_number(tracking.mota),
        "motsa": None if by_masks is None else json_number(by_masks.mota),
        "idf1": json_number(tracking.idf1),
        "num_objects": tracking.num_objects,
        "num_missed": tracking.num_missed,
        "num_false": tracking.num_false,
        "num_switches": tracking.num_switches,
    }


def _write_sheets(
    output: Path,
    scene: Scene,
    truth: Sequence[FrameTruth],
    found: Sequence[FrameTracks],
    labels: dict[int, str],
    conf: float,
) -> None:
    """The frames of a sheet are at least a second apart, because neighbouring frames look alike."""
    confident = [confident_detections(frame.detections, conf, labels) for frame in found]
    matchings = [_matching(*pair) for pair in zip(truth, confident, strict=True)]
    qualities = [matching.panoptic_quality for matching in matchings]
    ranked = worst_and_best(qualities, apart=max(round(scene.config.fps), 1))
    for name, indices in zip(("worst", "best"), ranked, strict=True):
        rows = [
            SheetRow(
                rgb=scene.render(index).image,
                annotations=truth[index].annotations,
                found=confident[index],
                matching=matchings[index],
                labels=labels,
                caption=f"frame {index + 1}, {index / scene.config.fps:.2f} s    {matchings[index].caption}",
            )
            for index in indices
        ]
        heading = f"The {name} frames. Left: ground truth. Right: results of the pipeline with score >= {conf:g}"
        write_sheet(output / f"{name}.png", heading, rows)


def _matching(truth: FrameTruth, found: Detections) -> Matching:
    return match_objects(pairwise_ious(truth.annotations, found), crowd_flags(truth.annotations))
