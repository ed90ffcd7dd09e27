"""Encodes BGR pictures into an MP4 with the colour coding and the timing of the source."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange, VideoReformatter
from numpy.typing import NDArray

from pipeline.contract.arrays import ColourMatrix
from pipeline.errors import OutputError
from pipeline.source.colour import FULL_SIZE, Coding

TIME_BASE = Fraction(1, 60_000)
"""MPEG-4 part 2 allows at most 65,535 ticks per second. 60,000 is exact for 24, 25, 29.97, 30, 50, 59.94 and 60 fps;
for other rates, such as 23.976 fps, times are rounded by at most 9 us."""
ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")
"""In order of preference: an FFmpeg build may lack some of them."""
X264_OPTIONS = {"crf": "20", "preset": "veryfast"}
BITS_PER_PIXEL = 0.12
"""bit rate of encoders without a constant-quality mode"""
DEFAULT_FPS = 25.0
UNSPECIFIED = 2
"""colour matrix tag of a file that does not state its matrix; the tags are those of ITU-T H.273"""

_TAG_OF_MATRIX = {ColourMatrix.BT601: 6, ColourMatrix.BT709: 1, ColourMatrix.BT2020: 9}
_MATRIX_TAGS = frozenset({1, 5, 6, 9, UNSPECIFIED})


class Mp4File:
    """An MP4 with one 8-bit 4:2:0 video stream. Other streams can be added to `container` before the first picture.

    The video has the size of the first picture; the last column or row is repeated where a side is odd. A later picture
    of another size is scaled to fit, with black bars.
    """

    def __init__(
        self,
        path: Path,
        like: av.VideoFrame,
        size_wh: tuple[int, int],
        fps: float | None,
        pixel_aspect: Fraction,
        num_threads: int,
    ) -> None:
        """
        like          a decoded picture of the source: the video gets its matrix, range, primaries and transfer curve
        size_wh       width and height of the pictures in pixels
        fps           pictures per second on average; None if unknown
        pixel_aspect  width : height of one pixel
        num_threads   threads of the encoder

        Raises OutputError when there is no encoder, av.FFmpegError when the file cannot be written.
        """
        encoder = next((name for name in ENCODERS if _has_encoder(name)), None)
        if encoder is None:
            raise OutputError(f"cannot write {path}: FFmpeg lacks {', '.join(ENCODERS)}; leave video out of --save")
        self._size_wh = size_wh
        self._coding = Coding.of(like)
        self._range = ColorRange.JPEG if self._coding.full_range and self._coding.layout == "yuv" else ColorRange.MPEG
        self._reformatter = VideoReformatter()
        rate = Fraction(fps or DEFAULT_FPS).limit_denominator(1001)
        self.step_s = float(1 / rate)
        self.container = _create(path)
        self._stream = self.container.add_stream(encoder, rate=rate)
        self._stream.width, self._stream.height = (side + side % 2 for side in size_wh)
        self._stream.pix_fmt = "yuv420p"
        self._stream.time_base = TIME_BASE
        context = self._stream.codec_context
        context.time_base = TIME_BASE
        context.thread_count = num_threads
        context.sample_aspect_ratio = pixel_aspect
        if encoder == "libx264":
            context.options = X264_OPTIONS
        else:
            context.bit_rate = int(size_wh[0] * size_wh[1] * rate * BITS_PER_PIXEL)
        context.color_range = self._range
        context.colorspace = _matrix_tag(like, self._coding)
        context.color_primaries = like.color_primaries
        context.color_trc = like.color_trc

    def encode(self, picture_bgr: NDArray[np.uint8], pts: int) -> Iterator[Any]:
        """Encode one picture and return the packets that are ready. `pts` counts TIME_BASE and must increase."""
        frame = av.VideoFrame.from_ndarray(self._fit(picture_bgr), format="bgr24")
        converted: Any = self._reformatter.reformat(
            frame,
            format="yuv420p",
            src_colorspace=self._coding.swscale_matrix,
            dst_colorspace=self._coding.swscale_matrix,
            src_color_range=ColorRange.JPEG,
            dst_color_range=self._range,
            interpolation=FULL_SIZE,
        )
        converted.pts, converted.time_base = pts, TIME_BASE
        converted.duration = round(self.step_s / TIME_BASE)
        return iter(self._stream.encode(converted))

    def flush(self) -> Iterator[Any]:
        """End the stream and return the remaining packets."""
        return iter(self._stream.encode(None))

    def _fit(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        width, height = self._size_wh
        if picture.shape[:2] != (height, width):
            scale = min(width / picture.shape[1], height / picture.shape[0])
            fitted_wh = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
            left, top = (width - fitted_wh[0]) // 2, (height - fitted_wh[1]) // 2
            canvas = np.zeros((height, width, 3), np.uint8)
            canvas[top : top + fitted_wh[1], left : left + fitted_wh[0]] = cv2.resize(
                picture, fitted_wh, interpolation=cv2.INTER_AREA
            )
            picture = canvas
        if width % 2 or height % 2:
            return np.asarray(cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE))
        return picture


def _create(path: Path) -> Any:
    """An av OutputContainer. Typed as Any because PyAV's stubs lack the attributes of video streams."""
    return av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})


def _matrix_tag(like: av.VideoFrame, coding: Coding) -> int:
    """The colour matrix tag of the file: that of the source, or that of the matrix the source is converted with."""
    if coding.layout != "rgb" and like.colorspace in _MATRIX_TAGS:
        return int(like.colorspace)
    return _TAG_OF_MATRIX[coding.matrix]


def _has_encoder(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
