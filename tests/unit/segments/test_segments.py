"""The segment store, fed with files that the tests encode: completeness, deletion, limits, and errors."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from support.video_files import counting_frames, write_video

from pipeline.errors import OutputError
from pipeline.segments import SegmentReader, SegmentWriter, StoredPicture, segment_folders
from pipeline.segments.format import finished_segments
from pipeline.source import Reader, open_source

GOP = 10
H264 = {"preset": "ultrafast", "g": str(GOP), "sc_threshold": "0"}


def clip(path: Path, count: int = 60, **options: Any) -> Path:
    defaults = {} if "codec" in options else H264
    return write_video(path, counting_frames(count), options={**defaults, **options.pop("options", {})}, **options)


def keep(writer: SegmentWriter, source: Path, epoch: int = 1) -> list[tuple[float, NDArray[np.uint8]]]:
    """Store a source as a camera's decoder does. Returns pts_s and luma of each decoded picture."""
    with open_source(str(source), "live", on_packet=writer.take) as reader:
        writer.begin(epoch)
        seen = look(reader)
    writer.end()
    return seen


def look(reader: Reader) -> list[tuple[float, NDArray[np.uint8]]]:
    return [(picture.pts_s, luma(picture.frame)) for picture in reader]


def luma(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(format="gray"), np.uint8)


def read_all(reader: SegmentReader) -> list[StoredPicture]:
    return list(iter(lambda: reader.read(at_end=True), None))


def times(stored: list[StoredPicture]) -> list[tuple[int, float]]:
    return [(one.epoch, one.picture.pts_s) for one in stored]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("clip.mkv", {}, id="H.264 in order"),
        pytest.param("clip.mkv", {"options": {"bf": "3", "preset": "veryfast"}}, id="H.264 with B pictures"),
        pytest.param(
            "clip.mkv", {"options": {"bf": "3", "preset": "veryfast", "x264-params": "open-gop=1"}}, id="open GOP"
        ),
        pytest.param("clip.ts", {"time_base": Fraction(1, 90_000), "pts": [k * k * 7 for k in range(60)]}, id="VFR"),
        pytest.param("clip.h264", {}, id="no container, no times"),
        pytest.param("clip.avi", {"codec": "mjpeg", "options": {"strict": "unofficial"}}, id="MJPEG"),
        pytest.param("clip.webm", {"codec": "libvpx", "options": {"deadline": "realtime", "g": "10"}}, id="VP8"),
    ],
)
def test_stored_pictures_equal_the_decoded_ones(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    source = clip(tmp_path / name, **options)
    seen = keep(SegmentWriter(tmp_path, segment_s=0.0), source)
    assert len(seen) == 60
    assert len(finished_segments(tmp_path)) > 1
    stored = read_all(SegmentReader(tmp_path))
    assert times(stored) == [(1, pts_s) for pts_s, _ in seen]
    for one, (_, picture) in zip(stored, seen, strict=True):
        np.testing.assert_array_equal(luma(one.picture.frame), picture)


def test_segments_begin_at_key_frames_and_are_deleted_when_read(tmp_path: Path) -> None:
    keep(SegmentWriter(tmp_path, segment_s=0.0), clip(tmp_path / "clip.mkv", 3 * GOP), epoch=4)
    assert [(epoch, number) for epoch, number, _ in finished_segments(tmp_path)] == [(4, 1), (4, 2), (4, 3)]
    reader = SegmentReader(tmp_path)
    assert reader.read() is not None
    assert [number for _, number, _ in finished_segments(tmp_path)] == [2, 3]
    assert len(read_all(reader)) == 3 * GOP - 1
    assert finished_segments(tmp_path) == []


def test_a_key_frame_ends_a_segment_only_after_segment_s(tmp_path: Path) -> None:
    keep(SegmentWriter(tmp_path), clip(tmp_path / "clip.mkv"))  # stored much faster than in real time
    assert len(finished_segments(tmp_path)) == 1


def test_an_unfinished_segment_is_not_read(tmp_path: Path) -> None:
    writer, reader = SegmentWriter(tmp_path, segment_s=0.0), SegmentReader(tmp_path)
    with open_source(str(clip(tmp_path / "clip.mkv", 2 * GOP)), "live", on_packet=writer.take) as source:
        assert reader.read() is None
        writer.begin(1)
        assert reader.read() is None
        look(source)
        got = [one.picture.pts_s for one in iter(reader.read, None)]
    assert len(got) == GOP
    writer.end()
    assert len(read_all(reader)) == GOP


def test_epochs_follow_each_other(tmp_path: Path) -> None:
    writer, source = SegmentWriter(tmp_path, segment_s=0.0), clip(tmp_path / "clip.mkv", 25, options={"bf": "3"})
    times_s = [pts_s for pts_s, _ in keep(writer, source, epoch=1)]
    keep(writer, source, epoch=2)
    assert times(read_all(SegmentReader(tmp_path))) == [(epoch, pts_s) for epoch in (1, 2) for pts_s in times_s]


def test_the_oldest_segments_are_deleted_beyond_max_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(5).integers(0, 255, (120, 96, 128), np.uint8)
    frames = [av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p") for picture in noise]
    source = write_video(tmp_path / "clip.mkv", frames, options={**H264, "qp": "20"})
    max_bytes = source.stat().st_size // 3
    highest = 0

    class Watching(SegmentWriter):
        def take(self, packet: Any) -> None:
            nonlocal highest
            super().take(packet)
            highest = max(highest, sum(path.stat().st_size for path in tmp_path.glob("0*")))

    seen = keep(Watching(tmp_path, max_bytes=max_bytes, segment_s=0.0), source)
    stored = read_all(SegmentReader(tmp_path))
    assert max_bytes // 2 < highest <= max_bytes
    assert [one.picture.pts_s for one in stored] == [pts_s for pts_s, _ in seen][-len(stored) :]
    assert 20 < len(stored) < 60


def test_without_key_frames_a_segment_ends_at_its_size_limit(tmp_path: Path) -> None:
    source = clip(tmp_path / "clip.mkv", 60, options={"g": "1000"})
    seen = keep(SegmentWriter(tmp_path, max_bytes=source.stat().st_size * 2), source)
    assert len(finished_segments(tmp_path)) > 2
    stored = read_all(SegmentReader(tmp_path))
    assert [one.picture.pts_s for one in stored] == [pts_s for pts_s, _ in seen]
    np.testing.assert_array_equal(luma(stored[-1].picture.frame), seen[-1][1])


def test_a_size_change_within_a_connection_loses_no_pictures(tmp_path: Path) -> None:
    """The second size has one key frame, and its pictures span several segments."""
    parts = []
    for size, count in (((64, 48), 20), ((128, 96), 60)):
        part = clip_of_size(tmp_path / f"{size[0]}.ts", size, count)
        parts.append(part.read_bytes())
        part.unlink()
    source = tmp_path / "clip.ts"
    source.write_bytes(b"".join(parts))
    seen = keep(SegmentWriter(tmp_path, max_bytes=8 * len(parts[1]) // 3, segment_s=0.0), source)
    assert {picture.shape for _, picture in seen} == {(48, 64), (96, 128)}
    segments = finished_segments(tmp_path)
    assert len(segments) >= 4
    stored = read_all(SegmentReader(tmp_path))
    assert times(stored) == [(1, pts_s) for pts_s, _ in seen]
    for one, (_, picture) in zip(stored, seen, strict=True):
        np.testing.assert_array_equal(luma(one.picture.frame), picture)


def clip_of_size(path: Path, size: tuple[int, int], count: int) -> Path:
    noise = np.random.default_rng(size[0]).integers(0, 255, (count, size[1], size[0]), np.uint8)
    frames = [av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p") for picture in noise]
    return write_video(path, frames, options={**H264, "g": "1000", "qp": "30"})


def test_after_a_lost_segment_pictures_keep_their_times(tmp_path: Path) -> None:
    seen = keep(SegmentWriter(tmp_path, segment_s=0.0), clip(tmp_path / "clip.mkv", 4 * GOP))
    finished_segments(tmp_path)[1][2].unlink()
    stored = read_all(SegmentReader(tmp_path))
    wanted = seen[:GOP] + seen[2 * GOP :]
    assert [one.picture.pts_s for one in stored] == [pts_s for pts_s, _ in wanted]
    for one, (_, picture) in zip(stored, wanted, strict=True):
        np.testing.assert_array_equal(luma(one.picture.frame), picture)


@pytest.mark.parametrize("left", ["a part of a packet", "a part of the header", "nothing"])
def test_the_segment_of_a_killed_decoder_is_read_to_its_last_complete_packet(tmp_path: Path, left: str) -> None:
    writer, source = SegmentWriter(tmp_path, segment_s=0.0), clip(tmp_path / "clip.mkv", 2 * GOP)
    seen = keep(writer, source)
    last = finished_segments(tmp_path)[-1][2]
    content = last.read_bytes()
    size = {"a part of a packet": len(content) - 3, "a part of the header": 20, "nothing": 0}[left]
    last.rename(last.with_name(last.name + ".part")).write_bytes(content[:size])

    keep(SegmentWriter(tmp_path, segment_s=0.0), source, epoch=2)
    stored = read_all(SegmentReader(tmp_path))
    whole = 2 * GOP - 1 if left == "a part of a packet" else GOP
    assert times(stored)[:whole] == [(1, pts_s) for pts_s, _ in seen[:whole]]
    assert times(stored)[whole:] == [(2, pts_s) for pts_s, _ in seen]
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "reader.lock"]


def test_damage_in_a_segment_affects_only_its_own_pictures(tmp_path: Path) -> None:
    seen = keep(SegmentWriter(tmp_path, segment_s=0.0), clip(tmp_path / "clip.mkv", 4 * GOP))
    damaged = finished_segments(tmp_path)[1][2]
    content = bytearray(damaged.read_bytes())
    content[200:600] = np.random.default_rng(2).bytes(400)
    damaged.write_bytes(content)
    got = [one.picture.pts_s for one in read_all(SegmentReader(tmp_path))]
    times_s = [pts_s for pts_s, _ in seen]
    assert set(times_s[:GOP] + times_s[2 * GOP :]) <= set(got)


def test_a_store_that_cannot_be_written_does_not_stop_decoding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer, source = SegmentWriter(tmp_path / "gone", segment_s=0.0), clip(tmp_path / "clip.mkv", 2 * GOP)
    with caplog.at_level(logging.WARNING):
        for epoch in (1, 2):
            assert len(keep(writer, source, epoch)) == 2 * GOP
    [record] = caplog.records
    assert "No such file or directory" in record.getMessage()


def test_a_full_disk_does_not_stop_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "000001-00001.segment.part").symlink_to(full)
    writer = SegmentWriter(tmp_path, segment_s=0.0)
    monkeypatch.setattr(writer, "_adopt", lambda: None)
    assert len(keep(writer, clip(tmp_path / "clip.mkv", 2 * GOP))) == 2 * GOP
    assert "No space left on device" in caplog.text
    assert SegmentReader(tmp_path).read(at_end=True) is None
    assert sorted(os.listdir(tmp_path)) == ["clip.mkv", "reader.lock"]


# -- folders ----------------------------------------------------------------------------------------------------------


def test_folders_are_private_and_removed_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), segment_folders(tmp_path, ["cam1", "cam2"]) as folders:  # noqa: PT012
        assert [path.name.startswith(".") for path in folders.values()] == [True, True]
        assert [path.stat().st_mode & 0o777 for path in folders.values()] == [0o700, 0o700]
        (folders["cam1"] / "000001-00001.segment").write_bytes(b"x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_only_the_folders_of_a_killed_job_are_removed_by_the_next_job(tmp_path: Path) -> None:
    code = f"""
import os, pathlib
from pipeline.segments import segment_folders
with segment_folders(pathlib.Path({str(tmp_path)!r}), ["cam9"]) as folders:
    (folders["cam9"] / "000001-00001.segment").write_bytes(b"x")
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    [left] = tmp_path.iterdir()
    (tmp_path / "cam9.jsonl").write_bytes(b"")
    with segment_folders(tmp_path, ["cam1"]) as first, segment_folders(tmp_path, ["cam2"]) as second:
        assert not left.exists()
        assert first["cam1"].is_dir()
        assert second["cam2"].is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["cam9.jsonl"]


def test_a_folder_has_one_reader(tmp_path: Path) -> None:
    first = SegmentReader(tmp_path)
    with pytest.raises(OutputError, match="another sink"):
        SegmentReader(tmp_path)
    first.close()
    SegmentReader(tmp_path).close()
    with pytest.raises(OutputError, match="not on this host"):
        SegmentReader(tmp_path / "elsewhere")


def test_an_output_that_cannot_be_written_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pipeline.segments.folder.tempfile.mkdtemp", refuse)
    with pytest.raises(OutputError, match="permission denied; give another --output"), segment_folders(tmp_path, ["a"]):
        pass
