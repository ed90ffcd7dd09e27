"""`open_source`: opens a source with the reader of its kind."""

from __future__ import annotations

import importlib

from pipeline.contract.config import SourceKind
from pipeline.contract.source_kinds import SOURCE_KINDS
from pipeline.source.container import RtspTransport
from pipeline.source.reader import OpenOptions, PacketTap, Reader

TIMEOUT_S = 10.0


def open_source(
    source: str,
    kind: SourceKind,
    *,
    rtsp_transport: RtspTransport = "tcp",
    timeout_s: float = TIMEOUT_S,
    on_packet: PacketTap | None = None,
) -> Reader:
    """Open a source that `resolve_sources` named, and decode its first picture. OpenOptions describes the options.

    Raises SourceError with a message of one line.
    """
    module, _, function = SOURCE_KINDS[kind].opener.partition(":")
    opener = getattr(importlib.import_module(module), function)
    reader: Reader = opener(source, OpenOptions(rtsp_transport, timeout_s, on_packet))
    return reader
