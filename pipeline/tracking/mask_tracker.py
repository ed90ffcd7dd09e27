"""MaskTracker: association by box IoU and mask IoU, with a Kalman filter for each box.

Each frame is one compiled call (ops/track_step.py): end the tracks that were lost for too long, predict with the real
time step, associate, correct the filters, begin tracks, confirm tracks. With boxes alone, high-score detections are
associated before low-score ones (ByteTrack, Zhang et al. 2022); with masks, all detections are associated together, and
the masks decide between boxes that compete. The result does not depend on the order of a frame's detections.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from ops.mask_format import MASK_BYTES
from ops.track_step import compiled_step, write_span
from ops.track_tables import RULES, SPAN, TRACK, Table
from pipeline.contract.arrays import Detections
from pipeline.tracking.tracker import TrackedDetections, TrackerConfig, TrackSpan

CHECKPOINT_VERSION = 5
MIN_STEP_S = 1e-3
"""time step of a frame whose time repeats or goes back"""


class _Checkpoint(msgspec.Struct, frozen=True):
    """The whole state of a tracker. `tracks` holds the records of the tracks as little-endian bytes."""

    version: int
    num_tracks: int
    num_confirmed: int
    frame_seq: int
    time_s: float | None
    clock_s: float
    tracks: bytes


class MaskTracker:
    """Tracks of one stream. Track IDs are 1, 2, 3 … in the order of confirmation and are never reused."""

    def __init__(self, config: TrackerConfig) -> None:
        if not config.low_score <= config.birth_score <= config.high_score:
            raise ValueError(
                f"expected low_score <= birth_score <= high_score, "
                f"got {config.low_score}, {config.birth_score}, {config.high_score}"
            )
        self.config = config
        self._rules = np.array([tuple(getattr(config, name) for name in RULES.names or ())], RULES)
        self._step = compiled_step()
        self._num_tracks = 0
        self._num_confirmed = 0
        self._frame_seq = 0
        self._time_s: float | None = None
        self._clock_s = 0.0
        self._tracks: Table = np.zeros(0, TRACK)
        self._spans: Table = np.zeros(0, SPAN)
        self._reserve(16)

    @property
    def num_confirmed(self) -> int:
        """Number of tracks confirmed so far, which is also the highest track ID."""
        return self._num_confirmed

    def update(self, detections: Detections, frame_seq: int, time_s: float) -> TrackedDetections:
        """Track one frame.

        frame_seq must rise from call to call. time_s is the time of the frame in seconds from any origin; the time step
        is the difference from the previous update. A time that repeats or goes back counts as a step of 1 ms, and the
        next step is measured from it. Raises ValueError, and leaves the state unchanged, for arrays of a wrong shape,
        for boxes or scores that are not finite, and for x2 < x1 or y2 < y1.
        """
        boxes_xyxy, scores, class_ids, mask_bits = _arrays(detections)
        if frame_seq <= self._frame_seq:
            raise ValueError(f"frame_seq must rise: expected more than {self._frame_seq}, got {frame_seq}")
        if not math.isfinite(time_s):
            raise ValueError(f"time_s must be finite, got {time_s}")
        step_s = MIN_STEP_S if self._time_s is None else max(MIN_STEP_S, time_s - self._time_s)
        clock_s = self._clock_s + step_s
        if self._num_tracks + len(scores) > len(self._tracks):
            self._reserve(self._num_tracks + len(scores))
        rows = np.empty((4, len(scores)), _INT64)
        bad, num_tracks, num_confirmed, num_shown, num_ended, num_started = self._step(
            self._tracks, self._num_tracks, self._num_confirmed, self._rules,
            boxes_xyxy, scores, class_ids, mask_bits, frame_seq, clock_s, step_s, rows, self._spans,
        )  # fmt: skip
        if bad >= 0:
            raise ValueError(
                f"expected finite numbers, x2 >= x1 and y2 >= y1, "
                f"got box {boxes_xyxy[bad].tolist()} with score {scores[bad]} at index {bad}"
            )
        self._num_tracks, self._num_confirmed = num_tracks, num_confirmed
        self._frame_seq, self._time_s, self._clock_s = frame_seq, time_s, clock_s
        rows = rows[:, :num_shown]
        if num_ended + num_started == 0:
            return TrackedDetections(rows, [], [])
        spans = _spans(self._spans[: num_ended + num_started])
        return TrackedDetections(rows, spans[num_ended:], spans[:num_ended])

    def _reserve(self, num_tracks: int) -> None:
        """Grow the table to hold num_tracks tracks, at least to twice its capacity, so that it is seldom copied."""
        capacity = len(self._tracks)
        larger = np.zeros(max(num_tracks, 2 * capacity), TRACK)
        larger[:capacity] = self._tracks
        self._tracks = larger
        self._spans = np.zeros(len(larger), SPAN)

    def finish(self) -> list[TrackSpan]:
        """End every track and return the confirmed ones by ID."""
        confirmed = np.flatnonzero(self._tracks["track_id"][: self._num_tracks] > 0).tolist()
        for idx, track in enumerate(confirmed):
            write_span(self._tracks, track, self._spans, idx)
        self._num_tracks = 0
        return sorted(_spans(self._spans[: len(confirmed)]), key=lambda span: span.track_id)

    def checkpoint(self) -> bytes:
        """The whole state as MessagePack, from which `restore` continues with identical results."""
        return msgspec.msgpack.encode(
            _Checkpoint(
                version=CHECKPOINT_VERSION,
                num_tracks=self._num_tracks,
                num_confirmed=self._num_confirmed,
                frame_seq=self._frame_seq,
                time_s=self._time_s,
                clock_s=self._clock_s,
                tracks=self._tracks[: self._num_tracks].tobytes(),
            )
        )

    @classmethod
    def restore(cls, config: TrackerConfig, payload: bytes) -> MaskTracker:
        """The tracker that returned payload from `checkpoint`. Raises ValueError for bytes that are not a checkpoint of
        this version.
        """
        try:
            state = msgspec.msgpack.decode(payload, type=_Checkpoint)
        except msgspec.DecodeError as error:
            raise ValueError(f"not a tracker checkpoint: {error}") from None
        if state.version != CHECKPOINT_VERSION:
            raise ValueError(f"tracker checkpoint has version {state.version}, expected {CHECKPOINT_VERSION}")
        if len(state.tracks) != state.num_tracks * TRACK.itemsize:
            raise ValueError(
                f"tracker checkpoint is damaged: expected {state.num_tracks} tracks of {TRACK.itemsize} bytes, "
                f"got {len(state.tracks)} bytes"
            )
        tracker = cls(config)
        tracker._reserve(state.num_tracks)
        tracker._tracks[: state.num_tracks] = np.frombuffer(state.tracks, TRACK)
        tracker._num_tracks = state.num_tracks
        tracker._num_confirmed = state.num_confirmed
        tracker._frame_seq = state.frame_seq
        tracker._time_s = state.time_s
        tracker._clock_s = state.clock_s
        return tracker


def _spans(spans: Table) -> list[TrackSpan]:
    return [TrackSpan(*(*fields, points[:path_length].tolist())) for *fields, path_length, points in spans.tolist()]


# NumPy looks dtype objects up faster than scalar types.
_FLOAT32, _INT32, _INT64 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64)
_NO_MASKS = np.zeros((0, MASK_BYTES), np.uint8)


def _arrays(
    detections: Detections,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    """Boxes (N, 4) float32, scores (N,) float32, class IDs (N,) int32 and mask bits (N, 98) uint8, or (0, 98) without
    masks: C-contiguous, as the compiled step requires. Raises ValueError for wrong shapes.
    """
    boxes_xyxy = np.ascontiguousarray(detections.boxes_xyxy, _FLOAT32)
    scores = np.ascontiguousarray(detections.scores, _FLOAT32)
    class_ids = np.ascontiguousarray(detections.class_ids, _INT32)
    num = len(scores)
    if boxes_xyxy.shape != (num, 4) or scores.ndim != 1 or class_ids.shape != (num,):
        raise ValueError(
            f"detections must be boxes (N, 4), scores (N,), class_ids (N,), got {boxes_xyxy.shape}, "
            f"{scores.shape}, {class_ids.shape}"
        )
    if detections.mask_bits is None:
        return boxes_xyxy, scores, class_ids, _NO_MASKS
    mask_bits = np.ascontiguousarray(detections.mask_bits, np.uint8)
    if mask_bits.shape != (num, MASK_BYTES):
        raise ValueError(f"mask_bits must be (N, {MASK_BYTES}) with N = {num}, got {mask_bits.shape}")
    return boxes_xyxy, scores, class_ids, mask_bits
