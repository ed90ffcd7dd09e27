"""Selects the pictures of a source that are processed, and numbers them."""

from __future__ import annotations

import math

# Containers round times to their time base (Matroska: 1 ms). Without a tolerance, max_fps 30 would drop pictures of a
# file with 30 frames per second.
ROUNDING_SLACK_S = 0.001


class Selection:
    """Numbers the selected pictures from 1. The same sequence of pictures always gets the same numbers.

    stride       select every n-th picture, beginning with the first; at least 1
    max_fps      of these pictures, select at most one in each slot of 1 / max_fps seconds of media time; slots begin at
                 the first picture; None: no limit
    max_frames   select at most this many pictures; None: no limit
    """

    def __init__(self, stride: int = 1, max_fps: float | None = None, max_frames: int | None = None) -> None:
        self._stride = stride
        self._max_fps = max_fps
        self._max_frames = max_frames
        self._num_seen = 0
        self._num_selected = 0
        self._grid_start_s = math.nan
        self._last_slot = -1

    @property
    def done(self) -> bool:
        """Whether max_frames pictures have been selected, so that no further picture is selected."""
        return self._max_frames is not None and self._num_selected >= self._max_frames

    def number(self, pts_s: float) -> int | None:
        """Return the number of the next picture, or None if it is not selected. `pts_s` must rise strictly."""
        ordinal = self._num_seen
        self._num_seen += 1
        if self.done or ordinal % self._stride != 0 or not self._slot_is_free(pts_s):
            return None
        self._num_selected += 1
        return self._num_selected

    def _slot_is_free(self, pts_s: float) -> bool:
        if self._max_fps is None:
            return True
        slot = self._slot(pts_s)
        if self._last_slot < 0:
            self._grid_start_s = pts_s
        elif slot <= self._last_slot:
            return False
        self._last_slot = slot
        return True

    def _slot(self, pts_s: float) -> int:
        if self._last_slot < 0 or self._max_fps is None:
            return 0
        return math.floor((pts_s - self._grid_start_s + ROUNDING_SLACK_S) * self._max_fps)
