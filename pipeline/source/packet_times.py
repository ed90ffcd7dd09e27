"""Corrects the timestamps of the packets of a stream before they are decoded or stored."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import av

ARRIVAL_TIME_BASE = Fraction(1, 1_000_000)
JUMP_AHEAD_S = 10.0
"""a longer step forward is the start of another recording, if times may restart in the format; FFmpeg's
dts_delta_threshold"""

_NO_TIMES = av.format.Flags.no_timestamps.value
_MAY_START_ANEW = av.format.Flags.ts_discont.value


class PacketTimes:
    """Corrects the times of the packets of one video stream, in the order of the stream.

    - A format without timestamps (raw H.264, concatenated JPEGs): the times that FFmpeg invents, 25 pictures per
      second, are removed. In a live source of such a format, dts becomes the time of arrival.
    - AVI stores the decoding order only, so the pts that FFmpeg invents are removed.
    - A step back of dts means that recordings were concatenated: the later times are shifted so that the next recording
      begins one frame after the previous one. In a live source the gap is the time that passed, except in HLS, which
      delivers in bursts.

    offsets_s   seconds added to the times of the container so far: one entry per concatenated recording, the first is 0
    """

    def __init__(self, stream: Any, *, is_live: bool) -> None:
        container_format = stream.container.format
        self._has_times = not has_invented_times(container_format)
        self._by_arrival = is_live and not self._has_times
        self._has_pts = container_format.name != "avi"
        self._may_start_anew = bool(container_format.flags & _MAY_START_ANEW)
        self._counts_silence = is_live and container_format.name != "hls"
        self._rate = stream.guessed_rate
        self._arrived_first_s: float | None = None
        self._offset = 0
        self._last_dts: int | None = None
        self._last_arrived_s = 0.0
        self._next_pts = 0
        self.offsets_s = [0.0]

    def correct(self, packet: Any) -> None:
        """Correct pts, dts and time_base of the next packet in place."""
        if self._by_arrival:
            self._set_arrival(packet)
        elif not self._has_times:
            packet.pts = packet.dts = None
        else:
            self._follow_on(packet)
            if not self._has_pts:
                packet.pts = None

    def _set_arrival(self, packet: Any) -> None:
        arrived_s = time.monotonic()
        if self._arrived_first_s is None:
            self._arrived_first_s = arrived_s
        packet.time_base = ARRIVAL_TIME_BASE
        packet.pts = None  # with B-frames, packets do not arrive in presentation order
        packet.dts = round((arrived_s - self._arrived_first_s) / ARRIVAL_TIME_BASE)

    def _follow_on(self, packet: Any) -> None:
        if packet.dts is None:
            return
        step = self._step(packet)
        dts = packet.dts + self._offset
        if self._last_dts is not None and self._is_join(dts - self._last_dts, step, packet.time_base):
            self._offset += self._shift(packet, step, self._last_dts)
            self.offsets_s.append(float(self._offset * packet.time_base))
        packet.dts += self._offset
        self._last_dts, self._last_arrived_s = packet.dts, time.monotonic()
        if packet.pts is not None:
            packet.pts += self._offset
            self._next_pts = max(self._next_pts, packet.pts + step)

    def _is_join(self, advance: int, step: int, time_base: Fraction) -> bool:
        """Return whether dts advances by a step that does not occur within one recording.

        A step back of less than half a frame is a rounding error of a muxer.
        """
        if advance < 0:
            return -advance > step / 2
        return self._may_start_anew and advance * time_base > JUMP_AHEAD_S

    def _shift(self, packet: Any, step: int, last_dts: int) -> int:
        """Return the offset to add to the times from this packet on, in units of its time base."""
        shift: int = last_dts + step - (packet.dts + self._offset)
        if packet.pts is not None:
            shift = max(shift, self._next_pts - (packet.pts + self._offset))
        if self._counts_silence:
            shift += max(0, round((time.monotonic() - self._last_arrived_s) / packet.time_base) - step)
        return shift

    def _step(self, packet: Any) -> int:
        """Return the duration of a packet in units of its time base."""
        if packet.duration:
            return int(packet.duration)
        return max(1, round(1 / self._rate / packet.time_base)) if self._rate else 1


def has_invented_times(container_format: Any) -> bool:
    """Return whether this format stores no timestamps, so that FFmpeg invents them."""
    name = container_format.name
    return bool(container_format.flags & _NO_TIMES) or name == "mpjpeg" or name.endswith("_pipe")
