"""The base class of the readers: an iterator over the undamaged pictures of a source."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import Any, NamedTuple, Self, TypeAlias

import av

from pipeline.contract.results import ClockOrigin
from pipeline.errors import SourceError
from pipeline.redaction import redact_url
from pipeline.source.container import RtspTransport
from pipeline.source.picture import Orientation, Picture

PacketTap: TypeAlias = Callable[[Any], None]
"""function that is called with each non-empty av packet, in stream order, before decoding; must not raise"""


class OpenOptions(NamedTuple):
    """Options for opening a source. A reader ignores the options that do not apply to its kind of source.

    rtsp_transport   tcp or udp
    timeout_s        maximum time in seconds without data from a network source, while opening and at every later read
    on_packet        function that is called with each compressed packet of the video before decoding
    """

    rtsp_transport: RtspTransport
    timeout_s: float
    on_packet: PacketTap | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """An undamaged picture without a number. The fields have the same meaning as in Picture."""

    frame: av.VideoFrame
    pts_s: float
    orientation: Orientation
    captured_at_ns: int | None = None
    clock: ClockOrigin = "file"
    source_name: str | None = None


class Reader(ABC):
    """Iterates over the undamaged pictures of one source in presentation order, and keeps the source open.

    The constructor decodes the first picture, and raises SourceError if there is none. Iteration raises SourceError if
    reading fails. Use the reader as a context manager, or call `close`.
    """

    fps: float | None = None
    """average frame rate in frames per second; None if unknown"""
    num_frames_expected: int | None = None
    """approximate number of pictures before any selection; None if unknown"""
    has_audio: bool = False
    is_finite: bool = True
    """whether the source has a regular end; False for a camera, where an end means that the connection was lost"""
    waits_for_reader: bool = False
    """whether a live source delivers data as fast as the reader reads (HLS); False: the source sends in real time"""
    truncation: str = ""
    """after the last picture: what is missing if the file is shorter than its container announces; otherwise empty"""
    time_offsets_s: Sequence[float] = (0.0,)
    """pts_s minus the timestamp in the container, in seconds: one entry for each of several concatenated recordings,
    added when reading reaches the recording"""
    sample_aspect_ratio: Fraction = Fraction(1)
    """width : height of one pixel of the upright first picture; pictures are not resampled to square pixels"""

    def __init__(self, source: str) -> None:
        self.source = source
        self.num_corrupt = 0
        """number of damaged pictures and undecodable packets so far; the reader skips them"""
        try:
            numbered = self._number()
            first = next(numbered, None)
            if first is None:
                raise SourceError(f"{redact_url(source)} holds no undamaged picture{self._no_picture_reason()}")
        except BaseException:
            self.close()
            raise
        if first.orientation.transpose:
            self.sample_aspect_ratio = 1 / self.sample_aspect_ratio
        self.width, self.height = first.width, first.height
        """size of the upright first picture in pixels; later pictures may have other sizes"""
        self._pictures = chain((first,), numbered)

    @property
    def unreadable(self) -> str:
        """Message that names the files that could not be read so far; empty if there are none."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Close the source. May be called more than once."""

    @abstractmethod
    def _decode(self) -> Iterator[Decoded]:
        """Yield every undamaged picture in presentation order, and count the damaged ones in num_corrupt."""

    def _no_picture_reason(self) -> str:
        """Return the end of the error message for a source without an undamaged picture."""
        return (
            f" ({self.num_corrupt} damaged); expected a whole file" if self.num_corrupt else "; expected a whole file"
        )

    def _number(self) -> Iterator[Picture]:
        stored_aspect = self.sample_aspect_ratio
        for ordinal, decoded in enumerate(self._decode(), start=1):
            yield Picture(
                ordinal,
                decoded.pts_s,
                decoded.frame,
                decoded.orientation,
                time.monotonic(),
                decoded.captured_at_ns,
                decoded.clock,
                1 / stored_aspect if decoded.orientation.transpose else stored_aspect,
                decoded.source_name,
            )

    def __iter__(self) -> Iterator[Picture]:
        return self

    def __next__(self) -> Picture:
        return next(self._pictures)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
