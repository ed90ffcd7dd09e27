"""Links the detections of successive frames of one stream into tracks with ids.

One compiled call per frame: end what was lost too long, predict with the real time step, associate, correct, give
births, confirm. Of boxes alone high-score detections come first, then low-score ones with what is left (ByteTrack,
Zhang et al. 2022); with masks, which decide where boxes leave a doubt, all come together. The result does not depend on
the order of the detections of a frame.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ops.track_step import compiled_step, write_span
from ops.track_tables import RULES, SPAN, TRACK, Table
from pipeline.contract.arrays import MASK_BYTES, Detections

Ints = NDArray[np.int64]

TrackState = Literal["tentative", "confirmed"]

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0)]

CHECKPOINT_VERSION = 5
MIN_STEP_S = 1e-3
"""time step when the clock stood still or went back"""


class TrackerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How detections become tracks."""

    high_score: Fraction = 0.7
    """lowest score of a detection without a mask that is associated first, and lowest mean score of a track that is
    given an id"""
    birth_score: Fraction = 0.5
    """lowest score of a detection that may begin a track"""
    low_score: Fraction = 0.1
    """lowest score of a detection that may continue a confirmed track"""
    high_iou: Fraction = 0.2
    """lowest IoU of a high-score detection, or of one with a mask, with the predicted box of its track"""
    low_iou: Fraction = 0.3
    """the same for a low-score detection without a mask"""
    class_iou: Fraction = 0.6
    """the same for a detection of another class, whose mask must overlap as much: it is one more vote on the class of
    the track"""
    mask_weight: Fraction = 0.7
    """share of the IoU of masks, beside that of boxes, in the similarity of a detection and a track, where either
    has another choice; 0 looks at boxes alone"""
    lost_discount: Fraction = 0.5
    """what a similarity loses when its track has not been seen for lost_s, and in proportion before"""
    duplicate_iou: Fraction = 0.7
    """a detection without a track is dropped when its box overlaps one that has a track, of the same class, by more, or
    when their masks do, of whatever class: one pixel belongs to one object"""
    duplicate_share: Fraction = 0.8
    """the same when a larger share of its mask lies inside the mask of one of the same class: a part is no object"""
    confirm_s: Seconds = 0.1
    """seconds from the first to the current detection, two of them at least, after which a track is given its id when
    their mean score is half-way from high_score to 1; surer ones wait less, those at high_score for ever"""
    lost_s: Seconds = 1.5
    """seconds without a detection after which a confirmed track ends; it must exceed the interval between frames"""

    @classmethod
    def for_conf(cls, conf: float, low_score: float, lost_s: float | None = None) -> TrackerConfig:
        """For detections that are wanted from a score of `conf` on: high_score is conf, because the networks here are
        less sure of what they find than the detectors of MOTChallenge, whose scores lie close to 1.
        """
        lost_s = cls().lost_s if lost_s is None else lost_s
        return cls(high_score=conf, birth_score=conf, low_score=low_score, lost_s=lost_s)


class TrackSpan(msgspec.Struct, frozen=True):
    """A confirmed track as it stands at its start or its end."""

    track_id: int
    class_id: int
    """the class with the most votes, weighted by score"""
    first_seq: int
    """frame of its first detection"""
    last_seq: int
    """frame of its latest detection"""
    duration_s: float
    """between the two, by the frames' own time"""
    num_detections: int
    mean_score: float
    path: list[tuple[int, float, float]]
    """frame, x and y of the mask's centroid in pixels (of the box's centre without a mask): evenly thinned to at most
    17 detections, the first and the latest among them"""


class TrackedDetections(msgspec.Struct, frozen=True, eq=False):
    """What one frame shows, N instances in the order of the detections given. Left out are weak detections without a
    confirmed track, second copies and parts of an object that has a track, and boxes without area.
    """

    rows: Ints
    """(4, N) int64: the properties below, from detection_idx to ages_frames"""
    started: list[TrackSpan]
    """tracks that were confirmed at this update"""
    ended: list[TrackSpan]
    """confirmed tracks that ended at this update"""

    def __len__(self) -> int:
        return len(self.rows[0])

    @property
    def detection_idx(self) -> Ints:
        """(N,) int64, places in the detections given, rising."""
        return self._row(0)

    @property
    def track_ids(self) -> Ints:
        """(N,) int64, positive; 0 while the track is not confirmed."""
        return self._row(1)

    @property
    def class_ids(self) -> Ints:
        """(N,) int64, of the tracks: the classes that their detections voted for."""
        return self._row(2)

    @property
    def ages_frames(self) -> Ints:
        """(N,) int64, frames since the track began, this one included."""
        return self._row(3)

    def _row(self, number: int) -> Ints:
        row: Ints = self.rows[number]
        return row

    @property
    def states(self) -> list[TrackState]:
        """State of each instance's track."""
        return ["confirmed" if track_id else "tentative" for track_id in self.track_ids.tolist()]


class _Checkpoint(msgspec.Struct, frozen=True):
    """The whole state of a tracker; its tracks as the bytes of their records, little-endian."""

    version: int
    num_tracks: int
    num_confirmed: int
    frame_seq: int
    time_s: float | None
    clock_s: float
    tracks: bytes


class Tracker:
    """Tracks of one stream. Ids are 1, 2, 3 … in the order of confirmation and never come again."""

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
        self._make_room(16)

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
        boxes_xyxy, scores, class_ids, mask_bits = _arrays(detections)
        if frame_seq <= self._frame_seq:
            raise ValueError(f"frame_seq must rise: expected more than {self._frame_seq}, got {frame_seq}")
        if not math.isfinite(time_s):
            raise ValueError(f"time_s must be finite, got {time_s}")
        step_s = MIN_STEP_S if self._time_s is None else max(MIN_STEP_S, time_s - self._time_s)
        clock_s = self._clock_s + step_s
        if self._num_tracks + len(scores) > len(self._tracks):
            self._make_room(self._num_tracks + len(scores))
        rows = np.empty((4, len(scores)), _INT64)
        bad, num_tracks, num_confirmed, num_shown, num_ended, num_started = self._step(
            self._tracks, self._num_tracks, self._num_confirmed, self._rules,
            boxes_xyxy, scores, class_ids, mask_bits, frame_seq, clock_s, step_s, rows, self._spans,
        )  # fmt: skip
        if bad >= 0:
            raise ValueError(
                f"expected finite numbers, x2 >= x1 and y2 >= y1, "
                f"got box {boxes_xyxy[bad].tolist()} with score {scores[bad]} at place {bad}"
            )
        self._num_tracks, self._num_confirmed = num_tracks, num_confirmed
        self._frame_seq, self._time_s, self._clock_s = frame_seq, time_s, clock_s
        rows = rows[:, :num_shown]
        if num_ended + num_started == 0:
            return TrackedDetections(rows, [], [])
        spans = _spans(self._spans[: num_ended + num_started])
        return TrackedDetections(rows, spans[num_ended:], spans[:num_ended])

    def _make_room(self, num_tracks: int) -> None:
        """Capacities double, so that a growing crowd seldom moves."""
        capacity = len(self._tracks)
        larger = np.zeros(max(num_tracks, 2 * capacity), TRACK)
        larger[:capacity] = self._tracks
        self._tracks = larger
        self._spans = np.zeros(len(larger), SPAN)

    def finish(self) -> list[TrackSpan]:
        """End every track; the confirmed ones are returned, by id."""
        confirmed = np.flatnonzero(self._tracks["track_id"][: self._num_tracks] > 0).tolist()
        for place, track in enumerate(confirmed):
            write_span(self._tracks, track, self._spans, place)
        self._num_tracks = 0
        return sorted(_spans(self._spans[: len(confirmed)]), key=lambda span: span.track_id)

    def checkpoint(self) -> bytes:
        """The whole state as MessagePack: `restore` goes on from it bit for bit."""
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
    def restore(cls, config: TrackerConfig, payload: bytes) -> Tracker:
        """The tracker that wrote the checkpoint. Raises ValueError for bytes that are not one of this version."""
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
        tracker._make_room(state.num_tracks)
        tracker._tracks[: state.num_tracks] = np.frombuffer(state.tracks, TRACK)
        tracker._num_tracks = state.num_tracks
        tracker._num_confirmed = state.num_confirmed
        tracker._frame_seq = state.frame_seq
        tracker._time_s = state.time_s
        tracker._clock_s = state.clock_s
        return tracker


def _spans(spans: Table) -> list[TrackSpan]:
    return [TrackSpan(*(*facts, points[:path_length].tolist())) for *facts, path_length, points in spans.tolist()]


# looked up faster than the scalar types
_FLOAT32, _INT32, _INT64 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64)
_NO_MASKS = np.zeros((0, MASK_BYTES), np.uint8)


def _arrays(
    detections: Detections,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
    """Boxes, scores, classes and mask bits, of the types that the compiled code is built for. Raises ValueError."""
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
