"""Checks whether a source was read to the end that its container announced."""

from __future__ import annotations

from typing import Any

import av

from pipeline.source.packet_times import has_invented_times

MAX_MISSING_FRAMES = 2
MIN_TOLERANCE_S = 0.1
HLS_TOLERANCE = 0.05
"""fraction of the announced duration: playlists may round the duration of every segment to whole seconds"""

_ESTIMATED_DURATION_FORMATS = frozenset({"mpegts", "mpeg"})
"""the header of these formats states no duration; FFmpeg derives it from the last timestamps in the file"""
_ABSOLUTE_DURATION_FORMATS = ("matroska", "flv")
"""in these formats the duration is the time of the end, not the time from the first frame to the end"""


class AnnouncedEnd:
    """Compares the packets that were read with the number of frames and the duration that the container announced.

    num_frames      number of frames in the header; None if the header states none
    duration_s      duration in seconds in the header; None if the header states none
    streams         streams whose packets must be noted: the video, and audio if the header states only the duration of
                    the whole file
    """

    def __init__(self, container: Any, stream: Any, fps: float | None) -> None:
        self._format = container.format.name
        self._fps = fps
        self._num_packets = 0
        self._first_s: float | None = None
        self._end_s = 0.0
        self.num_frames: int | None = stream.frames or None
        self.duration_s = _duration_of_stream(stream)
        self.streams = [stream]
        if self.duration_s is None and container.duration and not has_invented_times(container.format):
            self.duration_s = container.duration / av.time_base
            self.streams = [other for other in container.streams if other.type in ("video", "audio")]
        if self._format in _ESTIMATED_DURATION_FORMATS:
            self.duration_s = None

    def note(self, packet: Any, *, is_video: bool) -> None:
        """Note a packet of one of `streams`, including empty packets, which repeat a frame."""
        self._num_packets += is_video
        ticks = packet.dts if packet.pts is None else packet.pts
        if ticks is None:
            return
        begin_s = float(ticks * packet.time_base)
        self._first_s = begin_s if self._first_s is None else min(self._first_s, begin_s)
        self._end_s = max(self._end_s, begin_s + float((packet.duration or 0) * packet.time_base))

    @property
    def read_s(self) -> float:
        """Media time that was read, in seconds."""
        return self._end_s - (self._first_s or 0.0)

    @property
    def is_reached(self) -> bool:
        """Whether the announced end was reached; True if no end was announced."""
        if self.num_frames is not None and self._num_packets >= self.num_frames - MAX_MISSING_FRAMES:
            return True
        if self.num_frames is not None and self._format == "avi":
            return False  # FFmpeg derives the duration from the size of the file
        if self.duration_s is None:
            return self.num_frames is None
        end_s = self._end_s if self._format.startswith(_ABSOLUTE_DURATION_FORMATS) else self.read_s
        return end_s >= self.duration_s - self._tolerance_s(self.duration_s)

    def _tolerance_s(self, duration_s: float) -> float:
        tolerance_s = max(MIN_TOLERANCE_S, (MAX_MISSING_FRAMES + 0.5) / self._fps if self._fps else 0.0)
        return max(tolerance_s, duration_s * HLS_TOLERANCE) if self._format == "hls" else tolerance_s


def _duration_of_stream(stream: Any) -> float | None:
    """Return the duration in seconds, from the header or from the tag that Matroska muxers write for each track."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    try:
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    except ValueError:
        return None
