"""Whole jobs: the tracked masks of video files agree with the ground truth of a synthetic street."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from jsonschema import Draft202012Validator
from support.pipeline_runs import (
    ROOT,
    Ended,
    count_pictures,
    covered,
    end_of,
    frames_of,
    make_scene,
    read_results,
    run,
    running,
    with_sound,
)

from pipeline.contract.results import FrameResult, Instance
from pipeline.synthetic import Scene, SceneFrame, SceneObject

pytestmark = pytest.mark.timeout(300)  # the jobs take minutes on a busy machine

NUM_FRAMES = 50
LARGE_PX = 120
LONG_FRAMES = 12
"""an object that is found on this many frames must have kept its track id"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("main")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    """A street with large people and cars in the foreground."""
    scene = make_scene(folder / "silent.mp4", NUM_FRAMES, width=640, height=360, num_people=3, seed=10)
    with_sound(folder / "silent.mp4", folder / "street.mp4")
    return scene


@pytest.fixture(scope="module")
def job(scene: Scene, folder: Path) -> Ended:
    """The command at the top of the README, on a file."""
    return run("street.mp4", "--output", "out", folder=folder)


@pytest.fixture(scope="module")
def frames(job: Ended) -> list[FrameResult]:
    return frames_of(read_results(job.folder / "out" / "street.jsonl"))


def test_every_frame_has_one_result_in_order_and_the_end_is_last(job: Ended) -> None:
    assert job.code == 0
    results = read_results(job.folder / "out" / "street.jsonl")
    frames = frames_of(results)
    assert [frame.frame_seq for frame in frames] == list(range(1, NUM_FRAMES + 1)) == covered(results)
    assert [frame.pts_s for frame in frames] == pytest.approx([index / 25 for index in range(NUM_FRAMES)], abs=1e-3)
    assert {(frame.width, frame.height, frame.clock) for frame in frames} == {(640, 360, "file")}
    end = end_of(results)
    assert (end.reason, end.num_frames, end.num_gap_frames, end.num_corrupt) == ("finished", NUM_FRAMES, 0, 0)


def test_every_line_follows_the_schema(job: Ended) -> None:
    schema = Draft202012Validator(json.loads((ROOT / "docs" / "result.schema.json").read_text()))
    lines = (job.folder / "out" / "street.jsonl").read_text().splitlines()
    types = Counter(json.loads(line)["type"] for line in lines)
    assert {"frame", "event", "end"} <= types.keys()
    for line in lines:
        schema.validate(json.loads(line))


def test_tracks_agree_with_the_ground_truth(scene: Scene, frames: list[FrameResult]) -> None:
    asked, matched = Counter[int](), Counter[int]()
    ids: dict[int, Counter[int]] = {}
    for frame in frames:
        truth = scene.render(frame.frame_seq - 1)
        for thing in filter(is_clear, truth.objects):
            asked[thing.object_id] += 1
            instance = found_instance(frame, truth, thing)
            if instance is not None:
                assert instance.label == thing.label
                matched[thing.object_id] += 1
                if instance.track_id is not None:
                    ids.setdefault(thing.object_id, Counter())[instance.track_id] += 1
    assert len(asked) >= 3
    assert matched.total() >= 0.7 * asked.total(), (asked, matched)
    long = {object_id: seen for object_id, seen in ids.items() if seen.total() >= LONG_FRAMES}
    assert len(long) >= 3, ids
    for object_id, seen in long.items():
        assert seen.most_common(1)[0][1] >= 0.8 * seen.total(), (object_id, seen)
    dominant = [seen.most_common(1)[0][0] for seen in long.values()]
    assert len(set(dominant)) == len(dominant), long


def is_clear(thing: SceneObject) -> bool:
    """Whether the object is large, hardly occluded, and completely inside the picture."""
    x1, y1, x2, y2 = thing.box_xyxy
    return max(x2 - x1, y2 - y1) >= LARGE_PX and thing.visibility >= 0.9 and x1 > 0 and x2 < 640


def found_instance(frame: FrameResult, truth: SceneFrame, thing: SceneObject) -> Instance | None:
    """The instance whose mask has the highest IoU with the object's mask, if that is at least 0.5."""
    wanted = truth.mask(thing.object_id)

    def overlap(instance: Instance) -> float:
        assert instance.mask is not None
        mask = instance.mask.to_array()
        return float(np.count_nonzero(mask & wanted) / np.count_nonzero(mask | wanted))

    best = max(frame.instances, key=overlap, default=None)
    return best if best is not None and overlap(best) >= 0.5 else None


def test_the_video_shows_every_frame_and_keeps_the_sound(job: Ended, frames: list[FrameResult]) -> None:
    source, output = job.folder / "street.mp4", job.folder / "out" / "street.mp4"
    assert count_pictures(output) == NUM_FRAMES
    assert sound(output) == sound(source) != []
    frame = next(frame for frame in frames if any(i.track_id and i.mask for i in frame.instances))
    instance = next(i for i in frame.instances if i.track_id)
    before, after = picture(source, frame.frame_seq), picture(output, frame.frame_seq)
    assert before.shape == after.shape == (360, 640, 3)
    change = np.abs(after.astype(int) - before).mean(2)
    assert instance.mask is not None
    assert change[instance.mask.to_array()].mean() > 5 * np.median(change)


def sound(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def picture(path: Path, number: int) -> np.ndarray:
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0), start=1):
            if index == number:
                return frame.to_ndarray(format="rgb24")
    raise AssertionError(f"{path} has fewer than {number} pictures")


def test_the_summary_and_the_report_agree_with_the_results(job: Ended, frames: list[FrameResult]) -> None:
    summary = json.loads((job.folder / "out" / "summary.json").read_text())["streams"]["street"]
    assert (summary["reason"], summary["num_frames"], summary["gaps"]) == ("finished", NUM_FRAMES, {})
    assert summary["num_instances"] == sum(len(frame.instances) for frame in frames)
    assert summary["num_tracks"] == sum(summary["tracks"].values()) == len(confirmed(frames))
    assert job.out[0].startswith(f"street: {NUM_FRAMES} frames, {summary['num_tracks']} tracks")
    assert [line.split() for line in job.out[1:]] == [
        ["jsonl", "out/street.jsonl"], ["video", "out/street.mp4"], ["summary", "out/summary.json"],
    ]  # fmt: skip
    assert sorted(path.name for path in (job.folder / "out").iterdir()) == [
        "street.jsonl", "street.mp4", "summary.json",
    ]  # fmt: skip


def confirmed(frames: list[FrameResult]) -> set[int]:
    return {instance.track_id for frame in frames for instance in frame.instances if instance.track_id is not None}


def test_several_sources_at_once_each_with_the_options_of_all(scene: Scene, folder: Path) -> None:
    make_scene(folder / "short.mp4", 10, seed=4)
    pictures = folder / "pictures"
    pictures.mkdir()
    for index in range(6):
        av.VideoFrame.from_ndarray(scene.render(index).image, format="rgb24").to_image().save(pictures / f"{index}.png")
    ended = run(
        "street.mp4", "short.mp4", "pictures", "--output", "several", "--save", "jsonl",
        "--stride", "2", "--max-frames", "12", "--classes", "person", folder=folder,
    )  # fmt: skip
    assert ended.code == 0
    assert sorted(path.name for path in (folder / "several").iterdir()) == [
        "pictures.jsonl", "short.jsonl", "street.jsonl", "summary.json",
    ]  # fmt: skip
    for name, count in {"street": 12, "short": 5, "pictures": 3}.items():
        results = read_results(folder / "several" / f"{name}.jsonl")
        assert covered(results) == list(range(1, count + 1))
        assert end_of(results).reason == "finished"
        assert {instance.label for frame in frames_of(results) for instance in frame.instances} == {"person"}
    times = [frame.pts_s for frame in frames_of(read_results(folder / "several" / "short.jsonl"))]
    assert times == pytest.approx([index * 2 / 25 for index in range(5)], abs=1e-3)


# -- memory -----------------------------------------------------------------------------------------------------------

MEMORY_FRAMES = 60
MIB = 1024 * 1024
MEMORY_GROWTH_MIB = 60
"""allowed growth of the 1.6 GiB of a job for a file of ten times the length; keeping its 540 frames would take 100"""


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("saved", ["jsonl", "jsonl,video"])
def test_memory_is_flat_in_the_length_of_the_file(tmp_path: Path, saved: str) -> None:
    make_scene(tmp_path / "short.mp4", MEMORY_FRAMES)
    repeat(tmp_path / "short.mp4", tmp_path / "long.mp4", 10)
    peaks = {name: peak_rss_mib(tmp_path, f"{name}.mp4", saved) for name in ("short", "long")}
    assert len(frames_of(read_results(tmp_path / "out" / "long.jsonl"))) == 10 * MEMORY_FRAMES
    print(f"peak RSS of all processes, {saved}, MiB: {peaks}")
    assert peaks["long"] <= peaks["short"] + MEMORY_GROWTH_MIB, peaks


def repeat(source: Path, target: Path, count: int) -> None:
    """Write the packets of `source` `count` times, one copy after the other, without encoding them again."""
    with av.open(str(target), "w") as container:
        stream = None
        for turn in range(count):
            with av.open(str(source)) as given:
                video = given.streams.video[0]
                stream = stream or container.add_stream_from_template(video)
                assert video.duration is not None
                for packet in given.demux(video):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts += turn * video.duration
                        packet.dts += turn * video.duration
                        packet.stream = stream
                        container.mux(packet)


def peak_rss_mib(folder: Path, name: str, saved: str) -> float:
    """The maximum over time of the summed resident memory of all processes; shared pages count for each process."""
    peak = 0
    with running(name, "--save", saved, "--output", "out", folder=folder) as job:
        while job.process.poll() is None:
            total = 0
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += process.memory_info().rss
            peak = max(peak, total)
            time.sleep(0.2)
        assert job.wait() == 0
    return peak / MIB
