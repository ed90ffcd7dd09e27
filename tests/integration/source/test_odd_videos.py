"""Unusual and damaged videos: each yields the pictures that FFmpeg's decoder yields, or one error line."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from support.odd_videos import NUM_FILES, WITHOUT_PICTURES, count_undamaged_frames
from support.video_files import rgb_of_i420

from pipeline.errors import SourceError
from pipeline.models.registry import bus_hw, get_model
from pipeline.source import Converter, Reader, open_source

LIMIT_S = 20.0


@pytest.fixture(scope="module")
def odd_videos(shared_data: Path) -> Path:
    folder = shared_data / "videos" / "odd"
    if not folder.is_dir():
        pytest.skip(f"no odd videos in {folder}")
    return folder


def test_every_odd_video_yields_its_undamaged_pictures_or_one_error_line(
    odd_videos: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = sorted(odd_videos.iterdir())
    assert len(paths) == NUM_FILES
    converter = Converter()
    for path in paths:
        begin_s = time.monotonic()
        expected = count_undamaged_frames(path)
        if path.name in WITHOUT_PICTURES:
            with pytest.raises(SourceError) as caught:
                open_source(str(path), "file")
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value)
            assert expected == 0
        else:
            with open_source(str(path), "file") as reader:
                assert read_and_convert(reader, converter) == expected > 0, path.name
        assert time.monotonic() - begin_s < LIMIT_S
    assert capfd.readouterr() == ("", "")


def read_and_convert(reader: Reader, converter: Converter) -> int:
    """Count the pictures, and check that I420 and BGR of the first picture have equal mean colours."""
    count, last_s = 0, -np.inf
    for picture in reader:
        count += 1
        assert picture.ordinal == count
        assert picture.pts_s > last_s
        last_s = picture.pts_s
        if count == 1:
            height, width = bus_hw(get_model("street"), (picture.height, picture.width))
            i420 = converter.to_i420(picture, (width, height))
            small = rgb_of_i420(i420).mean((0, 1))
            large = converter.to_bgr(picture)[..., ::-1].astype(np.float64).mean((0, 1))
            assert np.abs(small - large).max() < 3, (reader.source, small, large)
    return count


def test_edit_list_rotation_nonzero_start_and_missing_duration(odd_videos: Path) -> None:
    with open_source(str(odd_videos / "torchcodec_discard_first_keyframe.mp4"), "file") as reader:
        assert sum(1 for _ in reader) == 25
    with open_source(str(odd_videos / "torchcodec_nasa_13013_rotated.mp4"), "file") as reader:
        assert (reader.width, reader.height) == (270, 480)
    with open_source(str(odd_videos / "torchcodec_test_non_zero_start.mp4"), "file") as reader:
        assert next(reader).pts_s == pytest.approx(8.3330078125)
    with open_source(str(odd_videos / "moviepy_no_duration.webm"), "file") as reader:
        assert reader.num_frames_expected is None


def test_one_pattern_in_three_encodings_has_the_same_colours(odd_videos: Path) -> None:
    converter = Converter()

    def first(name: str) -> np.ndarray:
        with open_source(str(odd_videos / name), "file") as reader:
            return rgb_of_i420(converter.to_i420(next(reader), (320, 240)))

    limited = first("torchcodec_bt601_limited_range.mp4")
    # Lossy coding changes the edges. A wrong matrix changes the picture by three times as much, although most colours
    # of the pattern are saturated and therefore clipped.
    tolerance = 1.8
    assert np.abs(first("torchcodec_bt2020_10bit.mp4") - limited).mean() < tolerance
    assert np.abs(first("torchcodec_testsrc2_av1_10bit.mp4") - limited).mean() < tolerance
    with open_source(str(odd_videos / "torchcodec_bt2020_10bit.mp4"), "file") as reader:
        misread = rgb_of_i420(converter.to_i420(next(reader), (320, 240)), "bt601")
    assert np.abs(misread - limited).mean() > 3 * tolerance
