"""`resolve_sources`, and the numbers that `Selection` gives to pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.contract.config import STREAM_ID
from pipeline.errors import UsageError
from pipeline.source import Selection, resolve_sources


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")


def resolved_in(folder: Path, *arguments: str) -> list[tuple[str, str, str]]:
    """Return (source relative to the folder, kind, stream id) of each resolved source."""
    resolved = resolve_sources(arguments)
    return [(r.source.replace(f"{folder}/", ""), r.kind, r.default_stream_id) for r in resolved]


def test_a_folder_of_videos_is_one_stream_per_video_in_natural_order(tmp_path: Path) -> None:
    touch(tmp_path / "clips", "Cam10.MP4", "cam9.mkv", "notes.txt", ".hidden.mp4")
    assert resolved_in(tmp_path, str(tmp_path / "clips")) == [
        ("clips/cam9.mkv", "file", "cam9"),
        ("clips/Cam10.MP4", "file", "Cam10"),
    ]


def test_a_folder_or_a_glob_of_pictures_is_one_stream(tmp_path: Path) -> None:
    touch(tmp_path / "walk", "1.jpg", "2.JPEG", "thumbs.db")
    assert resolved_in(tmp_path, f"{tmp_path}/walk", f"{tmp_path}/walk/*.jpg", f"{tmp_path}/walk/2.JPEG") == [
        ("walk", "pictures", "walk"),
        ("walk/*.jpg", "pictures", "walk-2"),
        ("walk/2.JPEG", "pictures", "2"),
    ]


def test_a_glob_of_videos_and_a_name_that_looks_like_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].mp4", "b.mp4", "c.avi")
    assert resolved_in(tmp_path, f"{tmp_path}/*.mp4") == [("a[1].mp4", "file", "a_1"), ("b.mp4", "file", "b")]
    assert resolved_in(tmp_path, f"{tmp_path}/a[1].mp4") == [("a[1].mp4", "file", "a_1")]


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ("rtsp://host/stream", "live"),
        ("RTSPS://host/stream", "live"),
        ("http://host/clip.mp4?token=1", "file"),
        ("https://host/clip.WEBM", "file"),
        ("https://host/live/index.m3u8", "live"),
        ("http://host/video.mjpg", "live"),
        ("http://host:8080/", "live"),
        ("webcam:0", "live"),
        ("/dev/video3", "live"),
        ("demo", "file"),
    ],
)
def test_kinds_of_urls_and_cameras(argument: str, kind: str) -> None:
    [resolved] = resolve_sources([argument])
    assert (resolved.source, resolved.kind) == (argument, kind)


def test_a_number_is_a_webcam_unless_a_file_has_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "7", "a.mp4")
    found = [(resolved.source, resolved.kind) for resolved in resolve_sources(["0", "12", "7"])]
    assert found == [("webcam:0", "live"), ("webcam:12", "live"), ("7/a.mp4", "file")]


def test_a_tilde_without_a_user_of_that_name_is_not_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"source '~clip\.mp4' does not exist"):
        resolve_sources(["~clip.mp4"])
    (tmp_path / "~clip.mp4").touch()
    assert [resolved.source for resolved in resolve_sources(["~clip.mp4"])] == ["~clip.mp4"]


def test_ids_are_valid_and_unique(tmp_path: Path) -> None:
    names = [
        "clip.mp4",
        "clip.mkv",
        "CLIP.avi",
        "Übung 1.mp4",
        "視頻.mp4",
        "-x.mp4",
        "n" * 90 + ".mp4",
        "n" * 90 + ".mkv",
    ]
    touch(tmp_path, *names)
    arguments = [f"{tmp_path}/{name}" for name in names]
    ids = [r.default_stream_id for r in resolve_sources([*arguments, "webcam:0", "rtsp://h/a", "demo"])]
    assert ids == [
        *("clip", "clip-2", "CLIP-3", "Ubung_1", "video", "x", "n" * 64, "n" * 62 + "-2"),
        *("cam1", "cam2", "demo"),
    ]
    assert all(STREAM_ID.fullmatch(stream_id) for stream_id in ids)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("{}/nothing.mp4", "does not exist"),
        ("{}/*.mp4", "holds no video and no picture"),
        ("{}/empty", "holds no video and no picture"),
        ("{}/mixed", "1 pictures and 1 videos"),
        ("/dev/null", "special file"),
        ("srt://user:pw@host/x", "expected rtsp, rtsps, http or https, got srt"),
        ("rtsp:///stream", "no host"),
        ("rtsp://joe:pw@[half/x", "no host"),
    ],
)
def test_an_invalid_source_gives_one_error_line(tmp_path: Path, argument: str, expected: str) -> None:
    touch(tmp_path / "empty", "readme.txt")
    touch(tmp_path / "mixed", "a.jpg", "a.mp4")
    with pytest.raises(UsageError) as caught:
        resolve_sources(["demo", argument.format(tmp_path)])
    text = str(caught.value)
    assert expected in text
    assert "\n" not in text
    assert "pw" not in text


@pytest.mark.parametrize(
    ("options", "pts_s", "expected"),
    [
        pytest.param({}, [0, 0, 5, 4], [1, 2, 3, 4], id="all"),
        pytest.param({"stride": 3}, range(7), [1, None, None, 2, None, None, 3], id="stride"),
        pytest.param({"max_frames": 2}, range(4), [1, 2, None, None], id="max_frames"),
        pytest.param({"max_fps": 10}, [9 + n * 0.04 for n in range(6)], [1, None, None, 2, None, 3], id="25 to 10 fps"),
        pytest.param({"max_fps": 30}, [0, 0.033, 0.067, 0.1, 0.133], [1, 2, 3, 4, 5], id="times rounded to 1 ms"),
        pytest.param({"max_fps": 1}, [0, 9, 9.5, 10], [1, 2, None, 3], id="gap"),
        pytest.param(
            {"stride": 2, "max_fps": 1}, [n / 2 for n in range(6)], [1, None, 2, None, 3, None], id="stride and max_fps"
        ),
    ],
)
def test_selection(options: dict[str, int], pts_s: list[float], expected: list[int | None]) -> None:
    selection = Selection(**options)
    assert [selection.number(pts) for pts in pts_s] == expected
    assert selection.done == ("max_frames" in options)


def test_pipeline_source_does_not_import_torch() -> None:
    check = "import sys, pipeline.source; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
