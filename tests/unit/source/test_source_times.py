"""pts_s: correct for containers with wrong or missing timestamps, and rising across concatenated recordings."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.video_files import counting_frames, joined, write_video

from pipeline.segments import SegmentReader, SegmentWriter
from pipeline.source import Selection, open_source
from pipeline.source.picture import MediaClock

B_FRAMES = {"bf": "3", "g": "12", "b_strategy": "0"}


def times_s(path: Path, kind: Any = "file") -> list[float]:
    with open_source(str(path), kind) as reader:
        return [picture.pts_s for picture in reader]


def assert_regular(found_s: Sequence[float], count: int, fps: float) -> None:
    assert len(found_s) == count
    assert np.diff(found_s) == pytest.approx([1 / fps] * (count - 1), abs=0.002)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_avi_with_b_frames_has_regular_times(tmp_path: Path, codec: str) -> None:
    path = write_video(tmp_path / "cam.avi", counting_frames(24), codec=codec, options=B_FRAMES)
    found_s = times_s(path)
    assert_regular(found_s, 24, 25)
    selection = Selection(max_fps=25)
    assert [selection.number(pts_s) for pts_s in found_s] == list(range(1, 25))


@pytest.mark.parametrize(
    ("name", "codec"), [("raw.h264", "libx264"), ("raw.hevc", "libx265"), ("raw.m2v", "mpeg2video")]
)
@pytest.mark.parametrize("fps", [24, 30, 50])
def test_a_raw_stream_has_the_rate_that_its_headers_state(tmp_path: Path, name: str, codec: str, fps: int) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else B_FRAMES
    path = write_video(tmp_path / name, counting_frames(2 * fps), codec=codec, rate=fps, options=options)
    with open_source(str(path), "file") as reader:
        assert reader.fps == fps
        assert_regular([picture.pts_s for picture in reader], 2 * fps, fps)


@pytest.mark.parametrize("options", [{"bf": "0"}, B_FRAMES], ids=["without B-frames", "with B-frames"])
@pytest.mark.parametrize("count", [5, 24, 75], ids=["0.2 s", "0.96 s", "3 s"])
@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_concatenated_recordings_continue_after_one_frame(
    tmp_path: Path, count: int, options: dict[str, str], suffix: str
) -> None:
    codec = "libx264" if suffix == "ts" else "mpeg2video"
    options = options if suffix == "ts" else {}
    parts = [
        write_video(tmp_path / f"{n}.{suffix}", counting_frames(count), codec=codec, options=options) for n in range(3)
    ]
    assert_regular(times_s(joined(tmp_path / f"joined.{suffix}", *parts)), 3 * count, 25)


def test_a_recording_after_one_with_b_frames_continues_after_one_frame(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / f"{n}.ts", counting_frames(25), options=options)
        for n, options in enumerate([B_FRAMES, {"bf": "0"}, B_FRAMES])
    ]
    found_s = times_s(joined(tmp_path / "joined.ts", *parts))
    assert len(found_s) == 75
    assert np.diff(found_s) == pytest.approx([0.04] * 74, abs=0.09)
    assert min(np.diff(found_s)) > 0


def test_a_recording_with_much_later_times_continues_after_one_frame(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / f"{n}.ts", counting_frames(25), pts=range(n * 25_000, n * 25_000 + 25)) for n in range(2)
    ]
    assert_regular(times_s(joined(tmp_path / "joined.ts", *parts)), 50, 25)


def test_a_gap_within_a_recording_is_kept(tmp_path: Path) -> None:
    path = write_video(tmp_path / "gap.mkv", counting_frames(10), pts=[*range(5), *range(1000, 1005)])
    found_s = times_s(path)
    assert found_s[5] - found_s[4] == pytest.approx(996 / 25, abs=0.002)


@pytest.mark.parametrize(
    ("pts", "expected_s"),
    [
        pytest.param([0, 1, 1, 2, 3], [0, 1, 1 + 1 / 16, 2, 3], id="repeated"),
        pytest.param([5, None, None, 8], [5, 6, 7, 8], id="missing"),
        pytest.param([-2, -1, 0], [-2, -1, 0], id="negative"),
    ],
)
def test_times_rise_strictly(pts: list[int | None], expected_s: list[float]) -> None:
    clock = MediaClock(fps=1.0, time_base=Fraction(1))
    frames = counting_frames(len(pts))
    for frame, ticks in zip(frames, pts, strict=True):
        frame.pts, frame.time_base = ticks, Fraction(1)
    assert [clock.of(frame) for frame in frames] == expected_s


def test_stored_pictures_of_a_concatenated_stream_keep_their_times(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{n}.ts", counting_frames(24), options=B_FRAMES) for n in range(3)]
    path = joined(tmp_path / "joined.ts", *parts)
    folder = tmp_path / "stored"
    folder.mkdir()
    writer = SegmentWriter(folder, segment_s=0.0)
    with open_source(str(path), "live", on_packet=writer.take) as reader:
        writer.begin(1)
        decoded_s = [picture.pts_s for picture in reader]
    writer.end()
    stored = SegmentReader(folder)
    stored_s = []
    while (picture := stored.read(at_end=True)) is not None:
        stored_s.append(picture.picture.pts_s)
    stored.close()
    assert len(decoded_s) == 72
    assert np.all(np.diff(decoded_s) > 0)
    assert stored_s == decoded_s
