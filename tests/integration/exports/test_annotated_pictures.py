"""A folder of unrelated pictures: one message and one annotated picture for each, without tracking."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.pipeline_runs import Ended, count_pictures, end_of, frames_of, make_scene, read_results, run

from pipeline.contract.results import EventResult

SIZES = {"a photo.jpg": (640, 360), "b.png": (320, 180), "c.webp": (480, 270), "d.bmp": (360, 640)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a folder with four pictures of different sizes and formats and a file that is not a picture."""
    folder = tmp_path_factory.mktemp("pictures")
    make_scene(folder / "street.mp4", 40, width=640, height=360, num_people=3, seed=10)
    with av.open(str(folder / "street.mp4")) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)][::10]
    (folder / "photos").mkdir()
    for picture, (name, size) in zip(pictures, SIZES.items(), strict=True):
        picture.resize(size).save(folder / "photos" / name, quality=95)
    (folder / "photos" / "broken.jpg").write_bytes(b"nothing")
    return folder


@pytest.fixture(scope="module")
def job(folder: Path) -> Ended:
    return run("photos", "--output", "out", "--conf", "0.6", folder=folder)


def pixels(path: Path) -> NDArray[np.int_]:
    return np.asarray(Image.open(path).convert("RGB"), int)


def test_every_picture_has_a_message_with_its_file_name(job: Ended) -> None:
    assert job.code == 0
    frames = frames_of(read_results(job.folder / "out" / "photos.jsonl"))
    assert [frame.source_name for frame in frames] == list(SIZES)
    assert [(frame.width, frame.height) for frame in frames] == list(SIZES.values())


def test_nothing_is_tracked(job: Ended) -> None:
    results = read_results(job.folder / "out" / "photos.jsonl")
    instances = [instance for frame in frames_of(results) for instance in frame.instances]
    assert len(instances) >= 4
    assert {(one.track_id, one.track_uid, one.state, one.age_frames) for one in instances} == {
        (None, None, "untracked", 1)
    }
    assert min(one.score for one in instances) >= 0.6, "scores down to half of --conf are for tracks only"
    assert not any(isinstance(message, EventResult) for message in results)
    assert end_of(results).num_tracks == 0


def test_every_annotated_picture_has_the_name_and_size_of_its_source(job: Ended) -> None:
    out = job.folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["photos-annotated", "photos.jsonl", "summary.json"]
    assert sorted(path.name for path in (out / "photos-annotated").iterdir()) == sorted(SIZES)
    for frame in frames_of(read_results(out / "photos.jsonl")):
        name = str(frame.source_name)
        before, after = pixels(job.folder / "photos" / name), pixels(out / "photos-annotated" / name)
        assert after.shape == before.shape
        with Image.open(out / "photos-annotated" / name) as written, Image.open(job.folder / "photos" / name) as given:
            assert written.format == given.format
        changed = np.abs(after - before).max(axis=2) > 60
        assert changed.any() == bool(frame.instances)
        if frame.instances:
            colourful = np.ptp(after[changed], axis=1) > 60
            assert colourful.mean() > 0.3, "instances are grey"


def test_a_file_that_cannot_be_read_is_counted_and_named(job: Ended) -> None:
    end = end_of(read_results(job.folder / "out" / "photos.jsonl"))
    assert (end.reason, end.num_frames, end.num_corrupt) == ("finished", 4, 1)
    assert end.detail == "1 of 5 picture files cannot be read: broken.jpg (not in a known picture format)"
    assert sum("broken.jpg" in line for line in job.err) == 1
    summary = json.loads((job.folder / "out" / "summary.json").read_text())
    assert "broken.jpg" in summary["streams"]["photos"]["detail"]


def test_with_track_the_pictures_are_one_video(folder: Path) -> None:
    ended = run("photos", "--output", "film", "--track", folder=folder)
    assert ended.code == 0
    out = folder / "film"
    assert sorted(path.name for path in out.iterdir()) == ["photos.jsonl", "photos.mp4", "summary.json"]
    assert count_pictures(out / "photos.mp4") == len(SIZES)
    states = {one.state for frame in frames_of(read_results(out / "photos.jsonl")) for one in frame.instances}
    assert "untracked" not in states


@pytest.mark.parametrize("source", ["photos-annotated", "photos-annotated/*", "photos-annotated/b.png"])
def test_the_sources_are_never_replaced(folder: Path, source: str) -> None:
    (folder / "photos").rename(folder / "photos-annotated")
    try:
        before = {path: path.read_bytes() for path in (folder / "photos-annotated").iterdir()}
        ended = run(source, "--stream-id", "photos", "--output", ".", "--overwrite", folder=folder)
        assert ended.code == 2
        assert "is a source that a result would replace" in "\n".join(ended.err)
        assert {path: path.read_bytes() for path in (folder / "photos-annotated").iterdir()} == before
    finally:
        (folder / "photos-annotated").rename(folder / "photos")
