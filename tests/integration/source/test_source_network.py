"""Network sources: timeouts, truncated downloads, capture times, and no access to local files."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import pytest
from PIL import Image
from support.rtsp_server import running_rtsp_server
from support.video_files import counting_frames, write_video

from pipeline.errors import SourceError
from pipeline.source import open_source, resolve_sources


@dataclass
class HttpServer:
    """Serves `files`. Responses for paths in `cut` end halfway; those in `stalled` stop halfway and stay open."""

    port: int
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    stalled: set[str] = field(default_factory=set)
    mjpeg: dict[str, float] = field(default_factory=dict)
    """path of an endless MJPEG stream -> its frames per second"""
    requested: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str, credentials: str = "") -> str:
        return f"http://{credentials}127.0.0.1:{self.port}{path}"


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            state.requested.append(path)
            if path in state.mjpeg:
                self.send_mjpeg(1 / state.mjpeg[path])
                return
            body = state.files.get(path)
            if body is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            broken = path in state.cut | state.stalled
            try:
                self.wfile.write(body[: len(body) // 2] if broken else body)
                self.wfile.flush()
            except ConnectionError:
                return
            if path in state.stalled:
                state.released.wait(30)

        def send_mjpeg(self, interval_s: float) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            picture = io.BytesIO()
            Image.new("RGB", (64, 48), "red").save(picture, "JPEG")
            head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture.getvalue())
            with contextlib.suppress(ConnectionError):
                while not state.released.wait(interval_s):
                    self.wfile.write(head + picture.getvalue() + b"\r\n")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state = HttpServer(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    state.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def clip(folder: Path, name: str, count: int = 40) -> bytes:
    return write_video(folder / name, counting_frames(count), options={"qp": "0", "g": "5", "bf": "0"}).read_bytes()


def hls_playlist(segment_uri: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{segment_uri}\n#EXT-X-ENDLIST\n".encode()


def test_a_video_file_over_http_is_finite(http_server: HttpServer, tmp_path: Path) -> None:
    http_server.files["/clip.mkv"] = clip(tmp_path, "clip.mkv")
    [resolved] = resolve_sources([http_server.url("/clip.mkv?token=abc", "joe:pw@")])
    assert resolved.kind == "file"
    with open_source(resolved.source, resolved.kind, timeout_s=5) as reader:
        assert sum(1 for _ in reader) == 40
        assert reader.is_finite


def test_hls_over_http_is_live_and_ends_with_its_playlist(http_server: HttpServer, tmp_path: Path) -> None:
    http_server.files = {"/index.m3u8": hls_playlist("part.ts"), "/part.ts": clip(tmp_path, "part.ts")}
    [resolved] = resolve_sources([http_server.url("/index.m3u8")])
    with open_source(resolved.source, resolved.kind, timeout_s=5) as reader:
        pictures = list(reader)
        assert (resolved.kind, len(pictures), reader.is_finite) == ("live", 40, True)
    assert {(picture.clock, picture.captured_at_ns) for picture in pictures} == {("host", None)}


@pytest.mark.parametrize("fps", [5.0, 10.0, 40.0])
def test_a_live_source_without_times_is_timed_by_arrival(http_server: HttpServer, fps: float) -> None:
    http_server.mjpeg["/video"] = fps
    with open_source(http_server.url("/video"), "live", timeout_s=5) as reader:
        pictures = list(itertools.islice(reader, 30))
    media_s = pictures[-1].pts_s - pictures[5].pts_s
    arrived_s = pictures[-1].arrived_monotonic_s - pictures[5].arrived_monotonic_s
    assert media_s == pytest.approx(arrived_s, abs=0.05)
    assert 24 / fps < media_s < 24 / fps * 1.5


@pytest.mark.parametrize("kind", ["file", "live"])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        pytest.param("/index.m3u8", hls_playlist("file://{}"), id="HLS"),
        pytest.param("/index.m3u8", hls_playlist("{}"), id="HLS path"),
        pytest.param("/index.m3u8", hls_playlist("concat:{0}|{0}"), id="HLS concat"),
        pytest.param("/index.m3u8", hls_playlist("subfile,,start,0,end,0,,:{}"), id="HLS subfile"),
        pytest.param("/list.txt", b"ffconcat version 1.0\nfile 'file://{}'\n", id="concat list"),
    ],
)
def test_a_remote_playlist_cannot_open_a_local_file(
    http_server: HttpServer, tmp_path: Path, name: str, body: bytes, kind: str
) -> None:
    secret = tmp_path / "secret.ts"
    clip(tmp_path, secret.name)
    http_server.files[name] = body.decode().format(secret).encode()
    with pytest.raises(SourceError) as caught:
        open_source(http_server.url(name), kind, timeout_s=5)
    assert http_server.requested
    assert "\n" not in str(caught.value)


def test_a_local_playlist_cannot_open_a_url(http_server: HttpServer, tmp_path: Path) -> None:
    http_server.files["/part.ts"] = clip(tmp_path, "part.ts")
    playlist = tmp_path / "index.m3u8"
    playlist.write_bytes(hls_playlist(http_server.url("/part.ts")))
    with av.open(str(playlist), options={"protocol_whitelist": "file,http,tcp"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == 40
    http_server.requested.clear()
    with pytest.raises(SourceError, match="playlists on disk are not followed"):
        open_source(str(playlist), "file")
    assert http_server.requested == []


@pytest.mark.parametrize("fault", ["cut", "stalled"])
def test_an_incomplete_download_raises(http_server: HttpServer, tmp_path: Path, fault: str) -> None:
    http_server.files["/clip.mkv"] = clip(tmp_path, "clip.mkv", 200)
    getattr(http_server, fault).add("/clip.mkv")
    begin_s = time.monotonic()
    with (
        pytest.raises(SourceError, match=r"http://\*\*\*@127\.0\.0\.1:[0-9]+/clip\.mkv broke off") as caught,
        open_source(http_server.url("/clip.mkv", "joe:pw@"), "file", timeout_s=1) as reader,
    ):
        list(reader)
    assert "pw" not in str(caught.value)
    assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_server_that_never_answers_times_out(scheme: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin_s = time.monotonic()
        with pytest.raises(SourceError) as caught:
            open_source(f"{scheme}://joe:pw@127.0.0.1:{silent.getsockname()[1]}/x", "live", timeout_s=1)
        assert time.monotonic() - begin_s < 5
    assert f"{scheme}://***@127.0.0.1" in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rtsp://joe:pw@127.0.0.1:1/x", "Connection refused"),
        ("http://joe:pw@127.0.0.1:1/x", "Connection refused"),
        ("webcam:99", "/dev/video99"),
    ],
)
def test_an_unreachable_source_gives_one_error_line(url: str, expected: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match=expected) as caught:
        open_source(url, "live", timeout_s=2)
    assert "joe" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_an_rtsp_camera_has_capture_times(transport: str) -> None:
    with (
        running_rtsp_server() as server,
        open_source(server.url, "live", rtsp_transport=transport, timeout_s=10) as reader,
    ):
        assert (reader.width, reader.height, reader.is_finite) == (320, 240, False)
        clocks, captured_ns, pts_s = [], [], []
        for picture in reader:
            clocks.append(picture.clock)
            pts_s.append(picture.pts_s)
            if picture.captured_at_ns is not None:
                captured_ns.append(picture.captured_at_ns)
                assert abs(time.time_ns() - picture.captured_at_ns) < 2e9
            if len(captured_ns) == 30 or picture.ordinal == 500:
                break
    first_rtcp = clocks.index("rtcp")
    assert set(clocks[:first_rtcp]) <= {"host"}
    assert set(clocks[first_rtcp:]) == {"rtcp"}
    assert len(captured_ns) == 30
    steps_s = [(b - a) / 1e9 for a, b in itertools.pairwise(captured_ns)]
    assert steps_s == pytest.approx([b - a for a, b in itertools.pairwise(pts_s[-30:])], abs=0.005)


def test_a_camera_that_stops_sending_times_out() -> None:
    with running_rtsp_server() as server, open_source(server.url, "live", timeout_s=1) as reader:
        for picture in reader:
            if picture.ordinal == 10:
                break
        os.kill(server.process.pid, signal.SIGSTOP)
        begin_s = time.monotonic()
        with pytest.raises(SourceError, match="broke off: no data for 1 s"):
            list(reader)
        assert time.monotonic() - begin_s < 5
