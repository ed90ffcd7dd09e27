"""The arrays that pass between the stages: the pixels of a frame, and the detections on a frame."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ops.mask_format import MASK_BYTES, decode_rle

NUM_KEYPOINTS = 17
"""joints of a person in COCO's order: nose; then left and right eye, ear, shoulder, elbow, wrist, hip, knee, ankle"""


class ColourMatrix(StrEnum):
    """The luma coefficients for converting Y'CbCr to R'G'B' (ITU-R BT.601, BT.709, BT.2020 non-constant luminance)."""

    BT601 = "bt601"
    BT709 = "bt709"
    BT2020 = "bt2020"


@dataclass(frozen=True, slots=True)
class I420Frame:
    """A picture as planar 8-bit Y'CbCr 4:2:0.

    data          (height * width * 3 // 2,) uint8, C-contiguous: the Y plane, then U, then V, rows without padding
    width, height size of the Y plane in pixels, both even; the chroma planes have half the width and height
    source_width, source_height   size of the source frame in pixels, after rotation; boxes and masks refer to it
    matrix        luma coefficients
    full_range    True: values from 0 to 255; False: Y from 16 to 235, Cb and Cr from 16 to 240
    """

    data: NDArray[np.uint8]
    width: int
    height: int
    source_width: int
    source_height: int
    matrix: ColourMatrix
    full_range: bool

    def planes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
        """Views of the planes: Y (height, width), U and V (height // 2, width // 2), all uint8."""
        luma = self.width * self.height
        chroma_hw = (self.height // 2, self.width // 2)
        y = self.data[:luma].reshape(self.height, self.width)
        u = self.data[luma : luma + luma // 4].reshape(chroma_hw)
        v = self.data[luma + luma // 4 :].reshape(chroma_hw)
        return y, u, v


@dataclass(slots=True)
class Detections:
    """The N detections on one picture, in descending order of score.

    boxes_xyxy   (N, 4) float32 [x1, y1, x2, y2], continuous pixel coordinates of the source frame, x2 > x1 and y2 > y1
    scores       (N,) float32 in [0, 1]
    class_ids    (N,) int32, category ids of the model
    mask_bits    (N, 98) uint8: the thresholded 28x28 mask of each box, in row-major order, packed by np.packbits; None
                 for a model without masks
    rle_counts   N masks of the source frame as COCO's compressed RLE (ASCII); None for a model without masks
    width, height   size of the source frame in pixels
    keypoints    (N, 17, 3) float32 [x, y, score] in continuous pixel coordinates of the source frame (the centre of
                 pixel (0, 0) is at (0.5, 0.5)). The score is the heatmap's logit at that point; it is above 0 if the
                 joint is visible. None for a model without keypoints
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
        """The detections on a picture without objects."""
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
        """Decode all masks: (N, height, width) bool. Raises ValueError for a model without masks."""
        if self.rle_counts is None:
            raise ValueError("these detections have no masks: the model detects none")
        stack = np.zeros((len(self), self.height, self.width), np.bool_)
        for index, counts in enumerate(self.rle_counts):
            stack[index] = decode_rle(counts, (self.height, self.width))
        return stack
