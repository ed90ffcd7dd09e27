"""Assembly of a stream's result messages from its detections, in order, without Redis.

`ResultAssembler` runs the tracker, builds each message with its entry ID, and keeps the state that the next process
needs to continue the stream. workers/stream_tracker.py reads the detections and commits what is assembled here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from pipeline.contract.arrays import Detections
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import (
    AnyResult,
    EndResult,
    EpochResult,
    EventResult,
    FrameResult,
    GapCause,
    GapResult,
    Instance,
    Mask,
    Timing,
)
from pipeline.contract.wire import FrameDetections, SourceEnd
from pipeline.tracking.tracker import TrackedDetections, TrackerConfig, TrackSpan
from pipeline.tracking.trackers import make_tracker, restore_tracker


class Progress(msgspec.Struct, kw_only=True):
    """State of a stream after its latest committed message: the checkpoint that the bus stores beside the position."""

    tracker: bytes = b""
    """the tracker's own checkpoint; empty before the first commit"""
    stream_epoch: int = 1
    num_followers: int = 0
    """followers of the frame or gap at `seq`: the messages (events, epoch, end) that are numbered after it, with the
    entry IDs `seq-1`, `seq-2` …"""
    time_s: float = 0.0
    """time of the latest frame on the tracker's clock, which runs on across epochs"""
    time_offset_s: float = 0.0
    """the tracker's clock minus media time in the current epoch"""
    arrived_at_ns: int = 0
    """arrival of the latest frame at the decoder"""
    dropped_before: int = 0
    """frames that gaps cover since the latest frame message"""
    num_frames: int = 0
    num_instances: int = 0
    """instances on the latest frame"""
    gaps: dict[str, int] = {}
    """frames that gaps cover, by cause"""


class Commit(NamedTuple):
    """Messages that are committed together, and the position before and after them."""

    seq_before: int
    seq_after: int
    results: list[tuple[str, AnyResult]]
    """(entry ID, message), in order"""
    end_reason: str = ""
    """reason of the end of the stream, empty before it"""


class ResultAssembler:
    """Builds the result messages of one stream.

    Every method advances `seq` and the state by one commit. If that commit is not stored, discard the assembler and
    make another one from the stored position and checkpoint.
    """

    def __init__(
        self,
        stream: StreamConfig,
        labels: Mapping[int, str],
        log_id: str,
        now_ns: Callable[[], int],
        *,
        seq: int = 0,
        checkpoint: bytes = b"",
    ) -> None:
        """labels maps class IDs to names; now_ns returns the Redis server's time, in nanoseconds since 1970.

        seq and checkpoint are the stored position and the value of `checkpoint()` at that position; the defaults begin
        a stream. Raises ValueError for a checkpoint that cannot be read.
        """
        self.seq = seq
        self._stream = stream
        self._labels = labels
        self._log_id = log_id
        self._now_ns = now_ns
        try:
            self._progress = msgspec.msgpack.decode(checkpoint, type=Progress) if checkpoint else Progress()
        except msgspec.MsgspecError as error:
            raise ValueError(f"not a checkpoint of a stream: {error}") from None
        config = tracker_config(stream)
        stored = self._progress.tracker
        self._tracker = restore_tracker(config, stored) if stored else make_tracker(config)

    def checkpoint(self) -> bytes:
        """The state after the latest commit, as MessagePack."""
        self._progress.tracker = self._tracker.checkpoint()
        return msgspec.msgpack.encode(self._progress)

    def counters(self) -> dict[str, int]:
        """Totals for `status`."""
        progress = self._progress
        return {
            "num_frames": progress.num_frames,
            "num_instances": progress.num_instances,
            "num_tracks": self._tracker.num_confirmed,
            **{f"gap:{cause}": count for cause, count in progress.gaps.items()},
        }

    def frame(self, message: FrameDetections) -> Commit:
        """The frame message, after an epoch message if the epoch changed and before the events of the tracks.

        Detections that the tracker refuses become a gap with the cause `error`.
        """
        start_s = time.perf_counter()
        header, progress = message.header, self._progress
        results = self._epoch(header.stream_epoch)
        if results or progress.num_frames == 0:
            passed_s = (header.arrived_at_ns - progress.arrived_at_ns) / 1e9 if progress.num_frames else 0.0
            progress.time_offset_s = progress.time_s + max(0.0, passed_s) - header.pts_s
        progress.time_s = header.pts_s + progress.time_offset_s
        progress.arrived_at_ns = header.arrived_at_ns
        try:
            detections = message.unpack()
            tracked = self._update(detections, header.frame_seq)
        except ValueError as error:
            return self._gap(results, header.frame_seq, "error", f"tracker: {error}")
        instances = self._instances(detections, tracked)
        track_ms = (time.perf_counter() - start_s) * 1000
        progress.num_frames += 1
        progress.num_instances = len(instances)
        seq_before, self.seq = self.seq, header.frame_seq
        results.append((f"{self.seq}-0", self._frame_result(message, instances, track_ms)))
        progress.dropped_before = 0
        progress.num_followers = 0
        if tracked is not None:
            results += self._events("track_end", tracked.ended) + self._events("track_start", tracked.started)
        return Commit(seq_before, self.seq, results)

    def gap(self, to_seq: int, cause: GapCause, detail: str) -> Commit:
        """The gap message for the frames after the position up to to_seq."""
        return self._gap([], to_seq, cause, detail)

    def end(self, message: SourceEnd) -> Commit:
        """The end of every confirmed track, then the end message."""
        progress = self._progress
        results = self._events("track_end", self._tracker.finish())
        end = EndResult(
            **self._header(self.seq),
            reason=message.reason,
            detail=message.detail,
            num_frames=progress.num_frames,
            num_gap_frames=sum(progress.gaps.values()),
            num_corrupt=message.num_corrupt,
            num_tracks=self._tracker.num_confirmed,
        )
        results.append((self._next_follower_id(), end))
        return Commit(self.seq, self.seq, results, end_reason=message.reason)

    def _update(self, detections: Detections, seq: int) -> TrackedDetections | None:
        """The frame's tracks, or None in a stream without tracking."""
        return self._tracker.update(detections, seq, self._progress.time_s) if self._stream.track else None

    def _epoch(self, stream_epoch: int) -> list[tuple[str, AnyResult]]:
        """The message that announces another epoch, or no message while the epoch stays the same."""
        if stream_epoch == self._progress.stream_epoch:
            return []
        self._progress.stream_epoch = stream_epoch
        epoch = EpochResult(**self._header(self.seq), detail="the source was opened again")
        return [(self._next_follower_id(), epoch)]

    def _gap(self, results: list[tuple[str, AnyResult]], to_seq: int, cause: GapCause, detail: str) -> Commit:
        progress = self._progress
        num_lost = to_seq - self.seq
        gap = GapResult(**self._header(to_seq), from_seq=self.seq + 1, cause=cause, detail=detail)
        progress.gaps[cause] = progress.gaps.get(cause, 0) + num_lost
        progress.dropped_before += num_lost
        progress.num_followers = 0
        seq_before, self.seq = self.seq, to_seq
        return Commit(seq_before, to_seq, [*results, (f"{to_seq}-0", gap)])

    def _events(
        self, event: Literal["track_start", "track_end"], spans: list[TrackSpan]
    ) -> list[tuple[str, AnyResult]]:
        """One event message for each track, which follows the frame at the position."""
        results: list[tuple[str, AnyResult]] = []
        for track in spans:
            message = EventResult(
                **self._header(self.seq),
                event=event,
                track_id=track.track_id,
                track_uid=self._track_uid(track.track_id),
                class_id=track.class_id,
                label=self._labels[track.class_id],
                first_seq=track.first_seq,
                last_seq=track.last_seq,
                duration_s=round(track.duration_s, 6),
                num_detections=track.num_detections,
                mean_score=round(track.mean_score, 4),
                path=[(frame, round(x, 2), round(y, 2)) for frame, x, y in track.path],
            )
            results.append((self._next_follower_id(), message))
        return results

    def _frame_result(self, message: FrameDetections, instances: list[Instance], track_ms: float) -> FrameResult:
        header = message.header
        return FrameResult(
            **self._header(header.frame_seq),
            pts_s=header.pts_s,
            captured_at_ns=header.captured_at_ns,
            clock=header.clock,
            arrived_at_ns=header.arrived_at_ns,
            source_name=header.source_name,
            width=header.source_width,
            height=header.source_height,
            model=message.model,
            dropped_before=self._progress.dropped_before,
            instances=instances,
            timing_ms=Timing(
                decode=round(header.decode_ms, 3),
                queue=round(message.queue_ms, 3),
                infer=round(message.infer_ms, 3),
                track=round(track_ms, 3),
            ),
        )

    def _instances(self, detections: Detections, tracked: TrackedDetections | None) -> list[Instance]:
        """The instances of a frame message, in the order of the detections.

        With tracking: the tracked detections whose score is at least min_score. Without tracking: every detection,
        because the infer worker has already dropped those below conf and min_score.
        """
        if tracked is None:
            class_ids = detections.class_ids.tolist()
            return [
                self._instance(detections, idx, 0, class_id, 1, "untracked") for idx, class_id in enumerate(class_ids)
            ]
        rows = zip(
            tracked.detection_idx.tolist(),
            tracked.track_ids.tolist(),
            tracked.class_ids.tolist(),
            tracked.ages_frames.tolist(),
            tracked.states,
            strict=True,
        )
        return [
            self._instance(detections, idx, track_id, class_id, age_frames, state)
            for idx, track_id, class_id, age_frames, state in rows
            if detections.scores[idx] >= self._stream.min_score
        ]

    def _instance(
        self,
        detections: Detections,
        idx: int,
        track_id: int,
        class_id: int,
        age_frames: int,
        state: Literal["tentative", "confirmed", "untracked"],
    ) -> Instance:
        x1, y1, x2, y2 = (round(float(edge), 2) for edge in detections.boxes_xyxy[idx])
        return Instance(
            track_id=track_id or None,
            track_uid=self._track_uid(track_id) if track_id else None,
            state=state,
            age_frames=age_frames,
            class_id=class_id,
            label=self._labels[class_id],
            score=round(float(detections.scores[idx]), 4),
            box_xyxy=(x1, y1, x2, y2),
            mask=_mask_of(detections, idx),
            keypoints=_keypoints_of(detections, idx),
        )

    def _header(self, seq: int) -> dict[str, Any]:
        """The fields of every message."""
        return {
            "stream_id": self._stream.stream_id,
            "log_id": self._log_id,
            "stream_epoch": self._progress.stream_epoch,
            "frame_seq": seq,
            "published_at_ns": self._now_ns(),
        }

    def _track_uid(self, track_id: int) -> str:
        return f"{self._stream.stream_id}:{track_id}"

    def _next_follower_id(self) -> str:
        self._progress.num_followers += 1
        return f"{self.seq}-{self._progress.num_followers}"


def tracker_config(stream: StreamConfig) -> TrackerConfig:
    """The tracker's settings for a stream. At a low max_fps, lost_s covers two intervals between frames, so that a
    track survives one missed detection.
    """
    lost_s = TrackerConfig().lost_s
    if stream.max_fps is not None:
        lost_s = max(lost_s, 2.5 / stream.max_fps)
    return TrackerConfig.for_conf(stream.birth_score, stream.score_floor, lost_s)


def _mask_of(detections: Detections, idx: int) -> Mask | None:
    if detections.rle_counts is None:
        return None
    counts = detections.rle_counts[idx].decode("ascii")
    return Mask(size=(detections.height, detections.width), counts=counts)


def _keypoints_of(detections: Detections, idx: int) -> list[tuple[float, float, float]] | None:
    if detections.keypoints is None:
        return None
    return [(round(x, 2), round(y, 2), round(score, 3)) for x, y, score in detections.keypoints[idx].tolist()]
