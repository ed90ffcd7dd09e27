"""MaskStream's tracker on detections in MOTChallenge's format, without model and pipeline; the command `track`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.contract.arrays import Detections
from pipeline.errors import UsageError
from pipeline.evaluation.motchallenge import (
    BoxRows,
    by_frame,
    read_boxes,
    read_sequence,
    to_xyxy,
    write_boxes,
)
from pipeline.tracking.tracker import TrackerConfig
from pipeline.tracking.trackers import make_tracker


def track_boxes(detections: BoxRows, fps: float, num_frames: int) -> BoxRows:
    """The detections that belong to a confirmed track, with the track's id.

    A tracker with its default configuration processes the frames in order. All detections have one class; their scores
    are used unchanged.
    """
    tracker = make_tracker(TrackerConfig())
    boxes_xyxy = to_xyxy(detections.boxes_ltwh).astype(np.float32)
    width, height = np.ceil(boxes_xyxy.max(axis=0, initial=1)[2:]).astype(int).tolist()
    kept, ids = [], []
    for index, rows in enumerate(by_frame(detections.frames, num_frames)):
        found = Detections(
            boxes_xyxy=boxes_xyxy[rows],
            scores=detections.values[rows].astype(np.float32),
            class_ids=np.ones(len(rows), np.int32),
            mask_bits=None,
            rle_counts=None,
            width=width,
            height=height,
        )
        tracked = tracker.update(found, index + 1, index / fps)
        confirmed = tracked.track_ids > 0
        kept.append(rows[tracked.detection_idx[confirmed]])
        ids.append(tracked.track_ids[confirmed])
    tracks = detections.only(np.concatenate(kept))
    return BoxRows(tracks.frames, np.concatenate(ids), tracks.boxes_ltwh, tracks.values)


def track_file(det: Path, output: Path, fps: float | None) -> None:
    """Tracks the detections of a file and writes the tracks in MOTChallenge's format.

    fps: frame rate; None: the frameRate of the seqinfo.ini in the folder of `det` or in the folder above.
    Raises UsageError, OutputError.
    """
    detections = read_boxes(det, with_ids=False)
    rate = _frame_rate(det) if fps is None else fps
    num_frames = int(detections.frames.max(initial=1))
    write_boxes(output, track_boxes(detections, rate, num_frames))


def _frame_rate(det: Path) -> float:
    folder = det.resolve().parent
    for candidate in (folder, folder.parent):
        if (candidate / "seqinfo.ini").is_file():
            return read_sequence(candidate).fps
    raise UsageError(f"{det}: found no seqinfo.ini that states the frame rate: give --fps")
