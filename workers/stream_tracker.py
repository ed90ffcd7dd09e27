"""One stream in the track worker: detections in any order become results in order, each committed exactly once."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from pipeline.bus import Bus, seq_range
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
from pipeline.contract.wire import BusMessage, FrameDetections, FrameGap, SourceEnd
from pipeline.errors import FencedError, PositionMovedError
from pipeline.models.weights_table import spec_of_stream
from pipeline.tracking.tracker import TrackedDetections, Tracker, TrackerConfig, TrackSpan
from workers.base import log

LOST_CHECK_S = 1.0
"""how long a stream stands still before it is asked whether its next number is still somewhere"""
STATUS_INTERVAL_S = 0.25


class _Progress(msgspec.Struct, kw_only=True):
    """Everything a tracker that takes over has to know; the checkpoint that stands beside `seq`."""

    tracker: bytes = b""
    stream_epoch: int = 1
    companions: int = 0
    """messages that follow the last number: `seq-1`, `seq-2` …"""
    time_s: float = 0.0
    """of the last frame on the tracker's clock: media time, continued over epochs by arrival time"""
    time_offset_s: float = 0.0
    """clock minus media time in this epoch"""
    arrived_at_ns: int = 0
    dropped_before: int = 0
    num_frames: int = 0
    num_instances: int = 0
    gaps: dict[str, int] = {}


class StreamTracker:
    """Holds the `track` role of one stream while it can."""

    def __init__(self, bus: Bus, stream: StreamConfig) -> None:
        self.stream = stream
        self._bus = bus
        self.log = bus.result_log(stream)
        self._labels = spec_of_stream(stream).labels
        self._config = _tracker_config(stream)
        self._owned = False
        self._loaded = False
        self._ended = False
        self._log_id = bus.log_id(stream.stream_id) or ""
        self._seq = 0
        self._progress = _Progress()
        self._tracker = Tracker(self._config)
        self._waiting: dict[int, tuple[bytes, BusMessage]] = {}
        self._moved_at_s = time.monotonic()
        self._status_at_s = 0.0

    @property
    def log_id(self) -> str:
        """The log this tracker writes or waits to write."""
        return self._log_id

    @property
    def active(self) -> bool:
        """Whether there is anything to read for: the role is held and the stream is not over."""
        return self._owned and not self._ended

    def step(self) -> None:
        """Take the role if it is free, read what came, commit what is next. Raises FencedError and LOST_CONNECTION."""
        if not self._owned:
            if not self.log.lease.try_take():
                return
            self._owned = True
        if not self._loaded:
            self._load()
        if self._ended:
            return
        self.log.lease.beat()
        try:
            for entry_id, message in self.log.read():
                self._hold(entry_id, message)
            self._advance()
            if time.monotonic() - self._moved_at_s >= LOST_CHECK_S:
                self._look_for_lost()
        except PositionMovedError as moved:
            log.warning("the bus is elsewhere than remembered, loading again: %s", moved)
            self.forget()
        self._tell_status()

    def forget(self) -> None:
        """Trust the server, not memory: the next step loads position and checkpoint, and reads from the start."""
        self._loaded = False

    def _load(self) -> None:
        self._waiting.clear()
        self._moved_at_s = time.monotonic()
        position = self.log.load()
        if position is None:
            raise FencedError(f"the job of {self.stream.stream_id} is no longer on the bus")
        self._log_id, self._seq, self._ended = position.log_id, position.seq, position.ended
        checkpoint = position.checkpoint
        self._progress = msgspec.msgpack.decode(checkpoint, type=_Progress) if checkpoint else _Progress()
        self._loaded = True
        tracker = self._progress.tracker
        self._tracker = Tracker.restore(self._config, tracker) if tracker else Tracker(self._config)

    def release(self) -> None:
        """Give the role back."""
        if self._owned:
            self.log.lease.release()
            self._owned = False

    def _hold(self, entry_id: bytes, message: BusMessage) -> None:
        first, last = seq_range(message)
        if last <= self._seq:
            self.log.discard([entry_id])
            return
        first = max(first, self._seq + 1)
        if first in self._waiting:
            self.log.discard([self._waiting[first][0]])
        self._waiting[first] = (entry_id, message)

    def _advance(self) -> None:
        while (held := self._waiting.pop(self._seq + 1, None)) is not None:
            entry_id, message = held
            if isinstance(message, FrameDetections):
                self._commit_frame(entry_id, message)
            elif isinstance(message, FrameGap):
                self._commit_gap(message.to_seq, message.cause, message.detail, [entry_id], message.session)
            else:
                self._commit_end(entry_id, message)
                return

    def _look_for_lost(self) -> None:
        """A number that was given, but stands neither in frames nor in detections, will never come: write its gap."""
        self._moved_at_s = time.monotonic()
        last = self.log.last_assigned_seq()
        if last <= self._seq:
            return
        present = self.log.first_present_seq(self._seq + 1)
        to_seq = last if present is None else min(last, present - 1)
        if to_seq > self._seq:
            self._commit_gap(to_seq, "lost", "no worker has it any more", [], "")
            self._advance()

    def _commit_frame(self, entry_id: bytes, message: FrameDetections) -> None:
        start_s = time.perf_counter()
        header, progress = message.header, self._progress
        seq = header.frame_seq
        results = self._epoch_results(header.stream_epoch)
        if results or progress.num_frames == 0:
            passed_s = (header.arrived_at_ns - progress.arrived_at_ns) / 1e9 if progress.num_frames else 0.0
            progress.time_offset_s = progress.time_s + max(0.0, passed_s) - header.pts_s
        progress.time_s = header.pts_s + progress.time_offset_s
        progress.arrived_at_ns = header.arrived_at_ns
        try:
            detections = message.unpack()
            tracked = self._tracker.update(detections, seq, progress.time_s) if self.stream.track else None
        except ValueError as error:
            self._commit_gap(seq, "error", f"tracker: {error}", [entry_id], header.session)
            return
        instances = self._untracked_instances(detections) if tracked is None else self._instances(detections, tracked)
        result = FrameResult(
            stream_id=self.stream.stream_id,
            log_id=self._log_id,
            stream_epoch=header.stream_epoch,
            frame_seq=seq,
            published_at_ns=self._bus.clock.now_ns(),
            pts_s=header.pts_s,
            captured_at_ns=header.captured_at_ns,
            clock=header.clock,
            arrived_at_ns=header.arrived_at_ns,
            source_name=header.source_name,
            width=header.source_width,
            height=header.source_height,
            model=message.model,
            dropped_before=progress.dropped_before,
            instances=instances,
            timing_ms=Timing(
                decode=round(header.decode_ms, 3),
                queue=round(message.queue_ms, 3),
                infer=round(message.infer_ms, 3),
                track=round((time.perf_counter() - start_s) * 1000, 3),
            ),
        )
        progress.num_frames += 1
        progress.num_instances = len(instances)
        progress.dropped_before = 0
        progress.companions = 0
        results.append((f"{seq}-0", result))
        if tracked is not None:
            results += self._events(seq, "track_end", tracked.ended) + self._events(seq, "track_start", tracked.started)
        self._commit(seq, results, [entry_id], header.session)

    def _events(
        self, seq: int, event: Literal["track_start", "track_end"], spans: list[TrackSpan]
    ) -> list[tuple[str, AnyResult]]:
        """What happened to tracks at `seq`, as companions of that number."""
        results: list[tuple[str, AnyResult]] = []
        for track in spans:
            self._progress.companions += 1
            message = EventResult(
                stream_id=self.stream.stream_id,
                log_id=self._log_id,
                stream_epoch=self._progress.stream_epoch,
                frame_seq=seq,
                published_at_ns=self._bus.clock.now_ns(),
                event=event,
                track_id=track.track_id,
                track_uid=f"{self.stream.stream_id}:{track.track_id}",
                class_id=track.class_id,
                label=self._labels[track.class_id],
                first_seq=track.first_seq,
                last_seq=track.last_seq,
                duration_s=round(track.duration_s, 6),
                num_detections=track.num_detections,
                mean_score=round(track.mean_score, 4),
                path=[(frame, round(x, 2), round(y, 2)) for frame, x, y in track.path],
            )
            results.append((f"{seq}-{self._progress.companions}", message))
        return results

    def _instances(self, detections: Detections, tracked: TrackedDetections) -> list[Instance]:
        """The tracked instances whose score is at least min_score."""
        rows = zip(
            tracked.detection_idx.tolist(),
            tracked.track_ids.tolist(),
            tracked.class_ids.tolist(),
            tracked.ages_frames.tolist(),
            tracked.states,
            strict=True,
        )
        return [
            self._instance(detections, index, track_id, class_id, age, state)
            for index, track_id, class_id, age, state in rows
            if detections.scores[index] >= self.stream.min_score
        ]

    def _untracked_instances(self, detections: Detections) -> list[Instance]:
        """Every detection as an instance without a track; infer has dropped those below conf and min_score."""
        class_ids = detections.class_ids.tolist()
        return [
            self._instance(detections, index, 0, class_id, 1, "untracked") for index, class_id in enumerate(class_ids)
        ]

    def _instance(
        self,
        detections: Detections,
        index: int,
        track_id: int,
        class_id: int,
        age_frames: int,
        state: Literal["tentative", "confirmed", "untracked"],
    ) -> Instance:
        x1, y1, x2, y2 = (round(float(edge), 2) for edge in detections.boxes_xyxy[index])
        return Instance(
            track_id=track_id or None,
            track_uid=f"{self.stream.stream_id}:{track_id}" if track_id else None,
            state=state,
            age_frames=age_frames,
            class_id=class_id,
            label=self._labels[class_id],
            score=round(float(detections.scores[index]), 4),
            box_xyxy=(x1, y1, x2, y2),
            mask=_mask_of(detections, index),
            keypoints=_keypoints_of(detections, index),
        )

    def _commit_gap(self, to_seq: int, cause: GapCause, detail: str, consumed: list[bytes], session: str) -> None:
        progress = self._progress
        num_lost = to_seq - self._seq
        gap = GapResult(
            stream_id=self.stream.stream_id,
            log_id=self._log_id,
            stream_epoch=progress.stream_epoch,
            frame_seq=to_seq,
            published_at_ns=self._bus.clock.now_ns(),
            from_seq=self._seq + 1,
            cause=cause,
            detail=detail,
        )
        progress.gaps[cause] = progress.gaps.get(cause, 0) + num_lost
        progress.dropped_before += num_lost
        progress.companions = 0
        self._commit(to_seq, [(f"{to_seq}-0", gap)], consumed, session)

    def _epoch_results(self, stream_epoch: int) -> list[tuple[str, AnyResult]]:
        """The message that announces another epoch, behind the last number; none while the epoch stays."""
        progress = self._progress
        if stream_epoch == progress.stream_epoch:
            return []
        progress.stream_epoch = stream_epoch
        progress.companions += 1
        epoch = EpochResult(
            stream_id=self.stream.stream_id,
            log_id=self._log_id,
            stream_epoch=stream_epoch,
            frame_seq=self._seq,
            published_at_ns=self._bus.clock.now_ns(),
            detail="the source was opened again",
        )
        return [(f"{self._seq}-{progress.companions}", epoch)]

    def _commit_end(self, entry_id: bytes, message: SourceEnd) -> None:
        progress = self._progress
        results = self._events(self._seq, "track_end", self._tracker.finish())
        progress.companions += 1
        end = EndResult(
            stream_id=self.stream.stream_id,
            log_id=self._log_id,
            stream_epoch=progress.stream_epoch,
            frame_seq=self._seq,
            published_at_ns=self._bus.clock.now_ns(),
            reason=message.reason,
            detail=message.detail,
            num_frames=progress.num_frames,
            num_gap_frames=sum(progress.gaps.values()),
            num_corrupt=message.num_corrupt,
            num_tracks=self._tracker.num_confirmed,
        )
        results.append((f"{self._seq}-{progress.companions}", end))
        self._commit(self._seq, results, [entry_id], message.session, ended=message.reason)
        self._ended = True
        self._tell_status()
        self.release()

    def _commit(
        self, seq: int, results: list[tuple[str, AnyResult]], consumed: list[bytes], session: str, ended: str = ""
    ) -> None:
        self._progress.tracker = self._tracker.checkpoint()
        self.log.commit(
            seq_before=self._seq,
            seq_after=seq,
            session=session,
            results=results,
            consumed=consumed,
            checkpoint=msgspec.msgpack.encode(self._progress),
            ended=ended,
        )
        self._seq = seq
        self._moved_at_s = time.monotonic()

    def _tell_status(self) -> None:
        if time.monotonic() < self._status_at_s and not self._ended:
            return
        self._status_at_s = time.monotonic() + STATUS_INTERVAL_S
        progress = self._progress
        self._bus.set_status(
            self.stream.stream_id,
            num_frames=progress.num_frames,
            num_instances=progress.num_instances,
            num_tracks=self._tracker.num_confirmed,
            **{f"gap:{cause}": count for cause, count in progress.gaps.items()},
        )


def _mask_of(detections: Detections, index: int) -> Mask | None:
    if detections.rle_counts is None:
        return None
    counts = detections.rle_counts[index].decode("ascii")
    return Mask(size=(detections.height, detections.width), counts=counts)


def _keypoints_of(detections: Detections, index: int) -> list[tuple[float, float, float]] | None:
    if detections.keypoints is None:
        return None
    return [(round(x, 2), round(y, 2), round(score, 3)) for x, y, score in detections.keypoints[index].tolist()]


def _tracker_config(stream: StreamConfig) -> TrackerConfig:
    """A track outlives at least one missed frame, however rare the frames are."""
    lost_s = TrackerConfig().lost_s
    if stream.max_fps is not None:
        lost_s = max(lost_s, 2.5 / stream.max_fps)
    return TrackerConfig.for_conf(stream.birth_score, stream.score_floor, lost_s)
