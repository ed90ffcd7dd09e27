"""The RTSP server that other tests use behaves like a camera."""

from __future__ import annotations

import contextlib
import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from support.rtsp_server import RtspServer
from support.video_files import counting_frames, write_video

StartServer = Callable[..., RtspServer]


def open_camera(url: str) -> av.container.InputContainer:
    return av.open(url, options={"rtsp_transport": "tcp"}, timeout=10)


@pytest.mark.parametrize("kind", ["file", "test picture"])
def test_pictures_arrive_in_real_time(rtsp_server: StartServer, tmp_path: Path, kind: str) -> None:
    path = None
    if kind == "file":
        path = write_video(
            tmp_path / "count.mp4", counting_frames(20), rate=25
        )  # shorter than the recording, so that it repeats
    server = rtsp_server(street=path)
    with open_camera(server.url) as camera:
        arrivals = [(time.monotonic(), frame.time) for frame in itertools.islice(camera.decode(video=0), 100)]
    (arrived_s, shown_s), (end_s, last_s) = (
        arrivals[40],
        arrivals[-1],
    )  # the first frames were buffered while FFmpeg probed
    assert last_s - shown_s == pytest.approx(59 / 25, abs=0.1)
    assert end_s - arrived_s == pytest.approx(59 / 25, abs=0.6)


def test_one_server_serves_two_cameras(rtsp_server: StartServer, tmp_path: Path) -> None:
    server = rtsp_server(left=write_video(tmp_path / "count.mp4", counting_frames(30), rate=25), right=None)
    sizes = []
    for name in ("left", "right"):
        with open_camera(server.url_of(name)) as camera:
            frame = next(camera.decode(video=0))
            sizes.append((frame.width, frame.height))
    assert sizes == [(64, 48), (320, 240)]


def test_a_killed_server_restarts_on_its_port(rtsp_server: StartServer) -> None:
    server = rtsp_server()
    with open_camera(server.url) as camera:
        next(camera.decode(video=0))
        server.kill()
        with contextlib.suppress(av.error.FFmpegError):
            assert sum(1 for _ in camera.demux(video=0)) < 100
    with pytest.raises(av.error.FFmpegError):
        open_camera(server.url)
    server.start()
    with open_camera(server.url) as camera:
        next(camera.decode(video=0))


def test_sender_reports_carry_the_capture_time(rtsp_server: StartServer) -> None:
    with open_camera(rtsp_server().url) as camera:
        stamped = (packet for packet in camera.demux(video=0) if packet.has_sidedata("prft"))
        packet = next(stamped)
        (captured_us,) = struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))
    assert time.time() - captured_us / 1e6 == pytest.approx(0, abs=1.5)
