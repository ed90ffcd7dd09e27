"""Result messages of a stream `cam1`, for tests. A keyword argument replaces the field of its name."""

from __future__ import annotations

from typing import Any

import numpy as np

from ops.masks import encode_rle
from pipeline.contract.results import (
    EndResult,
    EpochResult,
    EventResult,
    FrameResult,
    GapResult,
    Instance,
    Mask,
    Timing,
)

WIDTH, HEIGHT = 64, 48
BOX_XYXY = (1.0, 2.0, 30.0, 40.0)


def _mask() -> Mask:
    array = np.zeros((HEIGHT, WIDTH), np.bool_)
    array[2:40, 1:30] = True
    return Mask(size=(HEIGHT, WIDTH), counts=encode_rle(array).decode())


def keypoints(num_seen: int = 17) -> list[tuple[float, float, float]]:
    """Return joints on a line across the box; the last ones are not visible."""
    return [(1.0 + k, 2.0 + 2.0 * k, 5.5 if k < num_seen else -1.25) for k in range(17)]


def _base(seq: int) -> dict[str, Any]:
    return {
        "stream_id": "cam1",
        "log_id": "a1",
        "stream_epoch": 1,
        "frame_seq": seq,
        "published_at_ns": seq * 20_000_000,
    }


def instance(track_id: int | None = 7, **changes: Any) -> Instance:
    fields: dict[str, Any] = {
        "track_id": track_id,
        "track_uid": None if track_id is None else f"cam1:{track_id}",
        "state": "tentative" if track_id is None else "confirmed",
        "age_frames": 3,
        "class_id": 1,
        "label": "person",
        "score": 0.98,
        "box_xyxy": BOX_XYXY,
        "mask": _mask(),
    }
    return Instance(**(fields | changes))


def frame(seq: int, **changes: Any) -> FrameResult:
    fields: dict[str, Any] = {
        "pts_s": (seq - 1) / 25,
        "captured_at_ns": None,
        "clock": "file",
        "arrived_at_ns": 0,
        "width": WIDTH,
        "height": HEIGHT,
        "model": "street",
        "dropped_before": 0,
        "instances": [instance()],
        "timing_ms": Timing(decode=1.0, queue=2.0, infer=3.0, track=4.0),
    }
    return FrameResult(**(_base(seq) | fields | changes))


def event(seq: int, kind: str = "track_start", track_id: int = 7, **changes: Any) -> EventResult:
    fields: dict[str, Any] = {
        "event": kind,
        "track_id": track_id,
        "track_uid": f"cam1:{track_id}",
        "class_id": 1,
        "label": "person",
        "first_seq": 1,
        "last_seq": seq,
        "duration_s": (seq - 1) / 25,
        "num_detections": seq,
        "mean_score": 0.9,
        "path": [(1, 100.0, 50.0), (seq, 100.0 + seq, 50.0)],
    }
    return EventResult(**(_base(seq) | fields | changes))


def gap(from_seq: int, to_seq: int, cause: str = "error", **changes: Any) -> GapResult:
    return GapResult(**(_base(to_seq) | {"from_seq": from_seq, "cause": cause} | changes))


def epoch(seq: int, **changes: Any) -> EpochResult:
    return EpochResult(**(_base(seq) | changes))


def end(seq: int, **changes: Any) -> EndResult:
    totals = {"reason": "finished", "num_frames": seq, "num_gap_frames": 0, "num_corrupt": 0, "num_tracks": 1}
    return EndResult(**(_base(seq) | totals | changes))
