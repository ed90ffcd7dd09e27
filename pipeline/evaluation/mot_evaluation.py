"""`evaluate mot`: the accuracy of tracks on sequences of MOTChallenge or MOTS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import UsageError
from pipeline.evaluation.clear_mot import TrackedFrame
from pipeline.evaluation.mot_tracking import track_boxes
from pipeline.evaluation.motchallenge import (
    MotSequence,
    find_sequences,
    holds_masks,
    read_boxes,
    read_masks,
    write_boxes,
    write_masks,
)
from pipeline.evaluation.progress import Progress, no_progress
from pipeline.evaluation.report_files import make_folder, write_json
from pipeline.evaluation.track_files import boxes_of_results, detection_files, masks_of_results, result_files
from pipeline.evaluation.trackeval_metrics import TrackEvaluator, compare_boxes, compare_masks
from pipeline.tracking.tracker import TrackerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MotSettings:
    """What to evaluate.

    truth     folder of a sequence, or of several sequences
    det       folder of the detections to track; None: each sequence has its own
    results   files, or folders of files, with tracks to evaluate; empty: MaskStream's tracker runs on the detections
    labels    classes to evaluate in result files of MaskStream
    output    folder for metrics and tracks; None: no files
    """

    truth: Path
    det: Path | None
    results: tuple[Path, ...]
    labels: tuple[str, ...]
    output: Path | None


def evaluate_mot(settings: MotSettings, progress: Progress = no_progress) -> dict[str, Any]:
    """Evaluates tracks and returns the metrics, as `metrics.json` has them.

    With settings.output, metrics.json is written, and the evaluated tracks of each sequence as SEQUENCE.txt.
    Raises MaskStreamError.
    """
    sequences = find_sequences(settings.truth)
    of_masks = _truth_has_masks(sequences)
    evaluator = TrackEvaluator(of_masks=of_masks)
    if settings.results:
        if settings.det is not None:
            raise UsageError("--det and --results: expected one of them, got both")
        files = result_files(sequences, settings.results)
    elif of_masks:
        raise UsageError(f"{sequences[0].truth}: the ground truth has masks, but detections are boxes: give --results")
    else:
        files = detection_files(sequences, settings.det)
    output = make_folder(settings.output)
    compare = _compare_masks if of_masks else _compare_boxes
    with progress("sequences", len(sequences)) as step:
        for sequence in sequences:
            target = None if output is None else output / f"{sequence.name}.txt"
            evaluator.add(sequence.name, compare(sequence, files[sequence.name], settings, target))
            step()
    metrics = {
        "gt": str(settings.truth),
        "judged": {name: str(path) for name, path in files.items()},
        "tracker": None if settings.results else msgspec.to_builtins(TrackerConfig()),
        "iou_of": "masks" if of_masks else "boxes",
        "trackeval": evaluator.version,
        "sequences": evaluator.metrics(),
        "combined": evaluator.combined(),
    }
    if output is not None:
        write_json(output / "metrics.json", metrics)
    return metrics


def _truth_has_masks(sequences: Sequence[MotSequence]) -> bool:
    of_masks = [holds_masks(sequence.truth) for sequence in sequences]
    if len(set(of_masks)) > 1:
        boxes, masks = sequences[of_masks.index(False)].truth, sequences[of_masks.index(True)].truth
        raise UsageError(f"expected sequences of one kind, got boxes in {boxes} and masks in {masks}")
    return of_masks[0]


def _compare_boxes(sequence: MotSequence, path: Path, settings: MotSettings, target: Path | None) -> list[TrackedFrame]:
    num_frames = sequence.num_frames
    truth = read_boxes(sequence.truth, num_frames)
    if settings.results:
        found = boxes_of_results(path, num_frames, settings.labels)
    else:
        found = track_boxes(read_boxes(path, num_frames, with_ids=False), sequence.fps, num_frames)
    if target is not None:
        write_boxes(target, found)
    return compare_boxes(truth, found, num_frames)


def _compare_masks(sequence: MotSequence, path: Path, settings: MotSettings, target: Path | None) -> list[TrackedFrame]:
    truth = read_masks(sequence.truth, sequence.num_frames)
    found = masks_of_results(path, sequence.num_frames, settings.labels)
    if target is not None:
        write_masks(target, found)
    try:
        return compare_masks(truth, found, sequence.num_frames)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
