"""Known colours survive encoding and conversion, and pictures are rotated as their file states."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from support.video_files import (
    BARS_RGB,
    LIMITED,
    MATRIX_CODE,
    bar_means,
    bars,
    coded_frame,
    counting_frames,
    rgb_of_i420,
    write_video,
)

from pipeline.contract.arrays import ColourMatrix
from pipeline.errors import SourceError
from pipeline.source import Converter, Picture, open_source
from pipeline.source.colour import Coding
from pipeline.source.picture import UPRIGHT, Orientation

# Y and each chroma value may change by one 8-bit step when the bit depth changes:
# 255/219 + 2 * (1 - 0.0593) * 255/224 = 3.3, plus half a step of rounding in the encoded picture.
TOLERANCE = 3.8

# pixel format, codec and options of lossless or nearly lossless encoders
LOSSLESS = [
    ("yuv420p", "libx264", {"qp": "0"}),
    ("yuv422p", "libx264", {"qp": "0"}),
    ("yuv444p", "libx264", {"qp": "0"}),
    ("yuv420p10le", "libx264", {"qp": "0"}),
    ("yuv422p10le", "libx264", {"qp": "0"}),
    ("yuv444p10le", "ffv1", {}),
    ("yuv420p12le", "ffv1", {}),
    ("yuva420p", "ffv1", {}),
]


def picture_of(frame: av.VideoFrame, orientation: Orientation = UPRIGHT) -> Picture:
    return Picture(1, 0.0, frame, orientation, 0.0, None, "file")


def first_picture(path: Path) -> Picture:
    with open_source(str(path), "file") as reader:
        return next(reader)


def error_of_bars(rgb: NDArray[np.float64] | NDArray[np.uint8]) -> float:
    return float(np.abs(bar_means(rgb) - BARS_RGB).max())


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize(("pixel_format", "codec", "options"), LOSSLESS, ids=[row[0] for row in LOSSLESS])
def test_colours_survive_and_a_wrong_coding_is_detected(
    tmp_path: Path, pixel_format: str, codec: str, options: dict[str, str], matrix: str, full_range: bool
) -> None:
    frame = coded_frame(bars(320, 96), pixel_format, matrix, full_range=full_range)
    picture = first_picture(write_video(tmp_path / "bars.mkv", [frame], codec=codec, options=options))
    converter = Converter()
    for target_wh in ((320, 96), (160, 48)):
        i420 = converter.to_i420(picture, target_wh)
        assert (i420.matrix.value, i420.full_range) == (matrix, full_range)
        assert (i420.width, i420.height, i420.source_width, i420.source_height) == (*target_wh, 320, 96)
        assert error_of_bars(rgb_of_i420(i420)) < TOLERANCE
        for wrong in {"bt601", "bt709", "bt2020"} - {matrix}:
            assert error_of_bars(rgb_of_i420(i420, wrong)) > 2 * TOLERANCE
        assert error_of_bars(rgb_of_i420(i420, full_range=not full_range)) > 2 * TOLERANCE
    bgr = converter.to_bgr(picture)
    assert bgr.shape == (96, 320, 3)
    assert bgr.flags.c_contiguous
    assert bgr.flags.writeable
    assert error_of_bars(bgr[..., ::-1]) < TOLERANCE


def test_mjpeg_is_full_range_and_bt601(tmp_path: Path) -> None:
    frame = coded_frame(bars(320, 96), "yuvj444p", "bt601", full_range=True)
    path = write_video(tmp_path / "bars.avi", [frame], codec="mjpeg", options={"qmin": "1", "qmax": "1"})
    i420 = Converter().to_i420(first_picture(path), (320, 96))
    assert (i420.matrix, i420.full_range) == (ColourMatrix.BT601, True)
    assert error_of_bars(rgb_of_i420(i420)) < TOLERANCE


@pytest.mark.parametrize("pixel_format", ["rgb24", "bgra", "gbrp", "gbrp10le", "rgb48le"])
def test_rgb_becomes_bt601_full(pixel_format: str) -> None:
    frame = av.VideoFrame.from_ndarray(bars(320, 96), format="rgb24").reformat(format=pixel_format)
    i420 = Converter().to_i420(picture_of(frame), (320, 96))
    assert (i420.matrix, i420.full_range) == (ColourMatrix.BT601, True)
    assert error_of_bars(rgb_of_i420(i420)) < TOLERANCE
    assert error_of_bars(Converter().to_bgr(picture_of(frame))[..., ::-1]) < TOLERANCE


def test_palette_pictures_keep_their_colours(tmp_path: Path) -> None:
    from PIL import Image

    colours = BARS_RGB.tolist()
    stored = Image.new("P", (320, 96))
    stored.putpalette([channel for colour in colours for channel in colour])
    stored.putdata([x * len(colours) // 320 for _ in range(96) for x in range(320)])
    stored.save(tmp_path / "bars.gif")
    picture = first_picture(tmp_path / "bars.gif")
    assert error_of_bars(rgb_of_i420(Converter().to_i420(picture, (320, 96)))) < TOLERANCE
    assert error_of_bars(Converter().to_bgr(picture)[..., ::-1]) < TOLERANCE


@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("pixel_format", ["gray", "gray10le", "gray16le"])
def test_grey_keeps_its_range(pixel_format: str, full_range: bool) -> None:
    grey = np.repeat(np.repeat(np.linspace(0, 255, 10).round().astype(np.uint8), 32)[None, :, None], 96, 0).repeat(3, 2)
    picture = picture_of(coded_frame(grey, pixel_format, "bt601", full_range=full_range))
    i420 = Converter().to_i420(picture, (320, 96))
    assert i420.full_range == full_range
    assert np.abs(rgb_of_i420(i420) - grey).max() < TOLERANCE
    assert np.abs(Converter().to_bgr(picture).astype(int) - grey).max() < TOLERANCE


@pytest.mark.parametrize(
    ("height", "expected"), [(718, ColourMatrix.BT601), (720, ColourMatrix.BT709)], ids=["SD", "HD"]
)
def test_without_tags_the_height_decides_and_the_range_is_limited(height: int, expected: ColourMatrix) -> None:
    coding = Coding.of(av.VideoFrame(64, height, "yuv420p"))
    assert (coding.matrix, coding.full_range) == (expected, False)


@pytest.mark.parametrize(
    "size", [(321, 241), (33, 18), (34, 17), (3, 3), (2, 2)], ids=lambda size: f"{size[0]}x{size[1]}"
)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le", "yuv444p"])
def test_odd_sizes_are_converted_up_to_the_last_row_and_column(pixel_format: str, size: tuple[int, int]) -> None:
    colour = np.array([200, 90, 40], np.uint8)
    frame = coded_frame(np.broadcast_to(colour, (size[1], size[0], 3)).copy(), pixel_format, "bt709", full_range=False)
    i420 = Converter().to_i420(picture_of(frame), (size[0] // 2 * 2, size[1] // 2 * 2))
    assert (i420.width, i420.height) == (size[0] // 2 * 2, size[1] // 2 * 2)
    assert i420.data.shape == (i420.width * i420.height * 3 // 2,)
    assert np.abs(rgb_of_i420(i420) - colour).max() < TOLERANCE
    bgr = Converter().to_bgr(picture_of(frame))
    assert bgr.shape == (size[1], size[0], 3)
    assert np.abs(bgr[..., ::-1].astype(int) - colour).max() < TOLERANCE


def test_one_converter_takes_pictures_of_any_size_and_format() -> None:
    converter = Converter()
    for size, pixel_format in (((320, 96), "yuv420p"), ((200, 100), "yuv444p10le"), ((320, 96), "yuv420p")):
        frame = coded_frame(bars(*size), pixel_format, "bt709", full_range=False)
        assert error_of_bars(rgb_of_i420(converter.to_i420(picture_of(frame), (200, 90)))) < TOLERANCE
        assert converter.to_bgr(picture_of(frame)).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("target_wh", [(63, 48), (64, 47), (0, 2)], ids=str)
def test_an_odd_target_size_raises(target_wh: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="target_wh must be even"):
        Converter().to_i420(picture_of(counting_frames(1)[0]), target_wh)


def test_an_unsupported_pixel_format_raises() -> None:
    picture = picture_of(av.VideoFrame(64, 48, "gbrap32le"))
    with pytest.raises(SourceError, match="64x48 in pixel format gbrap32le cannot be converted"):
        Converter().to_i420(picture, (64, 48))


def test_tags_of_the_video_are_read_back(tmp_path: Path) -> None:
    frame = coded_frame(bars(320, 96), "yuv420p", "bt2020", full_range=False)
    stored = first_picture(write_video(tmp_path / "tags.mp4", [frame])).frame
    assert (stored.colorspace, stored.color_range) == (MATRIX_CODE["bt2020"], LIMITED)


ARROW = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)


@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (Orientation(), [[1, 2, 3], [4, 5, 6]]),
        (Orientation(mirror_x=True), [[3, 2, 1], [6, 5, 4]]),
        (Orientation(mirror_y=True), [[4, 5, 6], [1, 2, 3]]),
        (Orientation(mirror_x=True, mirror_y=True), [[6, 5, 4], [3, 2, 1]]),
        (Orientation(transpose=True), [[1, 4], [2, 5], [3, 6]]),
        (Orientation(transpose=True, mirror_x=True), [[4, 1], [5, 2], [6, 3]]),
        (Orientation(transpose=True, mirror_y=True), [[3, 6], [2, 5], [1, 4]]),
        (Orientation(transpose=True, mirror_x=True, mirror_y=True), [[6, 3], [5, 2], [4, 1]]),
    ],
    ids=["upright", "mirrored", "upside down mirrored", "180", "transposed", "90 right", "90 left", "transversed"],
)
def test_orientation_by_hand(orientation: Orientation, seen: list[list[int]]) -> None:
    assert orientation.apply(ARROW).tolist() == seen
    assert orientation.swap((3, 2)) == (len(seen[0]), len(seen))


def rotated_by_matrix(stored: NDArray[np.uint8], matrix: list[int]) -> NDArray[np.uint8]:
    """Return the picture with every pixel moved by the display matrix, as ISO/IEC 14496-12 defines it."""
    a, b, _, c, d = (round(value / 65536) for value in matrix[:5])
    height, width, _ = stored.shape
    moved = {(a * x + c * y, b * x + d * y): stored[y, x] for y in range(height) for x in range(width)}
    left, top = min(x for x, _ in moved), min(y for _, y in moved)
    seen = np.zeros((max(y for _, y in moved) - top + 1, max(x for x, _ in moved) - left + 1, 3), np.uint8)
    for (x, y), value in moved.items():
        seen[y - top, x - left] = value
    return seen


@pytest.mark.parametrize("flips", [{}, {"hflip": True}, {"vflip": True}], ids=["plain", "hflip", "vflip"])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_the_display_matrix_is_applied(tmp_path: Path, degrees: int, flips: dict[str, bool]) -> None:
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 4, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    frame = coded_frame(blocks, "yuv444p", "bt601", full_range=True)
    path = write_video(tmp_path / "turned.mp4", [frame], options={"qp": "0"}, turn={"degrees": degrees, **flips})
    with open_source(str(path), "file") as reader:
        picture = next(reader)
        side_data = picture.frame.side_data.get("DISPLAYMATRIX")
        matrix = (
            np.frombuffer(bytes(side_data), np.int32).tolist() if side_data else [65536, 0, 0, 0, 65536, 0, 0, 0, 0]
        )
        expected = rotated_by_matrix(blocks, matrix)
        assert (reader.width, reader.height) == (picture.width, picture.height) == expected.shape[1::-1]
    if not flips:
        assert np.array_equal(expected, np.rot90(blocks, degrees // 90))
    bgr = Converter().to_bgr(picture)
    assert np.abs(bgr[..., ::-1].astype(int) - expected).max() < TOLERANCE
    i420 = Converter().to_i420(picture, (picture.width, picture.height))
    assert (i420.source_width, i420.source_height) == (picture.width, picture.height)
    block_centres = np.s_[8::16, 8::16]
    assert np.abs(rgb_of_i420(i420)[block_centres] - expected[block_centres]).max() < TOLERANCE
