"""Links the detections of successive frames of one stream into tracks with ids.

One compiled call per frame: end what was lost too long, predict with the real time step, associate high-score
detections, then low-score ones with what is left (ByteTrack, Zhang et al. 2022), correct, give births, confirm. A track
keeps its class. The result does not depend on the order of the detections of a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from ops.mask_overlap import unpack_cells
from pipeline.structures import MASK_BYTES, Detections
from pipeline.track_step import NUM_HITS, TRACK_ID, Cells, Floats, Ints, step_tracks

TrackState = Literal["tentative", "confirmed"]

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0)]

CHECKPOINT_VERSION = 2
MIN_STEP_S = 1e-3
"""time step when the clock stood still or went back"""


class TrackerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How detections become tracks."""

    high_score: Fraction = 0.5
    """lowest score of a detection that may begin a track"""
    low_score: Fraction = 0.1
    """lowest score of a detection that may continue a confirmed track"""
    high_iou: Fraction = 0.2
    """lowest IoU of a high-score detection with the predicted box of its track"""
    low_iou: Fraction = 0.4
    """the same for a low-score detection"""
    duplicate_iou: Fraction = 0.7
    """a detection without a track is dropped when its box overlaps one that has a track, of the same class, by more, or
    when their masks do, of whatever class: one pixel belongs to one object"""
    duplicate_share: Fraction = 0.8
    """the same when a larger share of its mask lies inside the mask of one of the same class: a part is no object"""
    confirm_s: Seconds = 0.25
    """seconds from the first to the current detection, two of them at least, after which a track whose detections have
    just high_score is given its id; surer ones wait less, in proportion to what their mean score lacks of 1"""
    lost_s: Seconds = 1.5
    """seconds without a detection after which a confirmed track ends; it must exceed the interval between frames"""


class TrackSpan(msgspec.Struct, frozen=True):
    """A confirmed track as it stands at its start or its end."""

    track_id: int
    class_id: int
    first_seq: int
    """frame of its first detection"""
    last_seq: int
    """frame of its latest detection"""


@dataclass(frozen=True, slots=True)
class TrackedDetections:
    """What one frame shows, N instances in the order of the detections given. Left out are weak detections without a
    confirmed track, second copies and parts of an object that has a track, and boxes without area.

    track_ids       (N,) int64, positive; 0 while the track is not confirmed
    ages_frames     (N,) int64, frames since the track began, this one included
    detection_idx   (N,) int64, places in the detections given, rising
    started, ended  tracks that were confirmed or ended at this update
    """

    track_ids: Ints
    ages_frames: Ints
    detection_idx: Ints
    started: list[TrackSpan]
    ended: list[TrackSpan]

    def __len__(self) -> int:
        return len(self.track_ids)

    @property
    def states(self) -> list[TrackState]:
        """State of each instance's track."""
        return ["confirmed" if track_id else "tentative" for track_id in self.track_ids.tolist()]


class _Checkpoint(msgspec.Struct, frozen=True):
    """The whole state of a tracker; its tables as little-endian bytes, one row a track."""

    version: int
    num_confirmed: int
    frame_seq: int
    time_s: float | None
    clock_s: float
    filters: bytes
    sightings: bytes
    records: bytes


class Tracker:
    """Tracks of one stream. Ids are 1, 2, 3 … in the order of confirmation and never come again.

    The state is three tables, described in `pipeline.track_step`, whose capacity doubles when it must.
    """

    def __init__(self, config: TrackerConfig) -> None:
        if config.low_score > config.high_score:
            raise ValueError(f"low_score must not exceed high_score {config.high_score}, got {config.low_score}")
        self.config = config
        self._num_tracks = 0
        self._num_confirmed = 0
        self._frame_seq = 0
        self._time_s: float | None = None
        self._clock_s = 0.0
        self._filters = np.zeros((16, 4, 5), np.float64)
        self._sightings = np.zeros((16, 3), np.float64)
        self._records = np.zeros((16, 5), np.int64)

    @property
    def num_confirmed(self) -> int:
        """Tracks confirmed so far; also the highest id given."""
        return self._num_confirmed

    def update(self, detections: Detections, frame_seq: int, time_s: float) -> TrackedDetections:
        """Take in one frame.

        frame_seq must rise. time_s is in seconds from any origin: the step is the real interval since the last update;
        a time that repeats or goes back counts as a step of 1 ms, and the next step is measured from it. Raises
        ValueError, and changes nothing, for wrong shapes, boxes or scores that are not finite, x2 < x1 or y2 < y1.
        """
        boxes_xyxy, scores, class_ids, cells = _checked(detections)
        if frame_seq <= self._frame_seq:
            raise ValueError(f"frame_seq must rise: expected more than {self._frame_seq}, got {frame_seq}")
        if not np.isfinite(time_s):
            raise ValueError(f"time_s must be finite, got {time_s}")
        step_s = MIN_STEP_S if self._time_s is None else max(MIN_STEP_S, time_s - self._time_s)
        self._frame_seq = frame_seq
        self._time_s = time_s
        self._clock_s += step_s
        self._reserve(self._num_tracks + len(scores))
        config = self.config
        self._num_tracks, self._num_confirmed, shown, track_ids, ages_frames, started, ended = step_tracks(
            self._filters, self._sightings, self._records, self._num_tracks, self._num_confirmed,
            boxes_xyxy, scores, class_ids, cells, frame_seq, self._clock_s, step_s,
            config.high_score, config.low_score, config.high_iou, config.low_iou, config.duplicate_iou,
            config.duplicate_share, config.confirm_s, config.lost_s,
        )  # fmt: skip
        return TrackedDetections(track_ids, ages_frames, shown, _spans(started), _spans(ended))

    def finish(self) -> list[TrackSpan]:
        """End every track; the confirmed ones are returned, by id."""
        records = self._records[: self._num_tracks]
        self._num_tracks = 0
        confirmed = records[records[:, TRACK_ID] > 0]
        return _spans(confirmed[np.argsort(confirmed[:, TRACK_ID])])

    def checkpoint(self) -> bytes:
        """The whole state as MessagePack: `restore` goes on from it bit for bit."""
        num = self._num_tracks
        return msgspec.msgpack.encode(
            _Checkpoint(
                version=CHECKPOINT_VERSION,
                num_confirmed=self._num_confirmed,
                frame_seq=self._frame_seq,
                time_s=self._time_s,
                clock_s=self._clock_s,
                filters=self._filters[:num].astype("<f8").tobytes(),
                sightings=self._sightings[:num].astype("<f8").tobytes(),
                records=self._records[:num].astype("<i8").tobytes(),
            )
        )

    @classmethod
    def restore(cls, config: TrackerConfig, payload: bytes) -> Tracker:
        """The tracker that wrote the checkpoint. Raises ValueError for bytes that are not one of this version."""
        try:
            state = msgspec.msgpack.decode(payload, type=_Checkpoint)
        except msgspec.DecodeError as error:
            raise ValueError(f"not a tracker checkpoint: {error}") from None
        if state.version != CHECKPOINT_VERSION:
            raise ValueError(f"tracker checkpoint has version {state.version}, expected {CHECKPOINT_VERSION}")
        num, rest = divmod(len(state.records), 5 * 8)
        if rest or len(state.filters) != num * 4 * 5 * 8 or len(state.sightings) != num * 3 * 8:
            raise ValueError("tracker checkpoint is damaged: its tables differ in length")
        tracker = cls(config)
        tracker._reserve(num)
        tracker._num_tracks = num
        tracker._num_confirmed = state.num_confirmed
        tracker._frame_seq = state.frame_seq
        tracker._time_s = state.time_s
        tracker._clock_s = state.clock_s
        tracker._filters[:num] = np.frombuffer(state.filters, "<f8").reshape(num, 4, 5)
        tracker._sightings[:num] = np.frombuffer(state.sightings, "<f8").reshape(num, 3)
        tracker._records[:num] = np.frombuffer(state.records, "<i8").reshape(num, 5)
        return tracker

    def _reserve(self, num: int) -> None:
        """Make place for num tracks."""
        capacity = len(self._records)
        while capacity < num:
            capacity *= 2
        if capacity > len(self._records):
            extra = capacity - len(self._records)
            self._filters = np.concatenate((self._filters, np.zeros((extra, 4, 5), np.float64)))
            self._sightings = np.concatenate((self._sightings, np.zeros((extra, 3), np.float64)))
            self._records = np.concatenate((self._records, np.zeros((extra, 5), np.int64)))


def _spans(records: Ints) -> list[TrackSpan]:
    return [TrackSpan(*row[:NUM_HITS]) for row in records.tolist()]


def _checked(detections: Detections) -> tuple[Floats, Floats, Ints, Cells]:
    """Boxes (N, 4), scores (N,), classes (N,), masks (N, 28, 28) or (0, 28, 28), as arrays of our own, of the types the
    compiled code is built for.
    """
    num = len(detections.scores)
    if detections.boxes_xyxy.shape != (num, 4) or detections.class_ids.shape != (num,):
        raise ValueError(
            f"detections must be boxes (N, 4), scores (N,), class_ids (N,), got {detections.boxes_xyxy.shape}, "
            f"{detections.scores.shape}, {detections.class_ids.shape}"
        )
    boxes_xyxy = np.array(detections.boxes_xyxy, np.float64, order="C")
    scores = np.array(detections.scores, np.float64)
    if not np.isfinite(boxes_xyxy).all() or not np.isfinite(scores).all():
        bad = int(np.argmin(np.isfinite(boxes_xyxy).all(axis=1) & np.isfinite(scores)))
        raise ValueError(
            f"boxes and scores must be finite, got {boxes_xyxy[bad].tolist()} with score {scores[bad]} at place {bad}"
        )
    if (boxes_xyxy[:, :2] > boxes_xyxy[:, 2:]).any():
        bad = int(np.argmax((boxes_xyxy[:, :2] > boxes_xyxy[:, 2:]).any(axis=1)))
        raise ValueError(f"boxes must have x2 >= x1 and y2 >= y1, got {boxes_xyxy[bad].tolist()} at place {bad}")
    bits = detections.mask_bits
    cells = unpack_cells(np.zeros((0, MASK_BYTES), np.uint8) if bits is None else bits)
    if bits is not None and len(bits) != num:
        raise ValueError(f"mask_bits must be (N, {MASK_BYTES}) with N = {num}, got {bits.shape}")
    return boxes_xyxy, scores, np.array(detections.class_ids, np.int64), cells
