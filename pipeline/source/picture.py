"""One decoded picture, and how it is turned to be seen."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.contract.results import ClockOrigin

# For pictures that say neither when they are shown nor how many come per second.
DEFAULT_FPS = 25.0
REPEATED_TIME_DIVISOR = 16
"""a frame whose time does not rise is shown 1/16 of a frame duration later, so that the next frame keeps its time"""


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture is turned to be seen: transpose first, then mirror left-right and top-bottom."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """From the frame's display matrix, to the nearest quarter turn.

        ISO/IEC 14496-12, 6.2.2: rows a b u, c d v, x y w; a stored pixel (x, y) is seen at (a x + c y, b x + d y).
        """
        side_data: Any = frame.side_data.get("DISPLAYMATRIX")
        if side_data is None:
            return UPRIGHT
        a, b, _, c, d = np.frombuffer(bytes(side_data), "=i4", count=5).tolist()
        transpose = abs(b) + abs(c) > abs(a) + abs(d)
        return cls(transpose, (c if transpose else a) < 0, (b if transpose else d) < 0)

    def swap(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) as stored <-> as seen."""
        return (size[1], size[0]) if self.transpose else size

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, …) as stored -> a view of it as seen."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


UPRIGHT = Orientation()


class Orientations:
    """Reads the display matrix of the frames of a source once per angle.

    Reading it ties the frame into a reference cycle: frames that wait for the garbage collector fill the memory.
    """

    def __init__(self) -> None:
        self._by_angle: dict[int, Orientation] = {}

    def of(self, frame: av.VideoFrame) -> Orientation:
        """How the frame is turned to be seen."""
        if frame.rotation not in self._by_angle:
            self._by_angle[frame.rotation] = Orientation.of(frame)
        return self._by_angle[frame.rotation]


class MediaClock:
    """Computes pts_s of the frames of one stream, in presentation order. The values rise strictly.

    A frame is shown at its pts. Where the pts of the frames so far step back more often than their dts, pts is wrong
    and dts is used (FFmpeg's best-effort timestamp). A frame without either follows one frame duration after the frame
    before. The same frames always get the same values.
    """

    def __init__(self, fps: float | None, time_base: Fraction | None) -> None:
        self._step_s = 1.0 / (fps or DEFAULT_FPS)
        self._time_base = time_base
        self._last_s: float | None = None
        self._last_pts: int | None = None
        self._last_dts: int | None = None
        self._num_faulty_pts = 0
        self._num_faulty_dts = 0

    def of(self, frame: av.VideoFrame) -> float:
        """Seconds of media time at which the next frame is shown."""
        unit = frame.time_base or self._time_base
        ticks = self._best_effort(frame.pts, frame.dts)
        if ticks is not None and unit:
            pts_s = float(ticks * unit)
        else:
            pts_s = 0.0 if self._last_s is None else self._last_s + self._step_s
        if self._last_s is not None and pts_s <= self._last_s:
            pts_s = self._last_s + self._step_s / REPEATED_TIME_DIVISOR
        self._last_s = pts_s
        return pts_s

    def _best_effort(self, pts: int | None, dts: int | None) -> int | None:
        if dts is not None:
            self._num_faulty_dts += self._last_dts is not None and dts <= self._last_dts
            self._last_dts = dts
        if pts is not None:
            self._num_faulty_pts += self._last_pts is not None and pts <= self._last_pts
            self._last_pts = pts
        pts_is_right = self._last_dts is None or self._num_faulty_pts <= self._num_faulty_dts
        return pts if pts_is_right and pts is not None else dts


@dataclass(frozen=True, slots=True)
class Picture:
    """A sound decoded picture, not converted yet.

    ordinal               1 for the first sound picture of the reader
    pts_s                 media time in seconds: starts anywhere and rises strictly, over joined recordings too
    frame                 as stored: any size and pixel format
    orientation           how it is turned to be seen
    arrived_monotonic_s   time.monotonic() when the decoder gave it out
    captured_at_ns        UTC of the capture in nanoseconds by the camera's clock; None while unknown, and for files
    clock                 rtcp where captured_at_ns is given, else host for live sources and file for others
    pixel_aspect          width : height of one pixel as seen
    source_name           name of the picture's file, in a source of pictures
    """

    ordinal: int
    pts_s: float
    frame: av.VideoFrame
    orientation: Orientation
    arrived_monotonic_s: float
    captured_at_ns: int | None
    clock: ClockOrigin
    pixel_aspect: Fraction = Fraction(1)
    source_name: str | None = None

    @property
    def width(self) -> int:
        """As seen, in pixels."""
        return self.orientation.swap((self.frame.width, self.frame.height))[0]

    @property
    def height(self) -> int:
        """As seen, in pixels."""
        return self.orientation.swap((self.frame.width, self.frame.height))[1]

    @property
    def display_hw(self) -> tuple[int, int]:
        """(height, width) in square pixels: the picture as a player shows it, one side stretched, none shrunk."""
        if self.pixel_aspect >= 1:
            return self.height, round(self.width * self.pixel_aspect)
        return round(self.height / self.pixel_aspect), self.width
