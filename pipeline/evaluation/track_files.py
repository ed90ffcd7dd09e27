"""Files of detections and tracks to evaluate: finding those of a sequence, and reading MaskStream's result files."""

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
"""suffixes of result files: MaskStream's JSON Lines, MOTChallenge's text"""


def detection_files(sequences: Sequence[MotSequence], folder: Path | None) -> dict[str, Path]:
    """The file of detections of each sequence, by the name of the sequence.

    folder: None for SEQUENCE/det/det.txt beside the ground truth; else a folder with SEQUENCE/det/det.txt or
    SEQUENCE.txt for each sequence, or with det/det.txt if there is one sequence. Raises UsageError if a file is
    missing.
    """
    found = {}
    for sequence in sequences:
        if folder is None:
            candidates = [sequence.folder / "det" / "det.txt"]
        else:
            candidates = [folder / sequence.name / "det" / "det.txt", folder / f"{sequence.name}.txt"]
            candidates += [folder / "det" / "det.txt"] if len(sequences) == 1 else []
        found[sequence.name] = _first_file(candidates, f"detections of {sequence.name}")
    return found


def result_files(sequences: Sequence[MotSequence], given: Sequence[Path]) -> dict[str, Path]:
    """The result file of each sequence, by the name of the sequence.

    given: files with the name of a sequence, or folders of such files. Raises UsageError if a sequence has no file, or
    a file belongs to no sequence.
    """
    names = [sequence.name for sequence in sequences]
    for path in given:
        if not path.is_dir() and (path.stem not in names or path.suffix not in SUFFIXES):
            expected = f"{names[0]}.jsonl" if len(names) == 1 else f"SEQUENCE.jsonl, SEQUENCE one of {', '.join(names)}"
            raise UsageError(f"--results {path}: expected {expected} (or .txt of MOTChallenge)")
    return {
        name: _first_file(
            [
                candidate
                for path in given
                for candidate in ([path / f"{name}{suffix}" for suffix in SUFFIXES] if path.is_dir() else [path])
                if candidate.stem == name
            ],
            f"results of {name}",
        )
        for name in names
    }


def boxes_of_results(path: Path, num_frames: int, labels: Collection[str]) -> BoxRows:
    """The boxes of a result file. labels: classes to read from a JSON Lines file. Raises UsageError."""
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
    """The masks of a result file. labels: classes to read as pedestrians from a JSON Lines file. Raises UsageError."""
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
    """(frame, instance) of each instance that has a track id and one of the labels."""
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
            f"{path}: track {instance.track_id} on frame {frame} has no mask, but the ground truth has masks"
        )
    try:
        return checked_rle(instance.mask.counts, instance.mask.size)
    except UsageError as error:
        raise UsageError(f"{path}: track {instance.track_id} on frame {frame}: {error}") from None


def _first_file(candidates: Sequence[Path], description: str) -> Path:
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    at = f" at {' or '.join(map(str, candidates))}" if candidates else ""
    raise UsageError(f"{description}: expected a file{at}, found none")
