"""A real RTSP server: GStreamer's, driven by the system's own python3 (Debian: gir1.2-gst-rtsp-server-1.0 and plugins).

`rtsp_server.py PORT NAME=FILE NAME= …`, run by that python3, serves rtsp://127.0.0.1:PORT/NAME: the raw H.264 of FILE in
an endless loop, or without a file a test picture (320x240, 25 fps) with sound. Live: whoever connects gets what comes from
then on, in real time. It prints the port (0 asks for a free one) once it can be connected to.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SYSTEM_PYTHON = "/usr/bin/python3"
TEST_PICTURE = (
    "( videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=25/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=25 ! rtph264pay name=pay0 pt=96 "
    "audiotestsrc is-live=true ! alawenc ! rtppcmapay name=pay1 pt=8 )"
)
FILE = (
    '( multifilesrc location="{path}" loop=true ! h264parse ! identity sync=true '
    "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


class RtspServer:
    """A server child. `process` is the running one; `url` is that of the first stream."""

    def __init__(self, streams: dict[str, Path | None]) -> None:
        """Start it. `streams` are names with the raw H.264 file each serves, or None for a test picture.

        Raises FileNotFoundError where there is no GStreamer server for the system's python3.
        """
        self._streams = {name: "" if path is None else str(path.resolve()) for name, path in streams.items()}
        self._port = 0
        self.start()
        self.url = self.url_of(next(iter(streams)))

    def url_of(self, name: str) -> str:
        """rtsp:// URL of one stream; it stays over restarts."""
        return f"rtsp://127.0.0.1:{self._port}/{name}"

    def start(self) -> None:
        """Start the child; on the port it had before, if it had one."""
        streams = [f"{name}={path}" for name, path in self._streams.items()]
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, __file__, str(self._port), *streams], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        if not port:
            _, said = self.process.communicate()
            reason = said.decode(errors="replace").strip().splitlines()[-1:]
            raise FileNotFoundError(f"no GStreamer RTSP server for {SYSTEM_PYTHON}: {' '.join(reason)}")
        self._port = int(port)

    def kill(self) -> None:
        """SIGKILL, as when the camera loses its power."""
        self.process.kill()
        self.process.communicate()

    def restart(self) -> None:
        """Kill it and start it again on the same port."""
        self.kill()
        self.start()


@contextlib.contextmanager
def running_rtsp_server(**streams: Path | None) -> Iterator[RtspServer]:
    """A server with the given streams (any H.264 file), by default one test picture called `cam`.

    Skips the test where GStreamer's server is not installed, unless MASKSTREAM_REQUIRE names `rtsp`.
    """
    from requires import missing  # not at the top: the system's python3 runs this file too

    with tempfile.TemporaryDirectory(prefix="rtsp-") as folder:
        files = {
            name: None if path is None else _raw_h264(path, Path(folder) / f"{name}.h264")
            for name, path in (streams or {"cam": None}).items()
        }
        try:
            server = RtspServer(files)
        except FileNotFoundError as error:
            missing("rtsp", str(error))
        try:
            yield server
        finally:
            server.kill()


def _raw_h264(path: Path, target: Path) -> Path:
    """The video of a container as a bare stream with start codes."""
    import av

    with av.open(str(path)) as source, target.open("wb") as output:
        stream = source.streams.video[0]
        annexb = av.BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in source.demux(stream):
            for part in annexb.filter(packet if packet.size else None):
                output.write(bytes(part))
    return target


def serve(port: str, streams: dict[str, str]) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for name, path in streams.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(FILE.format(path=path) if path else TEST_PICTURE)
        factory.set_shared(True)
        server.get_mount_points().add_factory(f"/{name}", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {port} is taken")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    serve(sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:]))
