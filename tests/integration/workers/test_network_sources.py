"""Network sources with an end, live HLS, refused passwords and `--fail-fast`, through the command line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import pytest
from support.pipeline_runs import (
    count_pictures,
    covered,
    end_of,
    frames_of,
    read_results,
    read_results_so_far,
    run,
    running,
)
from support.rtsp_server import running_rtsp_server
from support.video_files import counting_frames, write_video

from pipeline.contract.results import AnyResult, EndResult, GapResult

pytestmark = pytest.mark.timeout(300)  # the jobs take minutes on a busy machine

Respond = Callable[[str], tuple[int, bytes]]


@pytest.fixture
def serve() -> Iterator[Callable[[Respond], str]]:
    """Yield a function that starts an HTTP server and returns its URL. `respond` returns status and body of a path."""
    servers = []

    class Handler(BaseHTTPRequestHandler):
        def __init__(self, respond: Respond, *arguments: Any) -> None:
            self.respond = respond
            super().__init__(*arguments)

        def do_GET(self) -> None:
            status, body = self.respond(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    def start(respond: Respond) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, respond))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def write_hls(folder: Path, num_frames: int, fps: int, segment_s: int) -> list[bytes]:
    """Segments of `segment_s` seconds."""
    with av.open(
        str(folder / "all.m3u8"), "w", format="hls", options={"hls_time": str(segment_s), "hls_list_size": "0"}
    ) as container:
        stream: Any = container.add_stream("libx264", rate=fps, options={"g": str(fps * segment_s), "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index, frame in enumerate(counting_frames(num_frames)):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return [path.read_bytes() for path in sorted(folder.glob("*.ts"), key=lambda path: int(path.stem.strip("al")))]


def playlist(first: int, end: int, segment_s: int, *, is_over: bool) -> bytes:
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{segment_s}", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
    for number in range(first, end):
        lines += [f"#EXTINF:{segment_s}.0,", f"{number}.ts"]
    return "\n".join([*lines, "#EXT-X-ENDLIST" if is_over else "", ""]).encode()


def gaps(results: list[AnyResult]) -> list[GapResult]:
    return [message for message in results if isinstance(message, GapResult)]


def test_every_frame_of_a_finite_hls_playlist_has_a_result(serve: Callable[[Respond], str], tmp_path: Path) -> None:
    segments = write_hls(tmp_path, 240, fps=30, segment_s=2)

    def respond(path: str) -> tuple[int, bytes]:
        if path.endswith(".m3u8"):
            return 200, playlist(0, len(segments), 2, is_over=True)
        return 200, segments[int(Path(path).stem)]

    ended = run(f"{serve(respond)}/i.m3u8", "--output", "out", folder=tmp_path)
    results = read_results(tmp_path / "out" / "cam1.jsonl")
    assert (ended.code, end_of(results).reason, len(frames_of(results)), gaps(results)) == (0, "finished", 240, [])
    assert covered(results) == list(range(1, 241))
    assert count_pictures(tmp_path / "out" / "cam1.mp4") == 240


@pytest.mark.real_time
def test_a_live_hls_playlist_loses_no_frame_while_the_model_keeps_up(
    serve: Callable[[Respond], str], tmp_path: Path
) -> None:
    fps, segment_s = 4, 2
    segments = write_hls(tmp_path, 400, fps, segment_s)
    began_s = time.monotonic()

    def respond(path: str) -> tuple[int, bytes]:
        if path.endswith(".m3u8"):
            end = 4 + int((time.monotonic() - began_s) / segment_s)
            return 200, playlist(max(0, end - 5), min(end, len(segments)), segment_s, is_over=False)
        return 200, segments[int(Path(path).stem)]

    ended = run(f"{serve(respond)}/i.m3u8", "--max-frames", "60", "--output", "out", folder=tmp_path)
    results = read_results(tmp_path / "out" / "cam1.jsonl")
    assert (ended.code, end_of(results).reason, len(frames_of(results)), gaps(results)) == (0, "finished", 60, [])
    frames = frames_of(results)
    media_s = frames[-1].pts_s - frames[0].pts_s
    assert (frames[-1].arrived_at_ns - frames[0].arrived_at_ns) / 1e9 == pytest.approx(media_s, abs=2.5)


def test_hls_whose_server_loses_segments_is_not_finished(serve: Callable[[Respond], str], tmp_path: Path) -> None:
    segments = write_hls(tmp_path, 80, fps=10, segment_s=2)

    def respond(path: str) -> tuple[int, bytes]:
        if path.endswith(".m3u8"):
            return 200, playlist(0, len(segments), 2, is_over=True)
        number = int(Path(path).stem)
        return (200, segments[number]) if number < 2 else (404, b"")

    ended = run(f"{serve(respond)}/i.m3u8", "--output", "out", "--save", "jsonl", folder=tmp_path)
    results = read_results(tmp_path / "out" / "cam1.jsonl")
    end = end_of(results)
    assert (ended.code, end.reason, len(frames_of(results))) == (1, "failed", 40)
    assert "of 8.0 s received" in end.detail


def test_a_refused_password_is_tried_again_after_half_a_minute(serve: Callable[[Respond], str], tmp_path: Path) -> None:
    asked_s: list[float] = []

    def respond(path: str) -> tuple[int, bytes]:
        asked_s.append(time.monotonic())
        return 401, b""

    url = serve(respond).replace("http://", "http://joe:secret@")
    with running(f"{url}/video", "--output", "out", "--save", "jsonl", folder=tmp_path) as job:
        job.until(lambda: bool(asked_s), what="the first attempt")
        first = len(asked_s)
        time.sleep(8)
        job.interrupt()
        job.wait()
    assert len(asked_s) - first <= 2  # FFmpeg may ask again within one attempt, with the password
    assert not any("secret" in line for line in [*job.out, *job.err])
    assert any("check the user and the password; connecting again in 30.0 s" in line for line in job.err)
    assert end_of(read_results(tmp_path / "out" / "cam1.jsonl")).reason == "stopped"


def test_fail_fast_ends_with_the_error_of_the_first_attempt(tmp_path: Path) -> None:
    ended = run("rtsp://127.0.0.1:1/cam", "--fail-fast", "--output", "out", "--save", "jsonl", folder=tmp_path)
    assert ended.code == 1
    assert len([line for line in ended.err if line.startswith("maskstream: error: ")]) == 1
    [end] = [m for m in read_results(tmp_path / "out" / "cam1.jsonl") if isinstance(m, EndResult)]
    assert (end.reason, end.num_frames) == ("failed", 0)
    assert "Connection refused" in end.detail


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """12 s at 10 fps."""
    return write_video(tmp_path / "film.mkv", counting_frames(120), rate=10, options={"g": "10", "bf": "0"})


def test_playback_over_rtsp_ends_with_the_recording(recording: Path, tmp_path: Path) -> None:
    with running_rtsp_server(playback=recording) as server:
        ended = run(server.url, "--output", "out", "--save", "jsonl", folder=tmp_path)
    results = read_results(tmp_path / "out" / "cam1.jsonl")
    assert (ended.code, end_of(results).reason, gaps(results)) == (0, "finished", [])
    assert len(frames_of(results)) == pytest.approx(120, abs=1)  # GStreamer may not send the last picture


def test_playback_over_rtsp_that_breaks_off_is_an_error(recording: Path, tmp_path: Path) -> None:
    with (
        running_rtsp_server(playback=recording) as server,
        running(server.url, "--output", "out", "--save", "jsonl", folder=tmp_path) as job,
    ):
        path = tmp_path / "out" / "cam1.jsonl"
        job.until(lambda: len(frames_of(read_results_so_far(path))) > 30, what="30 frames")
        server.kill()
        code = job.wait()
    results = read_results(path)
    end = end_of(results)
    assert (code, end.reason) == (1, "failed")
    assert "broke off" in end.detail
    assert "of 12.0 s received" in end.detail
    assert 30 < len(frames_of(results)) < 110
