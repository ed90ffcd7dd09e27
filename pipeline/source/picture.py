"""A decoded picture, its orientation and its media time."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.contract.results import ClockOrigin

# Frame rate of a source that states neither timestamps nor a frame rate.
DEFAULT_FPS = 25.0
REPEATED_TIME_DIVISOR = 16
"""a frame whose time does not rise is shown 1/16 of a frame duration later, so that the next frame keeps its time"""


@dataclass(frozen=True, slots=True)
class Orientation:
    """The transformation of a stored picture to the upright one: a transpose, then left-right and top-bottom flips."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Orientation:
        """Return the orientation that the frame's display matrix describes, rounded to a multiple of 90 degrees.

        The matrix has the rows a b u, c d v, x y w (ISO/IEC 14496-12, 6.2.2): it maps the stored pixel (x, y) to
        (a x + c y, b x + d y).
        """
        side_data: Any = frame.side_data.get("DISPLAYMATRIX")
        if side_data is None:
            return UPRIGHT
        a, b, _, c, d = np.frombuffer(bytes(side_data), "=i4", count=5).tolist()
        transpose = abs(b) + abs(c) > abs(a) + abs(d)
        return cls(transpose, (c if transpose else a) < 0, (b if transpose else d) < 0)

    def swap(self, size: tuple[int, int]) -> tuple[int, int]:
        """Convert (width, height) of the stored picture to that of the upright picture, or back."""
        return (size[1], size[0]) if self.transpose else size

    def apply(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the upright picture as a view of the stored picture (H, W, …)."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


UPRIGHT = Orientation()


class Orientations:
    """Caches the orientation of the frames of one source by their rotation angle.

    Reading the side data of a frame creates a reference cycle. Without the cache, every frame would stay in memory
    until the garbage collector runs.
    """

    def __init__(self) -> None:
        self._by_angle: dict[int, Orientation] = {}

    def of(self, frame: av.VideoFrame) -> Orientation:
        """Return the orientation of the frame."""
        if frame.rotation not in self._by_angle:
            self._by_angle[frame.rotation] = Orientation.of(frame)
        return self._by_angle[frame.rotation]


class MediaClock:
    """Computes pts_s of the frames of one stream, in presentation order. The values rise strictly.

    The time of a frame is its pts, after FFmpeg's best-effort timestamp: dts is used where pts is missing, and where
    the pts of the frames so far failed to rise more often than their dts. A frame without a time is shown one frame
    duration after the previous frame. A time that does not rise becomes 1/16 of a frame duration after the previous
    frame. The same frames always get the same values.
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
        """Return the media time in seconds at which `frame` is shown. Call it once per frame, in presentation order."""
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
    """A decoded, undamaged picture, not yet converted.

    ordinal               position among the undamaged pictures of the reader, from 1
    pts_s                 media time in seconds; the first may have any value, and values rise strictly, also across
                          concatenated recordings
    frame                 the stored picture, of any size and pixel format
    orientation           transformation of the stored picture to the upright picture
    arrived_monotonic_s   time.monotonic() when the decoder returned the picture
    captured_at_ns        time of capture by the camera's clock, UTC in nanoseconds; None if unknown, and for files
    clock                 rtcp if captured_at_ns is known; otherwise host for live sources and file for others
    pixel_aspect          width : height of one pixel of the upright picture
    source_name           name of the picture file, for a source of pictures
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
        """Width of the upright picture in pixels."""
        return self.orientation.swap((self.frame.width, self.frame.height))[0]

    @property
    def height(self) -> int:
        """Height of the upright picture in pixels."""
        return self.orientation.swap((self.frame.width, self.frame.height))[1]

    @property
    def display_hw(self) -> tuple[int, int]:
        """(height, width) of the upright picture in square pixels, as a player shows it: one side is stretched."""
        if self.pixel_aspect >= 1:
            return self.height, round(self.width * self.pixel_aspect)
        return round(self.height / self.pixel_aspect), self.width
