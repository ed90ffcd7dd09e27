"""Readers: pictures, times, errors, and capture times."""

from __future__ import annotations

import gc
import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image
from support.video_files import bars, counting_frames, write_video

from pipeline.errors import SourceError
from pipeline.source import Converter, Reader, Selection, open_source
from pipeline.source.video import CaptureClock

SLOW_START = {"qp": "0", "bf": "2", "g": "8", "threads": "1"}


def lumas(reader: Reader, converter: Converter) -> list[int]:
    """Return the numbers, from 0, of pictures that `counting_frames` drew."""
    return [round((int(converter.to_i420(picture, (32, 24)).data[0]) - 20) / 4) for picture in reader]


@pytest.mark.parametrize("kind", ["file", "live"])
def test_reordered_packets_yield_every_picture_once_in_presentation_order(tmp_path: Path, kind: str) -> None:
    path = write_video(tmp_path / "count.mp4", counting_frames(30), options=SLOW_START)
    with open_source(str(path), kind) as reader:
        assert (reader.width, reader.height, reader.fps, reader.num_frames_expected) == (64, 48, 25.0, 30)
        assert (reader.has_audio, reader.is_finite, reader.sample_aspect_ratio) == (False, True, 1)
        assert lumas(reader, Converter()) == list(range(30))
        assert reader.num_corrupt == 0


@pytest.mark.parametrize(
    ("name", "tracks", "chosen"),
    [
        pytest.param("a.mp4", [("mjpeg", 1, 320, ""), ("libx264", 5, 64, "default")], 1, id="default after a still"),
        pytest.param(
            "a.mp4", [("mjpeg", 1, 320, "default"), ("libx264", 5, 64, "default")], 1, id="still by its length"
        ),
        pytest.param(
            "a.mkv", [("mjpeg", 1, 320, "default"), ("libx264", 5, 64, "default")], 1, id="still by its codec"
        ),
        pytest.param("a.mkv", [("libx264", 5, 320, ""), ("libx264", 5, 64, "default")], 1, id="default after another"),
        pytest.param("a.mkv", [("libx264", 5, 320, "default"), ("mjpeg", 5, 64, "")], 0, id="default first"),
        pytest.param("a.mkv", [("libx264", 5, 64, "default"), ("libx264", 5, 320, "default")], 1, id="larger second"),
        pytest.param("a.mkv", [("libx264", 5, 64, ""), ("libx264", 5, 64, "")], 0, id="equal"),
        pytest.param("a.mp4", [("mjpeg", 1, 320, "default")], 0, id="only a still"),
    ],
)
def test_the_default_moving_video_is_selected_from_several_tracks(
    tmp_path: Path, name: str, tracks: list[tuple[str, int, int, str]], chosen: int
) -> None:
    with av.open(str(tmp_path / name), "w") as container:
        streams = []
        for codec, _, width, disposition in tracks:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = width, 48
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = av.stream.Disposition[disposition] if disposition else 0
            streams.append(stream)
        for stream, (_, count, width, _) in zip(streams, tracks, strict=True):
            for frame in counting_frames(count, width=width):
                frame.time_base = Fraction(1, 25)
                container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
            container.mux(stream.encode(None))
    with open_source(str(tmp_path / name), "file") as reader:
        assert reader._stream.index == chosen  # type: ignore[attr-defined]
        assert sum(1 for _ in reader) == tracks[chosen][1]


def test_pictures_have_an_ordinal_a_time_and_a_clock(tmp_path: Path) -> None:
    path = write_video(tmp_path / "count.mp4", counting_frames(5), options=SLOW_START)
    with open_source(str(path), "file") as reader:
        pictures = list(reader)
    assert [picture.ordinal for picture in pictures] == [1, 2, 3, 4, 5]
    assert [picture.pts_s for picture in pictures] == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])
    assert {(picture.clock, picture.captured_at_ns) for picture in pictures} == {("file", None)}


def test_conversion_does_not_change_the_numbers(tmp_path: Path) -> None:
    path = write_video(tmp_path / "count.mp4", counting_frames(30), options=SLOW_START)
    converter, numberings = Converter(), []
    for convert in (True, False):
        selection = Selection(stride=2, max_fps=5, max_frames=4)
        with open_source(str(path), "file") as reader:
            numbered = {}
            for picture in reader:
                number = selection.number(picture.pts_s)
                if number is not None:
                    numbered[number] = picture.ordinal
                    if convert:
                        converter.to_bgr(picture)
                if selection.done:
                    break
        numberings.append(numbered)
    # Every second picture, at most one in each slot of 0.2 s: 1, 7 (0.24 s), 11 (0.4 s), 17 (0.64 s).
    assert numberings[0] == numberings[1] == {1: 1, 2: 7, 3: 11, 4: 17}


def test_a_variable_frame_rate_and_a_nonzero_start_are_kept(tmp_path: Path) -> None:
    pts_ms = [5000, 5033, 5500, 5501, 9000]
    path = write_video(
        tmp_path / "vfr.mkv", counting_frames(5), pts=pts_ms, time_base=Fraction(1, 1000), options=SLOW_START
    )
    with open_source(str(path), "file") as reader:
        assert [picture.pts_s for picture in reader] == pytest.approx([pts / 1000 for pts in pts_ms])


def test_missing_times_follow_the_frame_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", counting_frames(6), options=SLOW_START)
    with open_source(str(path), "file") as reader:
        times_s = [picture.pts_s for picture in reader]
    assert len(times_s) == 6
    assert np.diff(times_s) == pytest.approx([1 / reader.fps] * 5)
    assert reader.num_frames_expected is None


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_a_truncated_file_yields_its_undamaged_pictures(tmp_path: Path, suffix: str) -> None:
    path = write_video(
        tmp_path / f"whole.{suffix}",
        counting_frames(50),
        options={"qp": "0", "g": "8", "bf": "0"},
        container_options={"movflags": "faststart"} if suffix == "mp4" else None,
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    with open_source(str(path), "file") as reader:
        found = lumas(reader, Converter())
    assert 10 < len(found) < 45
    assert found == list(range(len(found)))


def test_damaged_pictures_are_counted_and_skipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = [av.VideoFrame.from_ndarray(rng.integers(0, 255, (72, 64), np.uint8), format="yuv420p") for _ in range(60)]
    path = write_video(tmp_path / "noise.mkv", noise, options={"g": "10", "bf": "0"})
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 4, len(data), len(data) // 9):
        data[at : at + 200] = b"\xff" * 200
    path.write_bytes(data)
    with open_source(str(path), "file") as reader:
        num_undamaged = sum(1 for _ in reader)
        assert reader.num_corrupt > 0
    assert 0 < num_undamaged < 60
    assert num_undamaged + reader.num_corrupt <= 60 + 9


def test_frames_are_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    path = write_video(tmp_path / "count.mp4", counting_frames(30), options=SLOW_START, turn={"degrees": 90})
    converter, num_alive = Converter(), []
    gc.collect()
    gc.disable()
    try:
        with open_source(str(path), "file") as reader:
            for picture in reader:
                converter.to_bgr(picture)
                converter.to_i420(picture, (32, 24))
                # isinstance would evaluate the proxy objects of other packages
                num_alive.append(sum(type(instance) is av.VideoFrame for instance in gc.get_objects()))
    finally:
        gc.enable()
    assert max(num_alive) <= num_alive[2] + 1


def test_the_sample_aspect_ratio_refers_to_the_upright_picture(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = 64, 48
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(degrees=90)
        for frame in counting_frames(2):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_source(str(path), "file") as reader:
        assert (reader.width, reader.height, reader.sample_aspect_ratio) == (48, 64, Fraction(3, 4))


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def song_with_cover(path: Path) -> None:
    with av.open(str(path), "w") as container:
        cover = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(cover.encode(av.VideoFrame.from_ndarray(bars(16, 16), format="rgb24")))
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))


def concat_list(path: Path) -> None:
    write_video(path.parent / "other.mkv", counting_frames(3))
    path.write_text("ffconcat version 1.0\nfile other.mkv\n")


def playlist(path: Path) -> None:
    write_video(path.parent / "other.ts", counting_frames(3))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        pytest.param("gone.mp4", lambda path: None, "No such file", id="gone"),
        pytest.param("empty.mp4", lambda path: path.write_bytes(b""), "cannot be opened", id="empty"),
        pytest.param("text.mp4", lambda path: path.write_text("hello " * 99), "cannot be opened", id="text"),
        pytest.param("folder.mp4", lambda path: path.mkdir(), "Is a directory", id="folder"),
        pytest.param("audio.m4a", audio_only, "holds no video: found only audio", id="audio only"),
        pytest.param("song.mp4", song_with_cover, "found only audio and a cover picture", id="song with a cover"),
        pytest.param("list.mp4", concat_list, "playlists on disk are not followed", id="concat list"),
        pytest.param("list.m3u8", playlist, "playlists on disk are not followed", id="HLS playlist"),
    ],
)
def test_a_file_without_video_gives_one_error_line(
    tmp_path: Path, name: str, make: object, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(SourceError) as caught:
        open_source(str(path), "file")
    text = str(caught.value)
    assert text.startswith(str(path))
    assert expected in text
    assert "\n" not in text
    assert capfd.readouterr() == ("", "")


def test_a_file_name_is_not_interpreted_as_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mkv", counting_frames(3)).rename("subfile,,start,0,end,0,,:a.mkv")
    with open_source("subfile,,start,0,end,0,,:a.mkv", "file") as reader:
        assert sum(1 for _ in reader) == 3


def test_a_folder_of_pictures_skips_unreadable_files(tmp_path: Path) -> None:
    rgb = bars(320, 96)
    Image.fromarray(rgb).save(tmp_path / "2.png")
    Image.fromarray(rgb[:, :160]).save(tmp_path / "10.bmp")
    (tmp_path / "3.jpg").write_bytes(b"not a picture")
    truncated = tmp_path / "4.png"
    truncated.write_bytes((tmp_path / "2.png").read_bytes()[:100])
    with open_source(str(tmp_path), "pictures") as reader:
        assert (reader.width, reader.height, reader.num_frames_expected, reader.is_finite) == (320, 96, 4, True)
        pictures = list(reader)
        assert reader.num_corrupt == 2
    assert [(p.ordinal, p.width, p.height) for p in pictures] == [(1, 320, 96), (2, 160, 96)]
    assert [p.pts_s for p in pictures] == pytest.approx([0, 3 / 25])
    assert np.array_equal(Converter().to_bgr(pictures[0])[..., ::-1], rgb)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK", "I;16", "F"])
def test_pictures_of_every_mode_and_format_are_read(tmp_path: Path, mode: str, suffix: str) -> None:
    rgb = bars(320, 96)
    if mode in ("L", "1", "I;16", "F"):
        grey = (np.arange(320) // 160 * 255).astype(np.uint8)[None].repeat(96, axis=0)
        rgb = grey[..., None].repeat(3, axis=2)
        deep = {"I;16": grey.astype(np.uint16) * 257, "F": grey.astype(np.float32)}
        picture = Image.fromarray(deep[mode]) if mode in deep else Image.fromarray(grey).convert(mode)
    else:
        picture = Image.fromarray(rgb).convert(mode)
    path = tmp_path / f"a.{suffix}"
    try:
        picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    except OSError:
        pytest.skip(f"{suffix} cannot hold {mode}")
    with open_source(str(path), "pictures") as reader:
        found = Converter().to_bgr(next(reader))[..., ::-1]
    if mode == "P":
        # The web palette has steps of 51.
        assert np.abs(found.astype(int) - rgb).max() <= 51
    else:
        assert np.array_equal(found, rgb)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:24, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "a.jpg", exif=exif, quality=95)
    with open_source(str(tmp_path / "a.jpg"), "pictures") as reader:
        seen = Converter().to_bgr(next(reader))
    # EXIF orientation 6: rotate clockwise by 90 degrees.
    assert np.abs(seen.astype(int) - np.rot90(rgb, -1)).max() < 16


def test_a_folder_without_readable_pictures_raises(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no pictures any more"):
        open_source(str(tmp_path), "pictures")
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="holds no undamaged picture"):
        open_source(str(tmp_path), "pictures")


def packet(pts: int, wallclock_us: int | None) -> SimpleNamespace:
    """A packet with AVProducerReferenceTime: int64 wallclock in microseconds, int32 flags, padding."""
    data = struct.pack("=qii", wallclock_us, 24, 0) if wallclock_us is not None else b""
    return SimpleNamespace(
        pts=pts, has_sidedata=lambda kind: kind == "prft" and wallclock_us is not None, get_sidedata=lambda kind: data
    )


def test_capture_times_are_assigned_by_pts() -> None:
    clock = CaptureClock()
    clock.note(packet(0, 1_000_040))
    assert clock.of(0, 0.0) is None
    for pts, wallclock_us in ((3, 1_000_120), (1, 1_000_040), (2, 1_000_080)):
        clock.note(packet(pts, wallclock_us))
    assert [clock.of(pts, pts * 0.04) for pts in (1, 2, 3)] == [1_000_040_000, 1_000_080_000, 1_000_120_000]
    clock.note(packet(4, None))
    assert clock.of(4, 0.17) == 1_000_120_000 + 50_000_000
    assert clock.of(None, 0.18) == 1_000_120_000 + 60_000_000
