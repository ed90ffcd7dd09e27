"""Which of the pictures of a source are taken, and the number each gets."""

from __future__ import annotations

import math

# Containers round times to their own clock (Matroska: 1 ms): without slack a 30 fps file loses pictures at max_fps 30.
ROUNDING_SLACK_S = 0.001


class Selection:
    """Counts the selected pictures from 1. The same pictures in the same order always give the same numbers.

    stride       take every n-th picture, the first included; >= 1
    max_fps      of those, at most one per 1 / max_fps seconds of media time, on a grid from the first on; None: all
    max_frames   stop after so many; None: no limit
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
        """Whether max_frames pictures were selected: no later one will be."""
        return self._max_frames is not None and self._num_selected >= self._max_frames

    def number(self, pts_s: float) -> int | None:
        """The number of the next picture, shown at `pts_s` seconds (rising strictly); None if it is left out."""
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
