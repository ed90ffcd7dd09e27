"""The annotated video of a camera, from a real RTSP server to the MP4: every result is drawn on its own picture."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from support.bus_parts import stream_config
from support.pipeline_runs import Running, frames_of, read_results, read_results_so_far, running
from support.redis_server import RedisServer
from support.rtsp_server import RtspServer
from support.video_files import write_video

from pipeline.bus import Bus
from pipeline.contract.config import ExportName, JobConfig
from pipeline.contract.results import FrameResult
from pipeline.job.build import build_job
from pipeline.segments import SegmentReader, SegmentWriter
from pipeline.source import open_source
from workers.job import with_segment_folders

FPS, NUM_PICTURES = 25, 200
WIDTH, HEIGHT, BLOCK, BITS = 192, 96, 16, 8
STOP_TIMEOUT_S = 30.0

RtspServers = Callable[..., RtspServer]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a video whose pictures show their number as black and white blocks along the top."""
    frames = []
    for number in range(NUM_PICTURES):
        picture = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
        for bit in range(BITS):
            picture[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 16
        frames.append(av.VideoFrame.from_ndarray(picture, format="bgr24").reformat(format="yuv420p"))
    return write_video(tmp_path_factory.mktemp("live") / "clip.mp4", frames, rate=FPS)


def number_on(picture: NDArray[np.uint8]) -> int:
    blocks = [picture[4:12, bit * BLOCK + 4 : (bit + 1) * BLOCK - 4].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, mean in enumerate(blocks) if mean > 125)


def shown(path: Path) -> list[tuple[float, int]]:
    """Decode a video and return time and number of each picture. Fails if decoding reports an error."""
    with av.open(str(path)) as container:
        assert not container.streams.audio
        return [(float(frame.time or 0.0), number_on(frame.to_ndarray(format="gray"))) for frame in container.decode()]


def first_number(frame: FrameResult, number: int) -> int:
    """Return the number of a connection's picture at pts_s = 0, computed from any of its frames."""
    return (number - round(frame.pts_s * FPS)) % NUM_PICTURES


def job_of(camera: RtspServer, folder: Path) -> AbstractContextManager[Running]:
    return running(camera.url, "--stream-id", "cam", "--save", "jsonl,video", "--output", "out", folder=folder)


def num_frames(folder: Path, epoch: int = 1) -> int:
    results = read_results_so_far(folder / "out" / "cam.jsonl")
    return sum(frame.stream_epoch == epoch for frame in frames_of(results))


def finish(job: Running, folder: Path) -> tuple[list[FrameResult], list[tuple[float, int]]]:
    """Press Ctrl-C. Return the frame messages and the pictures of the video. Fails if another file remains."""
    job.interrupt()
    assert job.wait(STOP_TIMEOUT_S) == 130
    assert sorted(os.listdir(folder / "out")) == ["cam.jsonl", "cam.mp4", "summary.json"]
    return frames_of(read_results(folder / "out" / "cam.jsonl")), shown(folder / "out" / "cam.mp4")


def test_stored_pictures_of_a_real_camera_keep_their_times(
    clip: Path, rtsp_server: RtspServers, tmp_path: Path
) -> None:
    camera = rtsp_server(cam=clip)
    writer = SegmentWriter(tmp_path, segment_s=1.0)
    seen = []
    with open_source(camera.url, "live", on_packet=writer.take) as reader:
        writer.begin(3)
        for picture in reader:
            seen.append((3, picture.pts_s, number_on(picture.frame.to_ndarray(format="gray"))))
            if len(seen) == 3 * FPS:
                break
    writer.end()
    store = SegmentReader(tmp_path)
    stored = list(iter(lambda: store.read(at_end=True), None))
    assert [
        (one.epoch, one.picture.pts_s, number_on(one.picture.frame.to_ndarray(format="gray"))) for one in stored
    ] == seen


def test_the_video_shows_the_picture_of_every_result_in_real_time(
    clip: Path, rtsp_server: RtspServers, tmp_path: Path
) -> None:
    """The connection is lost twice: the camera is restarted, and the decoder is killed."""
    camera = rtsp_server(cam=clip)
    with job_of(camera, tmp_path) as job:
        job.until(lambda: num_frames(tmp_path) > 8)
        (folder,) = (tmp_path / "out").glob(".*")
        assert (folder.stat().st_mode & 0o777, any(folder.glob("*.segment*"))) == (0o700, True)
        camera.restart()
        job.until(lambda: num_frames(tmp_path, epoch=2) > 4)
        decoder = job.worker("decode")
        assert decoder is not None
        decoder.kill()
        job.until(lambda: num_frames(tmp_path, epoch=3) > 4)
        frames, pictures = finish(job, tmp_path)
    assert len(pictures) == len(frames)
    assert "their pictures were no longer stored" not in job.output
    assert pictures[0][0] == pytest.approx(0.0, abs=0.001)
    matched = list(zip(frames, pictures, strict=True))
    for epoch in (1, 2, 3):
        of_epoch = [(frame, picture) for frame, picture in matched if frame.stream_epoch == epoch]
        assert len({first_number(frame, number) for frame, (_, number) in of_epoch}) == 1
        first, (begin_s, _) = of_epoch[0]
        media_s = [frame.pts_s - first.pts_s for frame, _ in of_epoch]
        assert [time_s - begin_s for _, (time_s, _) in of_epoch] == pytest.approx(media_s, abs=0.001)
    changes = [pair for pair in pairwise(matched) if pair[0][0].stream_epoch != pair[1][0].stream_epoch]
    assert len(changes) == 2
    for (last, (last_s, _)), (first, (first_s, _)) in changes:
        assert first_s - last_s == pytest.approx((first.arrived_at_ns - last.arrived_at_ns) / 1e9, abs=0.001)


def test_a_killed_sink_starts_the_video_over(clip: Path, rtsp_server: RtspServers, tmp_path: Path) -> None:
    with job_of(rtsp_server(cam=clip), tmp_path) as job:
        out = tmp_path / "out"
        job.until(lambda: any(out.glob(".*/000001-00002.*")) and not any(out.glob(".*/000001-00001.*")))
        sink = job.worker("sink")
        assert sink is not None
        sink.send_signal(signal.SIGKILL)
        before = num_frames(tmp_path)
        job.until(lambda: num_frames(tmp_path) > before + 4)
        frames, pictures = finish(job, tmp_path)
    assert 4 < len(pictures) < len(frames)
    kept = frames[-len(pictures) :]
    assert len({first_number(frame, number) for frame, (_, number) in zip(kept, pictures, strict=True)}) == 1
    assert f"lacks {len(frames) - len(pictures)} frames that have results" in job.output


def test_the_next_job_removes_the_segments_of_a_killed_job(
    clip: Path, rtsp_server: RtspServers, tmp_path: Path
) -> None:
    camera = rtsp_server(cam=clip)
    with job_of(camera, tmp_path) as job:
        job.until(lambda: num_frames(tmp_path) > 0)
        job.process.kill()
        job.wait()
    (left,) = (tmp_path / "out").glob(".*")
    (tmp_path / "out" / "cam.jsonl").unlink()
    with job_of(camera, tmp_path) as job:
        job.until(lambda: num_frames(tmp_path) > 2)
        assert not left.exists()
        frames, pictures = finish(job, tmp_path)
    assert len(pictures) == len(frames)


@pytest.mark.parametrize("save", [["jsonl"], ["jsonl", "video"]], ids=",".join)
def test_segments_are_stored_for_cameras_whose_video_is_saved(
    save: list[ExportName], clip: Path, tmp_path: Path
) -> None:
    job = build_job(JobConfig(save=save, output=str(tmp_path)), ["rtsp://127.0.0.1/cam", str(clip)])
    with ExitStack() as stack:
        camera, file = with_segment_folders(job, stack).streams
        made = [str(path) for path in tmp_path.iterdir()]
        assert made == ([camera.segment_folder] if "video" in save else [])
        assert (camera.segment_folder is None, file.segment_folder) == ("video" not in save, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("segment_folder", [None, "/nonexistent/folder"], ids=["decoder alone", "sink elsewhere"])
def test_a_sink_without_segments_warns_and_writes_the_other_files(
    segment_folder: str | None, own_redis: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = own_redis()
    bus = Bus(server.url)
    stream = msgspec.structs.replace(stream_config("cam", kind="live", policy="latest"), segment_folder=segment_folder)
    bus.begin_job(stream, sinks=["output"])
    with running("worker", "sink", "cam", "--output", "out", "--redis-url", server.url, folder=tmp_path) as sink:
        sink.wait_for("no video of cam")
        sink.until(lambda: (tmp_path / "out" / "cam.jsonl").exists())
        sink.interrupt()
        assert sink.wait() == 0
    (line,) = [line for line in sink.err if "no video of cam" in line]
    assert "decoder and sink belong to one job on one host" in line
    bus.close()
