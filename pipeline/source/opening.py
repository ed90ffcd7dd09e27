"""`open_source`: the right reader for a kind of source."""

from __future__ import annotations

from pipeline.contract.config import SourceKind
from pipeline.source.container import RtspTransport
from pipeline.source.pictures import PicturesReader
from pipeline.source.reader import Reader
from pipeline.source.video import PacketTap, VideoReader

TIMEOUT_S = 10.0


def open_source(
    source: str,
    kind: SourceKind,
    *,
    rtsp_transport: RtspTransport = "tcp",
    timeout_s: float = TIMEOUT_S,
    on_packet: PacketTap | None = None,
) -> Reader:
    """Opens what `resolve_sources` named and decodes its first picture. Raises SourceError in one line.

    timeout_s     longest silence of a source on the network, in seconds, while opening and at every later read
    on_packet     is shown every compressed packet of the video before it is decoded; not called for pictures
    """
    if kind == "pictures":
        return PicturesReader(source)
    return VideoReader(
        source,
        live=kind == "live",
        rtsp_transport=rtsp_transport,
        timeout_s=timeout_s,
        on_packet=on_packet,
    )
