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
"""called with every av packet that holds data, in the order of the stream, before it is decoded; must not raise"""


class OpenOptions(NamedTuple):
    """How to open a source; a reader ignores the options that do not concern its kind.

    rtsp_transport   tcp or udp
    timeout_s        longest silence of a source on the network, in seconds, while opening and at every later read
    on_packet        called with every compressed packet of the video before it is decoded
    """

    rtsp_transport: RtspTransport
    timeout_s: float
    on_packet: PacketTap | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """An undamaged picture before it is numbered; the fields mean what they mean in Picture."""

    frame: av.VideoFrame
    pts_s: float
    orientation: Orientation
    captured_at_ns: int | None = None
    clock: ClockOrigin = "file"
    source_name: str | None = None


class Reader(ABC):
    """An iterator over the undamaged pictures of one source, in presentation order, that holds the source open.

    The first picture is decoded on construction: SourceError if there is none. Iteration raises SourceError where
    reading breaks off. Use it as a context manager, or call `close`.
    """

    fps: float | None = None
    """pictures per second on average, as the container says; None if it does not"""
    num_frames_expected: int | None = None
    """roughly, before any selection; None if the container does not say"""
    has_audio: bool = False
    is_finite: bool = True
    """whether the end of the pictures is the end of the source; False: a camera, whose end is a loss"""
    waits_for_reader: bool = False
    """whether a live source delivers as fast as it is read (HLS); False: it sends in real time"""
    truncation: str = ""
    """after the last picture: what is missing of a file that ends before the end that its container announces"""
    time_offsets_s: Sequence[float] = (0.0,)
    """seconds that pts_s lies after the time of the container: one entry per recording of a source of joined
    recordings, added as the recording is reached"""
    sample_aspect_ratio: Fraction = Fraction(1)
    """width : height of one pixel of the first picture as seen; pictures are not stretched by it"""

    def __init__(self, source: str) -> None:
        self.source = source
        self.num_corrupt = 0
        """damaged pictures and undecodable packets so far; they are passed over"""
        try:
            numbered = self._number()
            first = next(numbered, None)
            if first is None:
                raise SourceError(f"{redact_url(source)} holds no undamaged picture{self._emptiness()}")
        except BaseException:
            self.close()
            raise
        if first.orientation.transpose:
            self.sample_aspect_ratio = 1 / self.sample_aspect_ratio
        self.width, self.height = first.width, first.height
        """of the first picture, as seen, in pixels; later ones may differ"""
        self._pictures = chain((first,), numbered)

    @property
    def unreadable(self) -> str:
        """Names the files of the source that could not be read so far; empty if there are none."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """Lets the source go; may be called more than once."""

    @abstractmethod
    def _decode(self) -> Iterator[Decoded]:
        """Every undamaged picture in presentation order; counts the others in num_corrupt."""

    def _emptiness(self) -> str:
        """What to add when nothing came."""
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
