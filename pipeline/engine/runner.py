"""The interface between the engine and the runners, which run the network on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.contract.arrays import ColourMatrix, I420Frame

MAX_BATCH = 32
"""maximum number of images of one batch; the engine splits larger groups"""


class RunnerInput(NamedTuple):
    """A batch of B images with the same padded input shape."""

    frames: Sequence[I420Frame]
    input_hws: Sequence[tuple[int, int]]
    """(height, width) of each image in the network's input, before padding"""
    padded_hw: tuple[int, int]
    min_scores: NDArray[np.float32]
    """(B, outputs of the class head): lowest score to report, infinity for classes that are not wanted"""


class RunnerOutput(NamedTuple):
    """The detections of a batch of B images in NumPy arrays; D rows for each image, of which `num` are detections."""

    xyxy: NDArray[np.float32]
    """(B, D, 4) boxes in input pixels"""
    scores: NDArray[np.float32]
    """(B, D)"""
    outputs: NDArray[np.int64]
    """(B, D) output of the class head"""
    num: NDArray[np.int64]
    """(B,) number of detections of each image"""
    details: NDArray[np.float32] | None
    """masks (M, 28, 28) or keypoint heatmaps (M, K, 56, 56) of the M detections of all images, concatenated; None for
    networks that detect boxes only"""


class Runner(Protocol):
    """Runs a network on a device."""

    def warm_up(self, batch: RunnerInput, max_batch: int) -> RunnerOutput:
        """Run every stage once for batches of up to max_batch images.

        Returns one detection for each image, whose box is the whole image, so that the caller can warm up what follows.
        """

    def start(self, batch: RunnerInput) -> Callable[[], RunnerOutput]:
        """Start to run a batch. Returns a function that waits for the result and returns it."""


def grey_frame(hw: tuple[int, int]) -> I420Frame:
    """A uniformly grey frame of (height, width), for warm-up."""
    height, width = hw
    grey = np.full(height * width * 3 // 2, 128, np.uint8)
    return I420Frame(grey, width, height, width, height, ColourMatrix.BT709, full_range=False)
