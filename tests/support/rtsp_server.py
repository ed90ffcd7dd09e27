"""An RTSP server by GStreamer, run by the system's python3 (Debian: gir1.2-gst-rtsp-server-1.0 and plugins).

`rtsp_server.py PORT NAME=FILE NAME= …`, run by that python3, serves rtsp://127.0.0.1:PORT/NAME in real time:

- FILE, as written by `_encode`: its pictures in an endless loop, the same for all clients;
- FILE.mkv: the H.264 video once for each client, with its duration, like the playback of a recorder;
- no file: a test picture (320x240, 25 fps) with sound, the same for all clients.

With PORT 0 the server chooses a free port. It prints the port when it accepts connections.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
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
RECORDING = "( filesrc location={} ! matroskademux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
FILE = (
    "( appsrc name=pictures format=time caps=video/x-h264,stream-format=byte-stream,alignment=au "
    "! identity sync=true ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=-1 )"
)


class RtspServer:
    """A server process. `process` is the current one; `url` is the URL of the first stream."""

    def __init__(self, streams: dict[str, Path | None]) -> None:
        """Start the server. `streams` maps names to files, None for a test picture.

        Raises FileNotFoundError if the system's python3 has no RTSP server of GStreamer.
        """
        self._streams = {name: "" if path is None else str(path.resolve()) for name, path in streams.items()}
        self._port = 0
        self.start()
        self.url = self.url_of(next(iter(streams)))

    def url_of(self, name: str) -> str:
        """Return the rtsp:// URL of a stream, which stays the same after a restart."""
        return f"rtsp://127.0.0.1:{self._port}/{name}"

    def start(self) -> None:
        """Start the process, on the previous port if there was one."""
        streams = [f"{name}={path}" for name, path in self._streams.items()]
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, __file__, str(self._port), *streams], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        if not port:
            _, stderr = self.process.communicate()
            reason = stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise FileNotFoundError(f"no GStreamer RTSP server for {SYSTEM_PYTHON}: {' '.join(reason)}")
        self._port = int(port)

    def kill(self) -> None:
        """Send SIGKILL, as if the camera lost its power."""
        self.process.kill()
        self.process.communicate()

    def restart(self) -> None:
        """Kill the server and start it again on the same port."""
        self.kill()
        self.start()


@contextlib.contextmanager
def running_rtsp_server(**streams: Path | None) -> Iterator[RtspServer]:
    """Run a server with the given streams (name=video file, any codec), by default one test picture called `cam`.

    A Matroska file must contain H.264 and is served as a recording: each client gets it once from the beginning, with
    its duration. Other videos are served as cameras.

    Skip the test if GStreamer's server is not installed, unless MASKSTREAM_REQUIRE contains `rtsp`.
    """
    # imported here because the system's python3, which has no pytest, runs this file too
    from support.requires import missing

    with tempfile.TemporaryDirectory(prefix="rtsp-") as folder:
        files = {
            name: path if path is None or path.suffix == ".mkv" else _encode(path, Path(folder) / name)
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


def _encode(path: Path, target: Path) -> Path:
    """Encode a video as H.264: a line with the frames per second, then length and bytes of each access unit."""
    import av

    with av.open(str(path)) as source, av.open(os.devnull, "w", format="h264") as output, target.open("wb") as file:
        video = source.streams.video[0]
        # zerolatency disables B pictures, so that pictures are sent in the order of their times
        options = {"preset": "ultrafast", "tune": "zerolatency", "g": "25", "crf": "20"}
        stream = output.add_stream("libx264", rate=video.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
        file.write(b"%f\n" % video.average_rate)
        for picture in itertools.chain(source.decode(video), [None]):
            for packet in stream.encode(picture):
                file.write(struct.pack("<I", packet.size) + bytes(packet))
    return target


def _read(path: str) -> tuple[float, list[bytes]]:
    with open(path, "rb") as file:
        fps, units = float(file.readline()), []
        while head := file.read(4):
            units.append(file.read(*struct.unpack("<I", head)))
    return fps, units


def serve(port: str, streams: dict[str, str]) -> None:
    import gi

    gi.require_version("Gst", "1.0")
    gi.require_version("GstRtspServer", "1.0")
    from gi.repository import GLib, Gst, GstRtspServer

    def feed(_: object, media: GstRtspServer.RTSPMedia, fps: float, units: list[bytes]) -> None:
        numbers = itertools.count()

        def push(source: Gst.Element, _: int) -> None:
            number = next(numbers)
            buffer = Gst.Buffer.new_wrapped(units[number % len(units)])
            buffer.pts = buffer.dts = int(number / fps * Gst.SECOND)
            source.emit("push-buffer", buffer)

        media.get_element().get_by_name_recurse_up("pictures").connect("need-data", push)

    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    for name, path in streams.items():
        factory = GstRtspServer.RTSPMediaFactory()
        is_recording = path.endswith(".mkv")
        factory.set_launch(RECORDING.format(path) if is_recording else FILE if path else TEST_PICTURE)
        factory.set_shared(not is_recording)
        if path and not is_recording:
            factory.connect("media-configure", feed, *_read(path))
        server.get_mount_points().add_factory(f"/{name}", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {port} is taken")
    print(server.get_bound_port(), flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    serve(sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:]))
