"""What goes to a runner and what comes back: batches of pictures of one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.contract.arrays import ColourMatrix, I420Frame

MAX_BATCH = 32
"""pictures of one job; more are several jobs"""


class Found(NamedTuple):
    """What the network found on a batch, on the host."""

    xyxy: NDArray[np.float32]
    """(B, D, 4), input pixels"""
    scores: NDArray[np.float32]
    """(B, D)"""
    outputs: NDArray[np.int64]
    """(B, D)"""
    num: NDArray[np.int64]
    """(B,): how many of the D are boxes"""
    details: NDArray[np.float32] | None
    """masks (M, 28, 28) or heatmaps (M, K, 56, 56) of the boxes of all pictures in a row, or None"""


class Job(NamedTuple):
    """Pictures of the same padded input shape."""

    frames: Sequence[I420Frame]
    input_hws: Sequence[tuple[int, int]]
    padded_hw: tuple[int, int]
    min_scores: NDArray[np.float32]
    """(B, outputs of the class head), infinity for what nobody wants"""


class Runner(Protocol):
    """Runs the network on a device."""

    def warm_up(self, job: Job, max_batch: int) -> Found:
        """Runs every stage once, for up to max_batch pictures; gives one box, the whole of each picture."""

    def start(self, job: Job) -> Callable[[], Found]:
        """Starts on the job; what is returned waits for the result."""


def grey_frame(hw: tuple[int, int]) -> I420Frame:
    """A picture of nothing."""
    height, width = hw
    grey = np.full(height * width * 3 // 2, 128, np.uint8)
    return I420Frame(grey, width, height, width, height, ColourMatrix.BT709, full_range=False)
