"""Truncated files are distinguished from complete files by the end that the container announces."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.video_files import counting_frames, joined, write_video

from pipeline.source import open_source

FORMATS = ["mp4", "mov", "mkv", "webm", "avi", "flv"]
NUM_FRAMES = 100


def write_noise_video(path: Path, *, sound_s: float = 0.0) -> Path:
    """Write NUM_FRAMES noise frames at 25 fps, and `sound_s` seconds of audio."""
    codec, sound = ("libvpx", "libopus") if path.suffix == ".webm" else ("libx264", "aac")
    options = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=options) as container:
        video: Any = container.add_stream(codec, rate=25, options={"deadline": "realtime"} if codec == "libvpx" else {})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio: Any = container.add_stream(sound, rate=48000, layout="mono") if sound_s else None
        num_blocks = int(sound_s * 25)
        for index in range(max(NUM_FRAMES, num_blocks)):
            if index < NUM_FRAMES:
                planes = np.random.default_rng(index).integers(16, 235, (72, 64), np.uint8)
                frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
                frame.pts = index
                container.mux(video.encode(frame))
            if index < num_blocks:
                noise = np.random.default_rng(index).integers(-9000, 9000, (1, 1920), np.int16)
                block = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
                block.sample_rate, block.pts = 48000, index * 1920
                container.mux(audio.encode(block))
        for stream in filter(None, (video, audio)):
            container.mux(stream.encode(None))
    return path


def read(path: Path) -> tuple[int, str]:
    with open_source(str(path), "file") as reader:
        return sum(1 for _ in reader), reader.truncation


@pytest.mark.parametrize("sound_s", [0.0, 3.0, 5.0], ids=["no sound", "shorter sound", "longer sound"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_complete_file_is_not_truncated(tmp_path: Path, suffix: str, sound_s: float) -> None:
    assert read(write_noise_video(tmp_path / f"film.{suffix}", sound_s=sound_s)) == (NUM_FRAMES, "")


@pytest.mark.parametrize("sound_s", [0.0, 5.0], ids=["no sound", "longer sound"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_cut_short_is_truncated(tmp_path: Path, suffix: str, sound_s: float) -> None:
    path = write_noise_video(tmp_path / f"film.{suffix}", sound_s=sound_s)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    num_frames, truncation = read(path)
    assert 0 < num_frames < 95
    # FLV announces one duration for video and audio together.
    announced = r"about 1\d\d" if suffix == "flv" else f"(about )?{NUM_FRAMES}"
    assert re.fullmatch(f"{num_frames} of {announced} frames: the file ends early", truncation)


def test_files_without_an_announced_end_are_not_truncated(tmp_path: Path) -> None:
    for name, codec in [("a.ts", "libx264"), ("a.h264", "libx264"), ("a.m2v", "mpeg2video"), ("a.mpg", "mpeg2video")]:
        path = write_video(tmp_path / name, counting_frames(30), codec=codec)
        assert read(path) == (30, "")
    assert read(joined(tmp_path / "twice.ts", tmp_path / "a.ts", tmp_path / "a.ts")) == (60, "")


def test_a_file_with_an_edit_list_is_not_truncated(tmp_path: Path) -> None:
    path = write_noise_video(tmp_path / "film.mp4")
    target = tmp_path / "trimmed.mp4"
    with av.open(str(path)) as source, av.open(str(target), "w") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - 20 * 512, packet.dts - 20 * 512, copy
                output.mux(packet)
    with av.open(str(target)) as container:
        assert container.streams.video[0].frames == NUM_FRAMES
    num_frames, truncation = read(target)
    assert num_frames <= NUM_FRAMES
    assert truncation == ""


def test_a_file_with_a_variable_frame_rate_is_not_truncated(tmp_path: Path) -> None:
    times = [0, 1, 2, 50, 51, 400, 401]
    for suffix in ("mp4", "mkv"):
        path = write_video(tmp_path / f"uneven.{suffix}", counting_frames(len(times)), pts=times)
        assert read(path) == (len(times), "")
