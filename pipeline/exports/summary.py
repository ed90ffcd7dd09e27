"""summary.json: statistics of a job's streams, computed from the result messages alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from pipeline.contract.results import AnyResult, EndReason, EndResult, EventResult, FrameResult, GapCause, GapResult
from pipeline.exports.files import write_atomically


class StreamSummary(msgspec.Struct, kw_only=True):
    """Statistics of one stream, from the messages so far; num_corrupt and num_tracks are final after `end`."""

    stream_id: str
    source: str = ""
    """path or URL of the source, without credentials"""
    log_id: str = ""
    reason: EndReason | None = None
    """null while the stream has not ended"""
    detail: str = ""
    model: str = ""
    width: int = 0
    height: int = 0
    last_seq: int = 0
    num_frames: int = 0
    num_instances: int = 0
    """over all frames"""
    gaps: dict[GapCause, int] = {}
    """cause -> frames without a result"""
    num_corrupt: int = 0
    num_tracks: int = 0
    """confirmed tracks"""
    tracks: dict[str, int] = {}
    """label -> confirmed tracks"""
    num_epochs: int = 0
    first_pts_s: float | None = None
    last_pts_s: float | None = None
    media_fps: float | None = None
    """frames per second of media time"""
    fps: float | None = None
    """frames per second of wall time, from the first result to the last"""


class _Span(msgspec.Struct):
    """Media time covered by the frames of a stream: the sum of the steps within epochs, without jumps between them."""

    stream_epoch: int = 0
    last_pts_s: float = 0.0
    media_s: float = 0.0
    num_steps: int = 0
    first_published_ns: int = 0
    last_published_ns: int = 0


class Summary:
    """Adds up the messages of any number of streams. Memory does not grow with the number of messages."""

    def __init__(self) -> None:
        self._streams: dict[str, StreamSummary] = {}
        self._spans: dict[str, _Span] = {}

    def add(self, message: AnyResult) -> None:
        """Count one message; those of a stream must come in order. A message of another log resets its stream."""
        stream = self._streams.get(message.stream_id)
        if stream is None or stream.log_id != message.log_id:
            stream = StreamSummary(stream_id=message.stream_id, log_id=message.log_id)
            self._streams[message.stream_id] = stream
            self._spans[message.stream_id] = _Span()
        stream.last_seq = max(stream.last_seq, message.frame_seq)
        stream.num_epochs = max(stream.num_epochs, message.stream_epoch)
        if isinstance(message, FrameResult):
            self._add_frame(stream, message)
        elif isinstance(message, GapResult):
            stream.gaps[message.cause] = stream.gaps.get(message.cause, 0) + message.frame_seq - message.from_seq + 1
        elif isinstance(message, EventResult) and message.event == "track_start":
            stream.num_tracks += 1
            stream.tracks[message.label] = stream.tracks.get(message.label, 0) + 1
        elif isinstance(message, EndResult):
            stream.reason, stream.detail = message.reason, message.detail
            stream.num_corrupt, stream.num_tracks = message.num_corrupt, message.num_tracks

    def _add_frame(self, stream: StreamSummary, frame: FrameResult) -> None:
        span = self._spans[frame.stream_id]
        if stream.num_frames == 0:
            stream.first_pts_s = frame.pts_s
            span.first_published_ns = frame.published_at_ns
        elif frame.stream_epoch == span.stream_epoch and frame.pts_s > span.last_pts_s:
            span.media_s += frame.pts_s - span.last_pts_s
            span.num_steps += 1 + frame.dropped_before
        span.stream_epoch, span.last_pts_s, span.last_published_ns = (
            frame.stream_epoch,
            frame.pts_s,
            frame.published_at_ns,
        )
        stream.num_frames += 1
        stream.num_instances += len(frame.instances)
        stream.last_pts_s = frame.pts_s
        stream.model, stream.width, stream.height = frame.model, frame.width, frame.height
        if span.media_s > 0:
            stream.media_fps = round(span.num_steps / span.media_s, 3)
        wall_s = (span.last_published_ns - span.first_published_ns) / 1e9
        if wall_s > 0:
            stream.fps = round((stream.num_frames - 1) / wall_s, 2)

    @property
    def streams(self) -> dict[str, StreamSummary]:
        """stream id -> statistics so far, in the order of the first messages"""
        return self._streams


def write_summary(path: Path, streams: Mapping[str, StreamSummary]) -> None:
    """Write summary.json atomically. Raises OutputError."""
    document = msgspec.json.encode({"schema": 1, "streams": streams})
    write_atomically(path, msgspec.json.format(document, indent=2) + b"\n")
