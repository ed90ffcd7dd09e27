"""Ends the streams whose decoder was given up."""

from __future__ import annotations

import contextlib

from pipeline.bus import Bus, FrameWriter
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import EndReason
from pipeline.contract.wire import SourceEnd
from pipeline.errors import FencedError, JobLostError, PositionMovedError


class GivenUpStreams:
    """Takes the `decode` role of streams over from their dead decoders and writes the end of the source."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._pending: dict[str, tuple[FrameWriter, EndReason, str]] = {}

    def __contains__(self, stream_id: str) -> bool:
        return stream_id in self._pending

    def add(self, stream: StreamConfig, reason: EndReason, detail: str) -> None:
        """End the stream for this reason, as soon as the role is free."""
        self._pending[stream.stream_id] = self._bus.frame_writer(stream), reason, detail

    def write_ends(self) -> None:
        """Write the ends whose role is free. To be called in a loop: a dead decoder's lease has to expire first."""
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
