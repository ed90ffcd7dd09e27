"""Picture files with several frames: animation frames, TIFF pages, and previews, which are ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.video_files import bars

from pipeline.source import Converter, Reader, open_source, resolve_sources

LEVELS = [20, 90, 160, 230]
DURATIONS_MS = [40, 200, 80, 500]


def frames(size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    return [Image.new("RGB", size, (level, level, level)) for level in LEVELS]


def levels(reader: Reader) -> list[int]:
    converter = Converter()
    return [round(float(converter.to_bgr(picture).mean())) for picture in reader]


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.webp", {"lossless": True}), ("a.png", {}), ("a.apng.png", {"loop": 0})],
    ids=["WebP", "PNG", "looped PNG"],
)
def test_an_animation_yields_every_frame_at_its_own_time(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    path = tmp_path / name
    first, *others = frames()
    first.save(path, save_all=True, append_images=others, duration=DURATIONS_MS, **options)
    [source] = resolve_sources([str(path)])
    assert source.kind == "animation"
    with open_source(source.source, source.kind) as reader:
        assert (reader.num_frames_expected, reader.fps, reader.is_finite) == (4, 25.0, True)
        pictures = list(reader)
    with open_source(source.source, source.kind) as reader:
        assert levels(reader) == LEVELS
    assert [picture.pts_s for picture in pictures] == pytest.approx([0.0, 0.04, 0.24, 0.32])
    assert {picture.source_name for picture in pictures} == {None}


def test_a_gif_yields_every_frame_at_its_own_time(tmp_path: Path) -> None:
    first, *others = frames()
    first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=DURATIONS_MS)
    [source] = resolve_sources([str(tmp_path / "a.gif")])
    with open_source(source.source, source.kind) as reader:
        assert [picture.pts_s for picture in reader] == pytest.approx([0.0, 0.04, 0.24, 0.32])
    with open_source(source.source, source.kind) as reader:
        assert levels(reader) == LEVELS


def test_the_default_image_of_an_animated_png_is_not_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (64, 48), "red").save(
        path, save_all=True, append_images=frames(), duration=DURATIONS_MS, default_image=True
    )
    with open_source(str(path), "animation") as reader:
        assert levels(reader) == LEVELS


def test_a_frame_without_a_duration_is_shown_for_a_tenth_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    first, *others = frames()
    first.save(path, save_all=True, append_images=others)
    with open_source(str(path), "animation") as reader:
        assert [picture.pts_s for picture in reader] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_truncated_animation_yields_the_frames_before_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = np.random.default_rng(0).integers(0, 255, (4, 48, 64, 3), np.uint8)
    first, *others = [Image.fromarray(picture) for picture in noise]
    first.save(path, save_all=True, append_images=others, duration=40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 5 // 8])
    with open_source(str(path), "animation") as reader:
        pictures = list(reader)
        assert (len(pictures), reader.num_corrupt) == (2, 1)


def test_every_page_of_a_tiff_is_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    first, *others = frames()
    first.save(path, save_all=True, append_images=others)
    [source] = resolve_sources([str(path)])
    assert source.kind == "pictures"
    with open_source(source.source, source.kind) as reader:
        names = [picture.source_name for picture in reader]
    with open_source(source.source, source.kind) as reader:
        assert levels(reader) == LEVELS
    assert names == ["scan#1.tif", "scan#2.tif", "scan#3.tif", "scan#4.tif"]


def test_a_reduced_copy_in_a_tiff_is_not_a_page(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    reduced = Image.new("RGB", (16, 12), "red")
    reduced.encoderinfo = {"tiffinfo": {254: 1}}
    frames()[0].save(path, save_all=True, append_images=[reduced])
    with open_source(str(path), "pictures") as reader:
        assert [(picture.width, picture.source_name) for picture in reader] == [(64, "scan.tif")]


def test_the_preview_in_a_camera_jpeg_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    frames()[1].save(path, format="MPO", save_all=True, append_images=[Image.new("RGB", (16, 12))])
    [source] = resolve_sources([str(path)])
    with open_source(source.source, source.kind) as reader:
        assert [(picture.width, picture.source_name) for picture in reader] == [(64, "a.jpg")]


def test_an_animation_among_pictures_yields_every_frame(tmp_path: Path) -> None:
    first, *others = frames()
    first.save(tmp_path / "b.webp", save_all=True, append_images=others, duration=100, lossless=True)
    Image.fromarray(bars(64, 48)).save(tmp_path / "a.png")
    Image.fromarray(bars(64, 48)).save(tmp_path / "c.png")
    with open_source(str(tmp_path), "pictures") as reader:
        pictures = list(reader)
    expected = ["a.png", "b#1.webp", "b#2.webp", "b#3.webp", "b#4.webp", "c.png"]
    assert [picture.source_name for picture in pictures] == expected
    assert [picture.pts_s for picture in pictures] == pytest.approx([k / 25 for k in range(6)])


def test_source_names_are_relative_to_the_common_folder(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        Image.fromarray(bars(64, 48)).save(tmp_path / folder / "1.png")
    with open_source(str(tmp_path / "*" / "1.png"), "pictures") as reader:
        assert [picture.source_name for picture in reader] == ["x/1.png", "y/1.png"]


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    Image.fromarray(bars(64, 48)).save(tmp_path / "a.png")
    for number in range(7):
        (tmp_path / f"broken{number}.jpg").write_bytes(b"nothing")
    with open_source(str(tmp_path), "pictures") as reader:
        assert len(list(reader)) == 1
        text = reader.unreadable
    assert text.startswith("7 of 8 picture files cannot be read: broken0.jpg (not in a known picture format), ")
    assert "broken4.jpg" in text
    assert "broken5.jpg" not in text
    assert text.endswith(", and 2 more")
