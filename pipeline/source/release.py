"""Paces the frames of a live source at the rate of their media time, so that a burst causes no dropped frames."""

from __future__ import annotations

CATCH_UP = 1.05
"""speed for a source that sends in real time: after a delay, frames are released 5 % faster than real time"""
MAX_WAIT_S = 1.0
"""maximum wait for one frame; a longer step of media time is a gap in the stream, not a burst"""


class ReleaseClock:
    """Computes how long to hold each frame, so that frames are released at the intervals of their pts_s divided
    by `speed`.

    A late frame is released at once, and the schedule of the following frames starts at that release. A frame is held
    only for as long as it is ahead of the schedule that starts at the latest late frame, at most MAX_WAIT_S.

    speed   media seconds per second: 1 for a source that waits for its reader (HLS), else CATCH_UP
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._last_pts_s: float | None = None
        self._last_due_s = 0.0

    def schedule(self, pts_s: float, now_s: float) -> float:
        """Schedule the frame with `pts_s`, and return the time in seconds from `now_s` to its release.

        Call once per frame, in order. `now_s` is time on the monotonic clock.
        """
        due_s = now_s
        if self._last_pts_s is not None:
            due_s = self._last_due_s + (pts_s - self._last_pts_s) / self._speed
            due_s = min(max(due_s, now_s), now_s + MAX_WAIT_S)
        self._last_pts_s, self._last_due_s = pts_s, due_s
        return due_s - now_s
