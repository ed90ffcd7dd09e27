"""The `Tracker` protocol, and its configuration and result types."""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, Self

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from pipeline.contract.arrays import Detections

Ints = NDArray[np.int64]

TrackState = Literal["tentative", "confirmed"]

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, Meta(ge=0.0)]


class TrackerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Thresholds of the tracker. Scores, IoUs and shares lie in [0, 1]."""

    high_score: Fraction = 0.7
    """lowest score of a detection that takes part in the first association when there are no masks; also, a
    tentative track is confirmed only if the mean score of its detections exceeds this"""
    birth_score: Fraction = 0.5
    """lowest score of a detection that can begin a track or continue a tentative one; also of a detection that can
    continue a confirmed track of another class"""
    low_score: Fraction = 0.1
    """lowest score of a detection that can continue a confirmed track of its class"""
    high_score_iou: Fraction = 0.2
    """lowest IoU of the predicted box of a track and the box of a detection of its class with a score of at least
    high_score or, for a confirmed track when masks are in use (there are masks and mask_weight is above 0), of at least
    low_score"""
    low_score_iou: Fraction = 0.3
    """lowest IoU of the predicted box of a track and the box of any other detection of the track's class"""
    class_iou: Fraction = 0.6
    """lowest IoU, of the boxes and of the masks, of a confirmed track and a detection of another class with a score of
    at least birth_score; such a detection is one more vote on the class of the track"""
    mask_weight: Fraction = 0.7
    """weight of the mask IoU in the similarity of a track and a detection; the box IoU has the rest. It is used when
    the track or the detection has another candidate of its class. 0 ignores the masks"""
    lost_discount: Fraction = 0.5
    """share of the similarity that a track has lost after lost_s seconds without a detection; it grows linearly from
    0"""
    duplicate_iou: Fraction = 0.7
    """a detection without a track is dropped as a duplicate if its box has a higher IoU than this with the box of a
    tracked detection of the same class, or its mask with the mask of a tracked detection of any class"""
    duplicate_share: Fraction = 0.8
    """a detection without a track is dropped as a part of an object if more than this share of its mask lies inside
    the mask of a tracked detection of the same class"""
    confirm_s: Seconds = 0.1
    """seconds from the first to the latest detection after which a tentative track is confirmed, if the mean score of
    its detections (at least two) is half-way from high_score to 1. A higher mean score needs less time; a mean score
    of high_score never suffices"""
    lost_s: Seconds = 1.5
    """seconds without a detection after which a confirmed track ends; must exceed the interval between frames"""

    @classmethod
    def for_conf(cls, conf: float, low_score: float, lost_s: float | None = None) -> TrackerConfig:
        """The configuration for a confidence threshold: tracks begin at a score of conf.

        high_score is conf too, because the networks of the registry give lower scores than the detectors of
        MOTChallenge, whose scores lie close to 1. lost_s None means the default.
        """
        lost_s = cls().lost_s if lost_s is None else lost_s
        return cls(high_score=conf, birth_score=conf, low_score=low_score, lost_s=lost_s)


class TrackSpan(msgspec.Struct, frozen=True):
    """Summary of a confirmed track, at its confirmation or at its end."""

    track_id: int
    class_id: int
    """class with the highest sum of scores over the track's detections"""
    first_seq: int
    """frame of the first detection"""
    last_seq: int
    """frame of the latest detection"""
    duration_s: float
    """time from the first to the latest detection, by the times given to `update`"""
    num_detections: int
    mean_score: float
    path: list[tuple[int, float, float]]
    """(frame, x, y) of the mask's centroid, or of the box's centre without masks, in pixels: the first detection, the
    latest detection, and at most 15 evenly spaced detections between them"""


class TrackedDetections(msgspec.Struct, frozen=True, eq=False):
    """The K detections of a frame that have a track, in input order.

    Left out are low-score detections that continue no confirmed track, duplicates and parts of tracked objects, and
    boxes without area.
    """

    rows: Ints
    """(4, K) int64: detection_idx, track_ids, class_ids, ages_frames"""
    started: list[TrackSpan]
    """tracks that this update confirmed"""
    ended: list[TrackSpan]
    """confirmed tracks that ended at this update"""

    def __len__(self) -> int:
        return len(self.rows[0])

    @property
    def detection_idx(self) -> Ints:
        """(K,) int64, ascending: indices into the detections that were given to `update`."""
        return self._row(0)

    @property
    def track_ids(self) -> Ints:
        """(K,) int64: positive for a confirmed track, 0 for a tentative one."""
        return self._row(1)

    @property
    def class_ids(self) -> Ints:
        """(K,) int64: the class of the track, which can differ from the class of the detection."""
        return self._row(2)

    @property
    def ages_frames(self) -> Ints:
        """(K,) int64: number of frames since the track began, including this one."""
        return self._row(3)

    def _row(self, number: int) -> Ints:
        row: Ints = self.rows[number]
        return row

    @property
    def states(self) -> list[TrackState]:
        """State of each track."""
        return ["confirmed" if track_id else "tentative" for track_id in self.track_ids.tolist()]


class Tracker(Protocol):
    """Links the detections of successive frames of one stream into tracks.

    The result must not depend on the order of a frame's detections, and must depend on nothing but the configuration
    and the updates: after a crash, the frames since the latest checkpoint are tracked again and must give the same
    messages.
    """

    def __init__(self, config: TrackerConfig) -> None:
        """A tracker without tracks. Raises ValueError for a configuration that contradicts itself."""

    @property
    def num_confirmed(self) -> int:
        """Number of tracks confirmed so far. Track IDs are 1, 2, 3 … in the order of confirmation."""

    def update(self, detections: Detections, frame_seq: int, time_s: float) -> TrackedDetections:
        """Track one frame.

        frame_seq must rise from call to call. time_s is the time of the frame in seconds from any origin; the tracker
        must accept a time that repeats or goes back. Raises ValueError, and leaves the state unchanged, for arrays of a
        wrong shape, numbers that are not finite, boxes with x2 < x1 or y2 < y1, and a frame_seq that does not rise; the
        frame then becomes a gap.
        """

    def finish(self) -> list[TrackSpan]:
        """End every track and return the confirmed ones by ID. The stream has ended; no update follows."""

    def checkpoint(self) -> bytes:
        """The whole state as bytes, from which `restore` continues with identical results. It is called after every
        commit, also after `finish`.
        """

    @classmethod
    def restore(cls, config: TrackerConfig, payload: bytes) -> Self:
        """The tracker that returned payload from `checkpoint`. Raises ValueError (`not a tracker checkpoint: …`) for
        other bytes, among them the checkpoint of another tracker or version.
        """
