"""Releases the frames of a live source at the rate of their media time, so that a burst is no reason to drop frames."""

from __future__ import annotations

CATCH_UP = 1.05
"""speed of a source that sends in real time: frames that a burst delayed catch up 5 % faster than real time"""
MAX_WAIT_S = 1.0
"""longest wait for one frame; a longer step of media time is a hole, not a burst"""


class ReleaseClock:
    """Computes how long a frame must wait: as long after the frame before as its pts_s lies after that frame's.

    A frame that comes too late is released at once, and the following ones count from it. So the delay never exceeds
    what the source itself delivered early.

    speed   media seconds per second: 1 for a source that waits for its reader (HLS), else CATCH_UP
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._last_pts_s: float | None = None
        self._last_due_s = 0.0

    def wait_s(self, pts_s: float, now_s: float) -> float:
        """Seconds from `now_s` on the monotonic clock to the release of the next frame."""
        due_s = now_s
        if self._last_pts_s is not None:
            due_s = self._last_due_s + (pts_s - self._last_pts_s) / self._speed
            due_s = min(max(due_s, now_s), now_s + MAX_WAIT_S)
        self._last_pts_s, self._last_due_s = pts_s, due_s
        return due_s - now_s
