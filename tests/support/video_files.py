"""Videos with known pixels, for tests of decoding. The colour formulas are independent of those in ops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.contract.arrays import I420Frame

# Red and blue luma coefficients of ITU-R BT.601-7, BT.709-6 and BT.2020-2, and the matrix codes of ITU-T H.273.
RED_BLUE = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
MATRIX_CODE = {"bt601": 6, "bt709": 1, "bt2020": 9}
LIMITED, FULL = 1, 2

BARS_RGB = np.array(
    [
        [255, 255, 255], [255, 255, 0], [0, 255, 255], [0, 255, 0], [255, 0, 255],
        [255, 0, 0], [0, 0, 255], [0, 0, 0], [128, 64, 32], [30, 200, 120],
    ],
    np.uint8,
)  # fmt: skip


def bars(width: int, height: int) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8 RGB with ten vertical bars in the colours of BARS_RGB."""
    return np.broadcast_to(BARS_RGB[np.arange(width) * len(BARS_RGB) // width], (height, width, 3)).copy()


def bar_means(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """Return (10, 3), the mean colour of the inner half of each bar."""
    edges = np.arange(len(BARS_RGB) + 1) * rgb.shape[1] / len(BARS_RGB)
    quarter = rgb.shape[1] / len(BARS_RGB) / 4
    inner = [(int(a + quarter), int(b - quarter) + 1) for a, b in pairwise(edges)]
    rows = slice(rgb.shape[0] // 4, rgb.shape[0] * 3 // 4)
    return np.stack([rgb[rows, a:b].astype(np.float64).mean((0, 1)) for a, b in inner])


def rgb_of_i420(frame: I420Frame, matrix: str | None = None, full_range: bool | None = None) -> NDArray[np.float64]:
    """Convert to (H, W, 3) RGB, 0 to 255, by the ITU formulas, by default with matrix and range of the frame."""
    red, blue = RED_BLUE[matrix or frame.matrix.value]
    y, u, v = (plane.astype(np.float64) for plane in frame.planes())
    u, v = (plane.repeat(2, axis=0).repeat(2, axis=1) - 128 for plane in (u, v))
    if frame.full_range if full_range is None else full_range:
        y, u, v = y / 255, u / 255, v / 255
    else:
        y, u, v = (y - 16) / 219, u / 224, v / 224
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], axis=-1) * 255, 0, 255)


def coded_frame(rgb: NDArray[np.uint8], pixel_format: str, matrix: str, *, full_range: bool) -> av.VideoFrame:
    """Convert to planar Y'CbCr or grey of 8 to 16 bits, tagged with matrix and range."""
    height, width, _ = rgb.shape
    frame = av.VideoFrame(width, height, pixel_format)
    bits = frame.format.components[0].bits
    red, blue = RED_BLUE[matrix]
    r, g, b = (rgb[..., i] / 255.0 for i in range(3))
    luma = red * r + (1 - red - blue) * g + blue * b
    values = [luma, (b - luma) / (2 * (1 - blue)), (r - luma) / (2 * (1 - red))]
    step = 2 ** (bits - 8)
    if full_range:
        top = 2**bits - 1
        coded = [values[0] * top, values[1] * top + 128 * step, values[2] * top + 128 * step]
    else:
        coded = [(16 + 219 * values[0]) * step, (128 + 224 * values[1]) * step, (128 + 224 * values[2]) * step]
    for plane, samples in zip(frame.planes, coded, strict=False):
        _fill(plane, np.clip(np.rint(_shrink(samples, plane.width, plane.height)), 0, 2**bits - 1), bits)
    frame.colorspace = MATRIX_CODE[matrix]
    frame.color_range = FULL if full_range else LIMITED
    return frame


def write_video(
    path: Path,
    frames: Iterable[av.VideoFrame],
    *,
    codec: str = "libx264",
    rate: int = 25,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    turn: Mapping[str, Any] | None = None,
    options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    tagged: bool = True,
) -> Path:
    """Encode the frames.

    pts    times in units of `time_base`, whose default is 1 / rate
    turn   arguments of set_display_rotation
    """
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        stream: Any = None
        for index, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options=dict(options or {}))
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
                stream.codec_context.time_base = time_base or Fraction(1, rate)
                if tagged:
                    stream.codec_context.colorspace = frame.colorspace
                    stream.codec_context.color_range = frame.color_range
                if turn is not None:
                    stream.set_display_rotation(**turn)
            frame.pts = index if pts is None else pts[index]
            frame.time_base = time_base or Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def joined(path: Path, *parts: Path) -> Path:
    """Concatenate the bytes of the parts, as `cat` does with recordings of a camera."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def counting_frames(count: int, width: int = 64, height: int = 48) -> list[av.VideoFrame]:
    """Return grey pictures in yuv420p; the n-th, counted from 0, has the luma 20 + 4 (n mod 50)."""
    frames = []
    for index in range(count):
        planes = np.full((height * 3 // 2, width), 128, np.uint8)
        planes[:height] = 20 + 4 * (index % 50)
        frames.append(av.VideoFrame.from_ndarray(planes, format="yuv420p"))
    return frames


def _shrink(samples: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """Average blocks. The last row and column are repeated if the size is odd."""
    step_y, step_x = -(-samples.shape[0] // height), -(-samples.shape[1] // width)
    pad = ((0, height * step_y - samples.shape[0]), (0, width * step_x - samples.shape[1]))
    return np.pad(samples, pad, mode="edge").reshape(height, step_y, width, step_x).mean((1, 3))


def _fill(plane: Any, samples: NDArray[np.float64], bits: int) -> None:
    packed = samples.astype("<u2" if bits > 8 else np.uint8)
    rows = np.zeros((plane.height, plane.line_size), np.uint8)
    rows[:, : packed.shape[1] * packed.itemsize] = packed.view(np.uint8).reshape(plane.height, -1)
    plane.update(rows.tobytes())
