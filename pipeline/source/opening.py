"""`open_source`: opens a source with the reader of its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pipeline.contract.config import SourceKind
from pipeline.source.container import RtspTransport
from pipeline.source.pictures import AnimationReader, PicturesReader
from pipeline.source.reader import Reader
from pipeline.source.video import PacketTap, VideoReader

TIMEOUT_S = 10.0


class OpenOptions(NamedTuple):
    """How to open a source; readers ignore the options that do not concern their kind.

    rtsp_transport   tcp or udp
    timeout_s        longest silence of a source on the network, in seconds, while opening and at every later read
    on_packet        called with every compressed packet of the video before it is decoded
    """

    rtsp_transport: RtspTransport = "tcp"
    timeout_s: float = TIMEOUT_S
    on_packet: PacketTap | None = None


def _open_video(source: str, options: OpenOptions) -> Reader:
    return VideoReader(source, live=False, **options._asdict())


def _open_live(source: str, options: OpenOptions) -> Reader:
    return VideoReader(source, live=True, **options._asdict())


READERS: dict[SourceKind, Callable[[str, OpenOptions], Reader]] = {
    "file": _open_video,
    "pictures": lambda source, options: PicturesReader(source),
    "animation": lambda source, options: AnimationReader(source),
    "live": _open_live,
}
"""The table of source kinds: what opens a source of each kind. CONTRIBUTING.md, "Adding a source kind"."""


def open_source(
    source: str,
    kind: SourceKind,
    *,
    rtsp_transport: RtspTransport = "tcp",
    timeout_s: float = TIMEOUT_S,
    on_packet: PacketTap | None = None,
) -> Reader:
    """Open a source that `resolve_sources` named, and decode its first picture; the options are those of OpenOptions.

    Raises SourceError in one line.
    """
    return READERS[kind](source, OpenOptions(rtsp_transport, timeout_s, on_packet))
