"""Copies the sound of a source into its annotated video."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import av

from pipeline.errors import SourceError
from pipeline.redaction import redact_url
from pipeline.source.container import open_container

MP4_CODECS = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "opus"})
"""codecs that players support in an MP4; sound in other codecs is encoded as AAC"""
AAC_RATES_HZ = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})
AAC_LAYOUTS = frozenset({"mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1"})
PREROLL_S = 0.1
"""Sound copied from before the first picture, because a decoder needs it to start. Players skip it."""
READ_TIMEOUT_S = 10.0
JOIN_STEP_BACK_S = 0.1
"""a longer step back in the times of the sound marks the start of the next of several joined recordings"""
JOIN_STEP_AHEAD_S = 10.0
"""a longer step ahead does so, too, if the pictures have reached the next recording"""

_log = logging.getLogger(__name__)


class Sound:
    """Copies the best audio stream of a source into an MP4, step by step with the pictures.

    Packets are copied without decoding if MP4 supports their codec. If sound cannot be read or written, it ends there
    with a warning, and the video continues.
    """

    def __init__(self, source: str, output: Any, start_s: float, time_offsets_s: Sequence[float]) -> None:
        """Add a stream to `output`, an av OutputContainer without packets. Raises SourceError.

        start_s          pts_s of the first picture of the video
        time_offsets_s   `Reader.time_offsets_s` of the reader that yields the pictures
        """
        self._source = source
        self._start_s = start_s
        self._time_offsets_s = time_offsets_s
        self._recording = 0
        self._output = output
        self._packets: Iterator[Any] = iter(())
        self._pending: Any = None
        self._last_s: float | None = None
        self._last_dts = -(1 << 62)
        with ExitStack() as resources:
            container = open_container(source, resources, rtsp_transport="tcp", timeout_s=READ_TIMEOUT_S)
            self._start(container)
            self._resources = resources.pop_all()

    def copy_until(self, output_s: float) -> None:
        """Write the packets that begin before the output time `output_s`, in seconds.

        Raises av.FFmpegError if the output cannot be written.
        """
        while (packet := self._pending or self._next()) is not None:
            self._pending = packet
            stored_s = float(packet.dts * packet.time_base)
            if self._last_s is not None and self._is_join(stored_s - self._last_s):
                if self._recording + 1 == len(self._time_offsets_s):
                    return  # the pictures have not reached the next recording
                self._recording += 1
            self._last_s = stored_s
            shift_s = self._time_offsets_s[self._recording] - self._start_s
            if stored_s + shift_s >= output_s:
                return
            self._pending = None
            if stored_s + shift_s >= -PREROLL_S:
                self._write(packet, shift_s)

    def _is_join(self, step_s: float) -> bool:
        is_last = self._recording + 1 == len(self._time_offsets_s)
        return step_s < -JOIN_STEP_BACK_S or (step_s > JOIN_STEP_AHEAD_S and not is_last)

    def close(self) -> None:
        """Close the source; may be called more than once."""
        self._resources.close()

    def _start(self, container: Any) -> None:
        stream = container.streams.best("audio")
        if stream is None:
            return
        for other in container.streams:
            if other.index != stream.index:
                other.discard = av.stream.Discard.all
        if stream.codec_context.name.removesuffix("float") in MP4_CODECS:
            self._target = self._output.add_stream_from_template(stream)
            self._packets = container.demux(stream)
        else:
            self._target = _add_aac(self._output, stream.codec_context)
            self._packets = self._encode(container, stream)

    def _next(self) -> Any:
        """The next packet with data and a time; None at the end, or after an error of reading."""
        try:
            for packet in self._packets:
                if packet.dts is None:
                    packet.dts = packet.pts
                if packet.size and packet.dts is not None:
                    return packet
        except (av.FFmpegError, OSError) as error:
            self._stop(error)
        return None

    def _write(self, packet: Any, shift_s: float) -> None:
        shift = round(shift_s / packet.time_base)
        packet.dts += shift
        if packet.pts is not None:
            packet.pts += shift
        if packet.dts <= self._last_dts:
            return
        self._last_dts = packet.dts
        packet.stream = self._target
        try:
            self._output.mux(packet)
        except (av.error.InvalidDataError, av.error.ArgumentError) as error:
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        _log.warning("the sound of %s ends early: %s", redact_url(self._source), error)
        self._packets = iter(())

    def _encode(self, container: Any, stream: Any) -> Iterator[Any]:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                yield from self._target.encode(frame)
        yield from self._target.encode(None)


def _add_aac(output: Any, context: Any) -> Any:
    rate = context.sample_rate if context.sample_rate in AAC_RATES_HZ else 48000
    layout = context.layout.name if context.layout.name in AAC_LAYOUTS else "stereo"
    return output.add_stream("aac", rate=rate, layout=layout)


def open_sound(source: str, output: Any, start_s: float, time_offsets_s: Sequence[float]) -> Sound | None:
    """The sound of a source; None, with a warning, if it cannot be read. The arguments are those of Sound."""
    try:
        return Sound(source, output, start_s, time_offsets_s)
    except (SourceError, av.FFmpegError, ValueError) as error:
        _log.warning("%s is written without sound: %s", redact_url(source), error)
        return None
