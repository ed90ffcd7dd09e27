"""What the library returns: the pixels of a picture together with the instances on it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.coco.average_precision import coco_entry
from pipeline.contract.arrays import Detections
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import FrameResult, Instance, Mask
from pipeline.exports.render import draw_result
from pipeline.exports.source_pictures import SourcePictures
from pipeline.source import Converter
from pipeline.source.images import ImageLike, image_rgb


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a stream with its result.

    result      the result message
    image_rgb   (height, width, 3) uint8 RGB: the source frame; boxes and masks are in its pixels
    """

    result: FrameResult
    image_rgb: NDArray[np.uint8]

    def crop(self, instance: Instance, *, masked: bool = False) -> NDArray[np.uint8]:
        """The pixels of the instance's box as a new (H, W, 3) uint8 RGB array.

        masked   set the pixels outside the instance's mask to 0. Raises ValueError if the instance has no mask.
        """
        return _crop(self.image_rgb, instance, masked=masked)

    def plot(self) -> NDArray[np.uint8]:
        """A copy of the picture with masks, boxes, labels and track ids drawn in: (H, W, 3) uint8 RGB."""
        bgr = np.ascontiguousarray(self.image_rgb[..., ::-1])
        draw_result(bgr, self.result)
        return np.ascontiguousarray(bgr[..., ::-1])


@dataclass(slots=True, kw_only=True)
class PictureDetections(Detections):
    """The detections on one picture, as `segment` returns them: the arrays of `Detections`, and a view per instance.

    categories   class_id -> label, of the model
    picture      the picture as it was passed to `segment`; crop and plot read it
    """

    categories: dict[int, str] = field(repr=False)
    picture: ImageLike = field(repr=False)

    @property
    def labels(self) -> list[str]:
        """The label of each detection."""
        return [self.categories[class_id] for class_id in self.class_ids.tolist()]

    @property
    def instances(self) -> list[Instance]:
        """The detections as instances, in the order of the arrays; they have no track."""
        return list(self)

    def __iter__(self) -> Iterator[Instance]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Instance:
        """One detection as an instance without a track."""
        x1, y1, x2, y2 = self.boxes_xyxy[index].tolist()
        rle = None if self.rle_counts is None else self.rle_counts[index].decode("ascii")
        class_id = int(self.class_ids[index])
        return Instance(
            track_id=None,
            track_uid=None,
            state="untracked",
            age_frames=1,
            class_id=class_id,
            label=self.categories[class_id],
            score=float(self.scores[index]),
            box_xyxy=(x1, y1, x2, y2),
            mask=None if rle is None else Mask((self.height, self.width), rle),
            keypoints=None if self.keypoints is None else [tuple(joint) for joint in self.keypoints[index].tolist()],
        )

    def crop(self, instance: Instance, *, masked: bool = False) -> NDArray[np.uint8]:
        """The pixels of the instance's box as a new (H, W, 3) uint8 RGB array.

        masked   set the pixels outside the instance's mask to 0. Raises ValueError if the instance has no mask.
        """
        return _crop(image_rgb(self.picture), instance, masked=masked)

    def plot(self) -> NDArray[np.uint8]:
        """A copy of the picture with masks, boxes and labels drawn in: (H, W, 3) uint8 RGB."""
        bgr = np.ascontiguousarray(image_rgb(self.picture)[..., ::-1])
        draw_result(bgr, self)
        return np.ascontiguousarray(bgr[..., ::-1])

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The detections in COCO's result format, ready for JSON; run-length encoded masks as text."""
        return [coco_entry(image_id, self, index) for index in range(len(self))]


class FrameJoiner:
    """Reads the source of a stream a second time and joins its pictures with the results by `frame_seq`.

    The source must be finite. Use as a context manager: it closes the source on exit.
    """

    def __init__(self, stream: StreamConfig) -> None:
        self._pictures = SourcePictures(stream)
        self._converter = Converter()

    def join(self, result: FrameResult) -> Frame:
        """The result with the pixels of its frame. Results must come in ascending order.

        Raises SourceError if the source yields fewer pictures than when the results were made.
        """
        picture = self._pictures.read_next(result.frame_seq)
        while self._pictures.last_seq < result.frame_seq:
            picture = self._pictures.read_next(result.frame_seq)
        bgr = self._converter.to_bgr(picture)
        return Frame(result, np.ascontiguousarray(bgr[..., ::-1]))

    def __enter__(self) -> FrameJoiner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pictures.close()


def _crop(image: NDArray[np.uint8], instance: Instance, *, masked: bool) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    x1, y1, x2, y2 = instance.box_xyxy
    rows = slice(max(math.floor(y1), 0), min(math.ceil(y2), height))
    columns = slice(max(math.floor(x1), 0), min(math.ceil(x2), width))
    crop = image[rows, columns].copy()
    if masked:
        if instance.mask is None:
            raise ValueError("masked=True needs an instance with a mask: the model detects none")
        crop[~instance.mask.to_array()[rows, columns]] = 0
    return crop
