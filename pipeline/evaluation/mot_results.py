"""Tracks to be judged: where the files of a sequence are, and what our own result files say in MOTChallenge's terms."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.contract.results import FrameResult, Instance
from pipeline.errors import OutputError, UsageError
from pipeline.evaluation.motchallenge import (
    PEDESTRIAN,
    BoxRows,
    MaskRows,
    MotSequence,
    checked_rle,
    from_xyxy,
    read_boxes,
    read_masks,
)
from pipeline.exports.jsonl import read_jsonl

SUFFIXES = (".jsonl", ".txt")
"""of result files: our own messages, MOTChallenge's rows"""


def detection_files(sequences: Sequence[MotSequence], folder: Path | None) -> dict[str, Path]:
    """The detections of each sequence, by its name: in the sequence's own folder, or in a folder of such folders or of
    SEQUENCE.txt. Raises UsageError.
    """
    found = {}
    for sequence in sequences:
        if folder is None:
            places = [sequence.folder / "det" / "det.txt"]
        else:
            places = [folder / sequence.name / "det" / "det.txt", folder / f"{sequence.name}.txt"]
            places += [folder / "det" / "det.txt"] if len(sequences) == 1 else []
        found[sequence.name] = _first(places, f"detections of {sequence.name}")
    return found


def result_files(sequences: Sequence[MotSequence], given: Sequence[Path]) -> dict[str, Path]:
    """The results of each sequence, by its name: files named like it, or folders of such. Raises UsageError, also for a
    file that belongs to none.
    """
    names = [sequence.name for sequence in sequences]
    for path in given:
        if not path.is_dir() and (path.stem not in names or path.suffix not in SUFFIXES):
            expected = f"{names[0]}.jsonl" if len(names) == 1 else f"SEQUENCE.jsonl, SEQUENCE one of {', '.join(names)}"
            raise UsageError(f"--results {path}: expected {expected} (or .txt of MOTChallenge)")
    return {
        name: _first(
            [
                place
                for path in given
                for place in ([path / f"{name}{suffix}" for suffix in SUFFIXES] if path.is_dir() else [path])
                if place.stem == name
            ],
            f"results of {name}",
        )
        for name in names
    }


def boxes_of_results(path: Path, num_frames: int, labels: Collection[str]) -> BoxRows:
    """Boxes of a result file. labels: classes of our own results that are taken. Raises UsageError."""
    if path.suffix == ".txt":
        return read_boxes(path, num_frames)
    found = list(_instances(path, num_frames, labels))
    boxes_xyxy = np.array([instance.box_xyxy for _, instance in found], np.float64).reshape(-1, 4)
    return BoxRows(
        frames=np.array([frame for frame, _ in found], np.int64),
        ids=np.array([instance.track_id for _, instance in found], np.int64),
        boxes_ltwh=from_xyxy(boxes_xyxy),
        values=np.array([instance.score for _, instance in found], np.float64),
    )


def masks_of_results(path: Path, num_frames: int, labels: Collection[str]) -> MaskRows:
    """Masks of a result file; our own instances of these labels are pedestrians. Raises UsageError."""
    if path.suffix == ".txt":
        return read_masks(path, num_frames)
    found = list(_instances(path, num_frames, labels))
    return MaskRows(
        frames=np.array([frame for frame, _ in found], np.int64),
        ids=np.array([instance.track_id for _, instance in found], np.int64),
        class_ids=np.full(len(found), PEDESTRIAN, np.int64),
        rles=[_rle(path, frame, instance) for frame, instance in found],
    )


def _instances(path: Path, num_frames: int, labels: Collection[str]) -> Iterator[tuple[int, Instance]]:
    """Those with a track id, each with its frame."""
    try:
        for message in read_jsonl(path):
            if isinstance(message, FrameResult):
                if not 1 <= message.frame_seq <= num_frames:
                    raise UsageError(
                        f"{path}: frame {message.frame_seq} in a sequence of {num_frames} "
                        "(seqLength in its seqinfo.ini)"
                    )
                for instance in message.instances:
                    if instance.track_id is not None and instance.label in labels:
                        yield message.frame_seq, instance
    except OutputError as error:
        raise UsageError(str(error)) from None


def _rle(path: Path, frame: int, instance: Instance) -> dict[str, Any]:
    if instance.mask is None:
        raise UsageError(
            f"{path}: track {instance.track_id} on frame {frame} has no mask; the ground truth is of masks"
        )
    try:
        return checked_rle(instance.mask.counts, instance.mask.size)
    except UsageError as error:
        raise UsageError(f"{path}: track {instance.track_id} on frame {frame}: {error}") from None


def _first(places: Sequence[Path], what: str) -> Path:
    for place in places:
        if place.is_file():
            return place
    at = f" at {' or '.join(map(str, places))}" if places else ""
    raise UsageError(f"{what}: expected a file{at}, found none")
