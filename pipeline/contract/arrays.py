"""The arrays that travel between the stages: one frame's pixels, one frame's detections."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

MASK_SIDE = 28
MASK_BYTES = MASK_SIDE * MASK_SIDE // 8

NUM_KEYPOINTS = 17
"""of a person, in COCO's order: nose; then left and right eye, ear, shoulder, elbow, wrist, hip, knee, ankle"""


class ColourMatrix(StrEnum):
    """Which luma coefficients turn Y'CbCr into R'G'B' (ITU-R BT.601, BT.709, BT.2020 non-constant luminance)."""

    BT601 = "bt601"
    BT709 = "bt709"
    BT2020 = "bt2020"


@dataclass(frozen=True, slots=True)
class I420Frame:
    """One picture as planar Y'CbCr 4:2:0, 8 bit.

    data          (height * width * 3 // 2,) uint8, C-contiguous: the Y plane, then U, then V, rows without padding
    width, height of the Y plane in pixels, both even; the chroma planes are half of each
    source_width, source_height   of the picture as a person sees it (rotation applied), in pixels; boxes and masks
                                  refer to it
    matrix, full_range            how the numbers stand for colours; full_range False means 16-235 / 16-240
    """

    data: NDArray[np.uint8]
    width: int
    height: int
    source_width: int
    source_height: int
    matrix: ColourMatrix
    full_range: bool

    def planes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Views of Y (height, width), U and V (height // 2, width // 2), all uint8."""
        luma = self.width * self.height
        chroma_hw = (self.height // 2, self.width // 2)
        y = self.data[:luma].reshape(self.height, self.width)
        u = self.data[luma : luma + luma // 4].reshape(chroma_hw)
        v = self.data[luma + luma // 4 :].reshape(chroma_hw)
        return y, u, v


@dataclass(slots=True)
class Detections:
    """What the network found on one picture, ordered by falling score. N instances.

    boxes_xyxy   (N, 4) float32, pixels of the source frame, edges continuous, x2 > x1 and y2 > y1
    scores       (N,) float32 in [0, 1]
    class_ids    (N,) int32, ids of the model's category table
    mask_bits    (N, 98) uint8: the 28x28 box-local masks after the threshold, rows first, packed by np.packbits;
                 None for a model without masks
    rle_counts   N COCO compressed RLE strings (ASCII) of the whole source frame; None for a model without masks
    width, height   of the source frame in pixels
    keypoints    (N, 17, 3) float32 [x, y, score]: pixels of the source frame, pixel (0, 0) has its centre at
                 (0.5, 0.5); the score is the logit of the heatmap there, above 0 where the network sees the joint;
                 None for a model without keypoints
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int32]
    mask_bits: NDArray[np.uint8] | None
    rle_counts: list[bytes] | None
    width: int
    height: int
    keypoints: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def empty(cls, width: int, height: int, *, with_masks: bool = True) -> Detections:
        """A picture with nothing in it."""
        return cls(
            boxes_xyxy=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            class_ids=np.zeros(0, np.int32),
            mask_bits=np.zeros((0, MASK_BYTES), np.uint8) if with_masks else None,
            rle_counts=[] if with_masks else None,
            width=width,
            height=height,
        )

    def masks(self) -> NDArray[np.bool_]:
        """(N, height, width) bool masks of the source frame, decoded now. Raises ValueError if there are none."""
        from ops.masks import decode_rle

        if self.rle_counts is None:
            raise ValueError("these detections carry no masks: the model finds none")
        stack = np.zeros((len(self), self.height, self.width), np.bool_)
        for index, counts in enumerate(self.rle_counts):
            stack[index] = decode_rle(counts, (self.height, self.width))
        return stack
