"""Our tracker alone on detections of MOTChallenge, and `track`, the command that writes what it makes of a file."""

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
from pipeline.tracking.tracker import Tracker, TrackerConfig


def track_boxes(detections: BoxRows, fps: float, num_frames: int) -> BoxRows:
    """The detections that belong to a confirmed track, with its id: frame by frame, as the pipeline would see them, by
    a tracker with its default configuration. All are of one class; scores are taken as they are.
    """
    tracker = Tracker(TrackerConfig())
    boxes_xyxy = to_xyxy(detections.boxes_ltwh).astype(np.float32)
    width, height = np.ceil(boxes_xyxy.max(axis=0, initial=1)[2:]).astype(int).tolist()
    kept, ids = [], []
    for index, places in enumerate(by_frame(detections.frames, num_frames)):
        found = Detections(
            boxes_xyxy=boxes_xyxy[places],
            scores=detections.values[places].astype(np.float32),
            class_ids=np.ones(len(places), np.int32),
            mask_bits=None,
            rle_counts=None,
            width=width,
            height=height,
        )
        tracked = tracker.update(found, index + 1, index / fps)
        confirmed = tracked.track_ids > 0
        kept.append(places[tracked.detection_idx[confirmed]])
        ids.append(tracked.track_ids[confirmed])
    rows = detections.only(np.concatenate(kept))
    return BoxRows(rows.frames, np.concatenate(ids), rows.boxes_ltwh, rows.values)


def track_file(det: Path, output: Path, fps: float | None) -> None:
    """Track a file of detections and write results. fps None: that of the seqinfo.ini in the file's folder or in the
    one above. Raises UsageError, OutputError.
    """
    detections = read_boxes(det, with_ids=False)
    rate = _rate(det) if fps is None else fps
    num_frames = int(detections.frames.max(initial=1))
    write_boxes(output, track_boxes(detections, rate, num_frames))


def _rate(det: Path) -> float:
    folder = det.resolve().parent
    for place in (folder, folder.parent):
        if (place / "seqinfo.ini").is_file():
            return read_sequence(place).fps
    raise UsageError(f"{det}: found no seqinfo.ini that gives its frame rate: give --fps")
