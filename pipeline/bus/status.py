"""Status of streams and workers, for the progress display, `maskstream status` and health checks."""

from __future__ import annotations

from typing import Literal

import msgspec

Phase = Literal["waiting", "connecting", "live", "stalled", "ended", "truncated", "stopped", "failed"]


class StreamStatus(msgspec.Struct, kw_only=True):
    """The status of one stream at one moment."""

    stream_id: str
    source: str
    """without credentials"""
    phase: Phase
    """waiting: no decoder yet; live: frames flow (of a file too); ended, stopped and failed are final"""
    error: str
    """one line; empty while there is none"""
    live_source: bool
    width: int
    height: int
    stream_epoch: int
    num_frames_expected: int | None
    """frames a file will give, as far as its container tells"""
    last_seq: int
    """highest number assigned to a frame"""
    seq: int
    """highest number in the result log"""
    num_frames: int
    """frame messages in the log so far"""
    num_instances: int
    """on the last frame"""
    num_tracks: int
    """tracks confirmed so far"""
    gaps: dict[str, int]
    """frames lost, by cause"""
    num_corrupt: int
    sinks: dict[str, int]
    """highest number each required reader has written durably"""
    num_reconnects: int
    num_unpublished: int = 0
    """results that are in the log but not on the channel, because the Redis user may not publish there"""

    @property
    def is_over(self) -> bool:
        """Whether the result log has its end message."""
        return self.phase in ("ended", "truncated", "stopped", "failed")

    @property
    def unpublished_warning(self) -> str:
        """One line about the results that are not on the channel; empty if every result is."""
        if not self.num_unpublished:
            return ""
        return (
            f"{self.stream_id}: {self.num_unpublished} results are in the log but not on the channel: the Redis user "
            "may not publish there; ACL SETUSER name '&ms:results:*' gives the right"
        )


class WorkerStatus(msgspec.Struct, kw_only=True):
    """One worker's heartbeat: `ms:worker:ROLE:NAME`."""

    role: str
    name: str
    state: Literal["starting", "running"]
    pid: int
    host: str
    version: str
    detail: str
    """infer: model, device and precision"""
    counters: dict[str, float]
