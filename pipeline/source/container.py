"""Opens a source with FFmpeg. FFmpeg may open no other resource, and no read blocks for ever.

| source | may open |
|---|---|
| file on disk | this file only: no file or URL that a playlist or a concat list names |
| HTTP(S), HLS | HTTP(S); never a local file |
| RTSP(S) | RTP over TCP, UDP or TLS; never a local file |
| webcam | its device |
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import av
import av.logging

from pipeline.errors import AccessDeniedError, SourceError
from pipeline.redaction import redact_secrets_of, redact_url

RtspTransport = Literal["tcp", "udp"]

HTTP_PROTOCOLS = "http,https,httpproxy,tcp,tls,crypto,data"
RTSP_PROTOCOLS = "rtp,srtp,udp,tcp,tls,http,https,httpproxy"
# No protocol has this name. An empty list would allow all protocols.
NO_PROTOCOL = "none"
# Larger reads than PyAV's 32 KiB save calls into Python.
FILE_BUFFER_BYTES = 1 << 18
UDP_BUFFER_BYTES = 1 << 22
ACCESS_ERRORS = (av.error.HTTPUnauthorizedError, av.error.HTTPForbiddenError)


def open_container(source: str, resources: ExitStack, *, rtsp_transport: RtspTransport, timeout_s: float) -> Any:
    """Return an av InputContainer whose streams are known. `resources` closes the container.

    `timeout_s` limits the time without data from a network source, while opening and at every later read. Raises
    SourceError with a message of one line.
    """
    with ffmpeg_errors() as last_error:
        try:
            return resources.enter_context(_open(source, resources, rtsp_transport, timeout_s))
        except (av.FFmpegError, OSError, ValueError) as error:
            kind = AccessDeniedError if isinstance(error, ACCESS_ERRORS) else SourceError
            raise kind(failure_text(source, "cannot be opened", error, last_error(), timeout_s)) from error


def is_remote(source: str) -> bool:
    """Return whether the source is on the network."""
    return "://" in source


def failure_text(source: str, failure: str, error: Exception, ffmpeg_message: str, timeout_s: float) -> str:
    """Return the message `SOURCE FAILURE: REASON (FFMPEG_MESSAGE); ADVICE`: one line with credentials redacted."""
    if isinstance(error, av.error.ExitError):
        reason = f"no data for {timeout_s:g} s"
    else:
        reason = getattr(error, "strerror", None) or str(error)
    reason, ffmpeg_message = redact_secrets_of(source, reason), redact_secrets_of(source, ffmpeg_message)
    reason = reason or "FFmpeg's message is not shown, because it may quote parts of the password"
    details = f" ({ffmpeg_message})" if ffmpeg_message and ffmpeg_message not in reason else ""
    advice = _advice(source, error)
    line = f"{redact_url(source)} {failure}: {reason}{details}; {advice}"
    return " ".join(line.split())


@contextmanager
def ffmpeg_errors() -> Iterator[Any]:
    """Silence FFmpeg's log, and yield a function that returns the last error line logged in the block, or "".

    Use it only for opening: FFmpeg's log takes the GIL, which a thread that waits for decoder threads may hold.
    """
    before = av.logging.get_last_error()[0]
    level = av.logging.get_level()
    av.logging.set_level(av.logging.PANIC)

    def last_error() -> str:
        count, entry = av.logging.get_last_error()
        return str(entry[2]).strip() if count > before and entry else ""

    try:
        yield last_error
    finally:
        av.logging.set_level(level)


def _open(source: str, resources: ExitStack, rtsp_transport: RtspTransport, timeout_s: float) -> Any:
    timeouts = (timeout_s, timeout_s)
    scheme = source.split("://", 1)[0].lower() if is_remote(source) else ""
    if scheme in {"rtsp", "rtsps"}:
        options = {
            "protocol_whitelist": RTSP_PROTOCOLS,
            "rtsp_transport": rtsp_transport,
            "timeout": str(int(timeout_s * 1e6)),
            "buffer_size": str(UDP_BUFFER_BYTES),
            # If the video stops, packets of an audio stream would prevent the timeout of a read.
            "allowed_media_types": "video",
        }
        return av.open(source, options=options, timeout=timeouts)
    if scheme:
        options = {"protocol_whitelist": HTTP_PROTOCOLS, "rw_timeout": str(int(timeout_s * 1e6))}
        return av.open(source, options=options, timeout=timeouts)
    if source.startswith(("webcam:", "/dev/video")):
        return _open_webcam(source, timeouts)
    # FFmpeg gets the open file, so it needs no protocol and does not interpret a name such as `concat:x`.
    file = resources.enter_context(open(source, "rb"))  # noqa: SIM115
    return av.open(file, options={"protocol_whitelist": NO_PROTOCOL}, buffer_size=FILE_BUFFER_BYTES)


def _open_webcam(source: str, timeouts: tuple[float, float]) -> Any:
    index = source.removeprefix("webcam:").removeprefix("/dev/video")
    if sys.platform == "darwin":
        return av.open(f"{index}:none", format="avfoundation", options={"framerate": "30"}, timeout=timeouts)
    return av.open(f"/dev/video{index}", format="v4l2", timeout=timeouts)


def _advice(source: str, error: Exception) -> str:
    if isinstance(error, ACCESS_ERRORS):
        return "check the user and the password"
    if is_remote(source):
        return "check the address, the user and password, and that the camera or server is up"
    if source.startswith(("webcam:", "/dev/video")):
        return "check that the camera is plugged in, that no other program uses it and that you may read it"
    if isinstance(error, FileNotFoundError):
        return "check the name"
    if isinstance(error, PermissionError):
        return "check that you may read it"
    return "expected a whole video file; playlists on disk are not followed"
