"""Annotated videos of real encoded sources: order and time of the pictures, sound, colours, early ends, errors."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support import result_samples

from pipeline.contract.config import StreamConfig
from pipeline.contract.results import FrameResult
from pipeline.errors import OutputError, SourceError
from pipeline.exports import mp4
from pipeline.exports.file_video import FileVideoWriter
from pipeline.source import open_source

WIDTH, HEIGHT, BLOCK, BITS = 96, 64, 8, 11
MARK = (8.0, 40.0, 40.0, 60.0)


def numbered_picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Return a grey picture with its number as black and white blocks along the top."""
    picture = np.full((height, width, 3), 100, np.uint8)
    for bit in range(BITS):
        picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 16
    return picture


def number_on(picture: NDArray[np.uint8]) -> int:
    return sum(1 << bit for bit in range(BITS) if picture[2:6, bit * BLOCK + 2 : (bit + 1) * BLOCK - 2].mean() > 125)


def is_annotated(picture: NDArray[np.uint8]) -> bool:
    """Return whether a box is drawn at MARK. The source is grey, so only annotations have colour."""
    x1, y1, x2, y2 = map(int, MARK)
    region = picture[y1:y2, x1:x2].astype(int)
    return int((region.max(axis=2) - region.min(axis=2)).max()) > 40


def make_clip(
    path: Path,
    num: int,
    *,
    pts_s: Sequence[float] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    sound: str | None = None,
    sound_begin_s: float = 0.0,
    rate: int = 25,
    first: int = 1,
) -> Path:
    times = [k / rate for k in range(num)] if pts_s is None else pts_s
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "18"})
        video.width, video.height, video.pix_fmt = *size, "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        video.codec_context.time_base = Fraction(1, 90_000)
        audio: Any = container.add_stream(sound, rate=48000, layout="mono") if sound else None
        for k, time_s in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_picture(first + k, *size), format="bgr24")
            frame.pts, frame.time_base = round(time_s * 90_000), Fraction(1, 90_000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            noise = np.random.default_rng(1)
            for k in range(round((times[-1] - times[0] + 1 / rate) * 50)):
                samples = noise.uniform(-0.3, 0.3, (1, 960)).astype(np.float32)
                chunk = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                chunk.sample_rate = 48000
                chunk.pts, chunk.time_base = round(sound_begin_s * 48000) + 960 * k, Fraction(1, 48000)
                container.mux(audio.encode(chunk))
            container.mux(audio.encode(None))
    return path


def config(source: Path, **changes: Any) -> StreamConfig:
    fields: dict[str, Any] = {
        "stream_id": "cam1",
        "source": str(source),
        "kind": "file",
        "policy": "lossless",
        "conf": 0.5,
        "class_ids": None,
        "max_staleness_s": 0.5,
        "stride": 1,
        "max_fps": None,
        "max_frames": None,
        "rtsp_transport": "tcp",
        "model": "street",
        "max_in_flight": 16,
        "log_bytes": 1 << 20,
    }
    return StreamConfig(**(fields | changes))


def result(seq: int) -> FrameResult:
    marked = result_samples.instance(box_xyxy=MARK, mask=None)
    return result_samples.frame(seq, width=WIDTH, height=HEIGHT, instances=[marked])


def annotate(source: Path, output: Path, num: int, **options: Any) -> None:
    with FileVideoWriter(output, config(source, **options)) as writer:
        for seq in range(1, num + 1):
            writer.write(result(seq))


def pictures(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [(float(frame.time), frame.to_ndarray(format="bgr24")) for frame in container.decode(stream)]


def sound_packets(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        return [
            (float(p.dts * p.time_base), bytes(p)) for p in container.demux(audio=0) if p.size and p.dts is not None
        ]


def test_every_frame_of_a_long_clip_has_its_own_annotation(tmp_path: Path) -> None:
    source, output = make_clip(tmp_path / "clip.mp4", 1394), tmp_path / "cam1.mp4"
    with FileVideoWriter(output, config(source)) as writer:
        for seq in range(1, 1395):
            marked = [result_samples.instance(box_xyxy=MARK, mask=None)] if seq % 3 == 0 else []
            writer.write(result_samples.frame(seq, width=WIDTH, height=HEIGHT, instances=marked))
            writer.write(result_samples.event(seq))
        writer.write(result_samples.end(1394))
    found = pictures(output)
    assert [number_on(picture) for _, picture in found] == list(range(1, 1395))
    assert [is_annotated(picture) for _, picture in found] == [seq % 3 == 0 for seq in range(1, 1395)]
    assert [time_s for time_s, _ in found] == pytest.approx([k / 25 for k in range(1394)], abs=1e-5)
    assert [entry.name for entry in tmp_path.iterdir() if "cam1" in entry.name] == ["cam1.mp4"]
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        assert stream.frames == 1394
        assert float(stream.duration * stream.time_base) == pytest.approx(1394 / 25, abs=1e-3)
        assert stream.codec_context.name == "h264"


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    steps = random.Random(3).choices([0.011, 0.04, 0.1, 0.733], k=39)
    times = [5.0 + sum(steps[:k]) for k in range(40)]
    source = make_clip(tmp_path / "clip.mkv", 40, pts_s=times)
    annotate(source, tmp_path / "cam1.mp4", 40)
    with open_source(str(source), "file") as reader:
        shown_s = [picture.pts_s for picture in reader]
    assert [time_s for time_s, _ in pictures(tmp_path / "cam1.mp4")] == pytest.approx(
        [t - shown_s[0] for t in shown_s], abs=1e-5
    )


@pytest.mark.parametrize(
    ("name", "encoder", "codec"),
    [
        ("clip.mp4", "aac", "aac"),
        ("clip.ts", "aac", "aac"),
        ("clip.mkv", "libopus", "opus"),
        ("clip.mkv", "libmp3lame", "mp3float"),
        ("clip.mkv", "ac3", "ac3"),
        ("clip.mkv", "flac", "aac"),
        ("clip.mov", "pcm_s16le", "aac"),
    ],
)
def test_the_sound_is_copied(tmp_path: Path, name: str, encoder: str, codec: str) -> None:
    source, output = make_clip(tmp_path / name, 50, sound=encoder), tmp_path / "cam1.mp4"
    annotate(source, output, 50)
    with av.open(str(output)) as container:
        stream = container.streams.audio[0]
        assert stream.codec_context.name == codec
        assert float(stream.duration * stream.time_base) == pytest.approx(2.0, abs=0.06)
        samples = np.concatenate([frame.to_ndarray().astype(float).reshape(-1) for frame in container.decode(stream)])
    assert np.abs(samples).max() > 0
    if encoder == codec and name != "clip.ts":
        assert [data for _, data in sound_packets(output)] == [data for _, data in sound_packets(source)]


@pytest.mark.parametrize("late_s", [-0.5, 0.0, 0.35], ids=["earlier", "together", "later"])
def test_sound_and_pictures_stay_in_sync_when_the_source_starts_late(tmp_path: Path, late_s: float) -> None:
    times = [7.0 + k / 25 for k in range(50)]
    source = make_clip(tmp_path / "clip.mkv", 50, pts_s=times, sound="aac", sound_begin_s=7.0 + late_s)
    annotate(source, tmp_path / "cam1.mp4", 50)
    begin_s = pictures(source)[0][0]
    wanted = {data: time_s - begin_s for time_s, data in sound_packets(source)}
    found = sound_packets(tmp_path / "cam1.mp4")
    assert len(found) > 60
    assert all(time_s == pytest.approx(wanted[data], abs=0.002) for time_s, data in found)


def test_sound_ends_with_the_pictures(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 100, sound="aac")
    annotate(source, tmp_path / "cam1.mp4", 25, max_frames=25)
    found = pictures(tmp_path / "cam1.mp4")
    assert [number_on(picture) for _, picture in found] == list(range(1, 26))
    assert sound_packets(tmp_path / "cam1.mp4")[-1][0] == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize(
    ("options", "numbers"),
    [({"stride": 3}, list(range(1, 51, 3))), ({"max_fps": 5.0}, list(range(1, 51, 5)))],
    ids=["stride", "max-fps"],
)
def test_selected_pictures_keep_their_times_and_the_whole_sound(
    tmp_path: Path, options: dict[str, Any], numbers: list[int]
) -> None:
    source = make_clip(tmp_path / "clip.mp4", 50, sound="aac")
    annotate(source, tmp_path / "cam1.mp4", len(numbers), **options)
    found = pictures(tmp_path / "cam1.mp4")
    assert [number_on(picture) for _, picture in found] == numbers
    assert [time_s for time_s, _ in found] == pytest.approx([(number - 1) / 25 for number in numbers], abs=1e-5)
    assert len(sound_packets(tmp_path / "cam1.mp4")) == len(sound_packets(source))


def test_frames_of_gaps_and_of_trimmed_results_have_no_annotation(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 12)
    with FileVideoWriter(tmp_path / "cam1.mp4", config(source)) as writer:
        for message in [result(1), result(2), result_samples.gap(3, 5), result(6), result(9), result(9), result(2)]:
            writer.write(message)
        writer.write(result_samples.gap(10, 12))
    found = pictures(tmp_path / "cam1.mp4")
    assert [number_on(picture) for _, picture in found] == list(range(1, 13))
    assert [number_on(picture) for _, picture in found if is_annotated(picture)] == [1, 2, 6, 9]


def test_a_job_that_stops_early_leaves_a_playable_file(tmp_path: Path) -> None:
    source, output = make_clip(tmp_path / "clip.mp4", 100, sound="aac"), tmp_path / "cam1.mp4"
    writer = FileVideoWriter(output, config(source))
    for seq in range(1, 31):
        writer.write(result(seq))
    assert not output.exists()
    writer.finish()
    writer.finish()
    assert [number_on(picture) for _, picture in pictures(output)] == list(range(1, 31))
    assert sound_packets(output)[-1][0] == pytest.approx(1.2, abs=0.04)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cam1.mp4", "clip.mp4"]


def test_a_stream_without_a_frame_writes_nothing(tmp_path: Path) -> None:
    with FileVideoWriter(tmp_path / "cam1.mp4", config(tmp_path / "gone.mp4")) as writer:
        writer.write(result_samples.end(0))
    assert list(tmp_path.iterdir()) == []


def test_joined_recordings_follow_each_other_with_their_sound(tmp_path: Path) -> None:
    one = make_clip(tmp_path / "one.ts", 75, sound="aac")
    two = make_clip(tmp_path / "two.ts", 75, sound="aac", first=76)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + two.read_bytes())
    annotate(joined, tmp_path / "cam1.mp4", 150)
    found = pictures(tmp_path / "cam1.mp4")
    assert [number_on(picture) for _, picture in found] == list(range(1, 151))
    steps_s = np.diff([time_s for time_s, _ in found])
    assert steps_s.min() > 0.039
    assert steps_s.max() < 0.041
    sound_s = [time_s for time_s, _ in sound_packets(tmp_path / "cam1.mp4")]
    assert sound_s[-1] == pytest.approx(6.0, abs=0.1)
    assert np.diff(sound_s).max() < 0.12


@pytest.mark.parametrize("size", [(97, 65), (96, 65), (97, 64)], ids=str)
def test_odd_sides_repeat_their_last_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    source, output = make_clip(tmp_path / "clip.mp4", 10, size=size), tmp_path / "cam1.mp4"
    with FileVideoWriter(output, config(source)) as writer:
        for seq in range(1, 11):
            writer.write(result_samples.gap(seq, seq))
    found = pictures(output)
    assert [number_on(picture) for _, picture in found] == list(range(1, 11))
    assert found[0][1].shape == (size[1] + size[1] % 2, size[0] + size[0] % 2, 3)
    assert np.abs(found[0][1][20:, -1].astype(int) - 100).max() < 12


def test_pictures_of_other_sizes_get_black_bars(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, (width, height) in enumerate([(160, 120), (160, 120), (120, 240), (400, 100)], 1):
        cv2.imwrite(str(folder / f"{k}.png"), np.full((height, width, 3), 200, np.uint8))
    with FileVideoWriter(tmp_path / "cam1.mp4", config(folder, kind="pictures")) as writer:
        for seq, size in enumerate([(160, 120), (160, 120), (120, 240), (400, 100)], 1):
            writer.write(result_samples.frame(seq, width=size[0], height=size[1], instances=[]))
    found = [picture for _, picture in pictures(tmp_path / "cam1.mp4")]
    assert [picture.shape for picture in found] == [(120, 160, 3)] * 4
    assert found[2][60, 80].mean() == pytest.approx(200, abs=8)
    assert found[2][60, 10].mean() < 10
    assert found[3][60, 80].mean() == pytest.approx(200, abs=8)
    assert found[3][10, 80].mean() < 10


@pytest.mark.parametrize(
    ("name", "colourspace", "full_range"),
    [
        ("torchcodec_bt601_full_range.mp4", 6, True),
        ("torchcodec_bt601_limited_range.mp4", 6, False),
        ("torchcodec_bt709_full_range.mp4", 1, True),
        ("torchcodec_bt2020_10bit.mp4", 9, False),
    ],
)
def test_colours_and_their_tags_are_kept(
    tmp_path: Path, shared_data: Path, name: str, colourspace: int, full_range: bool
) -> None:
    source, output = shared_data / "videos" / "odd" / name, tmp_path / "cam1.mp4"
    with open_source(str(source), "file") as reader:
        size = reader.width, reader.height
    with FileVideoWriter(output, config(source)) as writer:
        for seq in range(1, 6):
            writer.write(result_samples.gap(seq, seq))
    with av.open(str(source)) as before, av.open(str(output)) as after:
        old, new = next(before.decode(video=0)), next(after.decode(video=0))
    assert (new.width, new.height) == size
    assert new.colorspace == colourspace
    assert (new.color_range == 2) is full_range
    assert (new.color_primaries, new.color_trc) == (old.color_primaries, old.color_trc)
    # tolerance in 8-bit luma after two conversions and one encoding
    luma_old = (old.reformat(format="yuv420p") if "10" in old.format.name else old).to_ndarray()[: size[1], : size[0]]
    luma_new = new.to_ndarray()[: size[1], : size[0]]
    assert np.abs(luma_old.astype(float) - luma_new).mean() < 3


def test_every_frame_of_a_real_video_with_sound_keeps_its_time(tmp_path: Path, shared_data: Path) -> None:
    source, output = shared_data / "videos" / "intel_car-detection.mp4", tmp_path / "cam1.mp4"
    with FileVideoWriter(output, config(source)) as writer:
        for seq in range(1, 378):
            marked = result_samples.instance(box_xyxy=(100.0, 100.0, 300.0, 300.0), mask=None)
            writer.write(result_samples.frame(seq, width=768, height=432, instances=[marked]))
    with av.open(str(source)) as before, av.open(str(output)) as after:
        num = 0
        for old, new in zip(before.decode(video=0), after.decode(video=0), strict=True):
            num += 1
            assert float(new.time) == pytest.approx(float(old.time), abs=1e-5)
            difference = (
                old.to_ndarray(format="gray")[310:, 310:].astype(int) - new.to_ndarray(format="gray")[310:, 310:]
            )
            assert np.abs(difference).mean() < 3, f"frame {num} has the pixels of another picture"
    assert num == 377
    assert sound_packets(output) == sound_packets(source)


def test_without_x264_another_encoder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp4, "ENCODERS", ("no_such_encoder", "mpeg4"))
    annotate(make_clip(tmp_path / "clip.mp4", 30), tmp_path / "cam1.mp4", 30)
    assert [number_on(picture) for _, picture in pictures(tmp_path / "cam1.mp4")] == list(range(1, 31))


def test_a_missing_encoder_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp4, "ENCODERS", ("no_such_encoder",))
    with pytest.raises(OutputError, match="FFmpeg lacks no_such_encoder; leave video out"):
        annotate(make_clip(tmp_path / "clip.mp4", 3), tmp_path / "cam1.mp4", 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_full_disk_is_a_one_line_error_and_leaves_no_file(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 300, sound="aac")
    (tmp_path / "cam1.mp4.part").symlink_to("/dev/full")
    with pytest.raises(
        OutputError, match=r"cannot write .*cam1\.mp4: no space left on device; free some space"
    ) as caught:
        annotate(source, tmp_path / "cam1.mp4", 300)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_a_missing_folder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no such file or directory"):
        annotate(make_clip(tmp_path / "clip.mp4", 3), tmp_path / "gone" / "cam1.mp4", 3)


def test_a_source_that_changed_during_the_job_is_a_one_line_error(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 10)
    with pytest.raises(SourceError, match="yielded 10 pictures when it was read again, but its results reach frame 11"):
        annotate(source, tmp_path / "cam1.mp4", 11)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_an_error_elsewhere_removes_the_unfinished_file(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "clip.mp4", 10)
    writer = FileVideoWriter(tmp_path / "cam1.mp4", config(source))
    writer.write(result(1))
    writer.__exit__(RuntimeError, RuntimeError(), None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_video_is_written_without_sound_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SourceError("the server closed the connection")

    monkeypatch.setattr("pipeline.exports.sound.open_container", fail)
    with caplog.at_level(logging.WARNING):
        annotate(make_clip(tmp_path / "clip.mp4", 10, sound="aac"), tmp_path / "cam1.mp4", 10)
    assert len(pictures(tmp_path / "cam1.mp4")) == 10
    assert "is written without sound: the server closed the connection" in caplog.text
