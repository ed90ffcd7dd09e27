"""A real RTSP server: GStreamer's, driven by the system's own python3 (Debian: gir1.2-gst-rtsp-server-1.0 and plugins).

Run as a script by that python3 it serves /cam (H.264, 25 fps, with sound) and prints its port.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

SYSTEM_PYTHON = "/usr/bin/python3"
LAUNCH = (
    "( videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=25/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 pt=96 "
    "audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay1 pt=8 )"
)


@dataclass(frozen=True)
class RtspServer:
    url: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def running_rtsp_server() -> Iterator[RtspServer]:
    """A server child with a camera at `url`; skips the test where GStreamer's server is not installed."""
    # Not at the top: the system's python3 runs this file too.
    import pytest

    process = subprocess.Popen([SYSTEM_PYTHON, __file__], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            pytest.skip("no GStreamer RTSP server for the system's python3")
        yield RtspServer(f"rtsp://127.0.0.1:{port}/cam", process)
    finally:
        process.kill()
        process.communicate()


def serve() -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(LAUNCH)
    factory.set_shared(True)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    serve()
