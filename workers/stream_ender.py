"""Writes the end of streams whose decoder did not: it never started, crashed repeatedly, or exited while draining."""

from __future__ import annotations

import contextlib

from pipeline.bus import Bus, FrameWriter
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import EndReason
from pipeline.contract.wire import SourceEnd
from pipeline.errors import FencedError, JobLostError, PositionMovedError


class StreamEnder:
    """Takes over the `decode` lease of such streams and writes the end of the source."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._pending: dict[str, tuple[FrameWriter, EndReason, str]] = {}

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._pending

    def add(self, stream: StreamConfig, reason: EndReason, detail: str) -> None:
        """End the stream for this reason as soon as its lease is free."""
        self._pending[stream.stream_id] = self._bus.frame_writer(stream), reason, detail

    def write_ends(self) -> None:
        """Write the end of each added stream whose lease is free. Call it in a loop: a dead decoder's lease must
        expire first.
        """
        for stream_id, (writer, reason, detail) in list(self._pending.items()):
            if writer.lease.try_take():
                self._write_end(writer, reason, detail)
                del self._pending[stream_id]

    def _write_end(self, writer: FrameWriter, reason: EndReason, detail: str) -> None:
        with contextlib.suppress(PositionMovedError, FencedError, JobLostError):
            opened = writer.open()
            self._bus.set_status(writer.stream_id, error=detail)
            writer.end(
                SourceEnd(
                    session=writer.session,
                    stream_epoch=opened.epoch,
                    last_seq=opened.last,
                    reason=reason,
                    detail=detail,
                    num_corrupt=0,
                )
            )
            writer.lease.release()
