"""A connection to the bus: jobs, the desired state, status and heartbeats.

FrameWriter, FrameQueue and ResultWriter are the interfaces of the worker roles.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, Literal

import msgspec
import redis

from pipeline.bus import scripts
from pipeline.bus.connection import (
    SOURCES_KEY,
    WORKER_PREFIX,
    RedisClock,
    StreamKeys,
    connect,
)
from pipeline.bus.frame_queue import FrameQueue
from pipeline.bus.frame_writer import FrameWriter
from pipeline.bus.lease import LEASE_S
from pipeline.bus.result_writer import ResultWriter
from pipeline.bus.server_check import check_server, denied_channels, explained_errors
from pipeline.bus.status import Phase, StreamStatus, WorkerStatus
from pipeline.contract.config import StreamConfig
from pipeline.contract.path_json import decode_with_paths, encode_with_paths
from pipeline.errors import BusError
from pipeline.redaction import redact_url

WORKER_TTL_S = 30
"""time to live of a heartbeat that is not renewed"""


class Bus:
    """A connection pool to one server. The first call of a method opens the first connection."""

    def __init__(self, url: str) -> None:
        """url   redis://, rediss:// or unix://; raises BusError if it is malformed"""
        self.url = url
        self.client = connect(url)
        self.clock = RedisClock(self.client)
        self._log_ids: dict[str, str] = {}

    def check(self) -> None:
        """Raises BusError if the server is unreachable, refuses the user, is too old, or would evict keys of a job."""
        check_server(self.client, self.url)

    def denied_channels(self, stream_ids: Iterable[str]) -> list[str]:
        """The result channels of these streams on which the user may not publish; empty before Redis 7."""
        return denied_channels(self.client, stream_ids)

    def explained_errors(self) -> AbstractContextManager[None]:
        """A context that converts an error reply of the server into a BusError of one line."""
        return explained_errors(self.client, self.url)

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    def begin_job(self, stream: StreamConfig, sinks: list[str]) -> str:
        """Start a job for the stream, add the stream to the desired state, and return the id of its new log.

        sinks   names of the required readers

        Everything that an earlier job of the same stream id left is removed, its result log included. If the roles of
        the earlier job have owners, this waits for the length of a lease. Raises BusError if an owner is alive, or if
        the server is full.
        """
        keys = StreamKeys.of(stream.stream_id)
        log_id = secrets.token_hex(8)
        mode = "live" if stream.live else "file"
        seen: list[Any] = [b"", b"", b"", b""]
        for attempt in range(2):
            reply = scripts.BEGIN_JOB(
                self.client,
                [keys.state, keys.frames, keys.detections, keys.results, keys.status],
                [log_id, mode, ",".join(sinks), keys.pixels_prefix, *seen],
            )
            if reply[0] == b"ok":
                self._log_ids[stream.stream_id] = log_id
                try:
                    self.client.hset(SOURCES_KEY, stream.stream_id, encode_with_paths(stream))
                except redis.exceptions.OutOfMemoryError:
                    self.finish_job(stream.stream_id, 1)
                    raise BusError(
                        f"Redis at {redact_url(self.url)} is full: raise its maxmemory, or give another --redis-url"
                    ) from None
                return log_id
            seen = reply[1:]
            if attempt == 0:
                time.sleep(LEASE_S)
        raise BusError(
            f"stream id {stream.stream_id!r} is in use by a running job on {redact_url(self.url)}: "
            "stop that one, or give another --stream-id"
        )

    def add_sink(self, stream_id: str, name: str) -> bool:
        """Add a required reader to a running job. Returns False if the stream has no job."""
        return bool(scripts.ADD_SINK(self.client, [StreamKeys.of(stream_id).state], [name]))

    def finish_job(self, stream_id: str, result_ttl_s: int) -> None:
        """End the job: remove everything of the stream but its result log, which expires after `result_ttl_s`.

        If this object began the job and another job uses the stream id by now, nothing is removed.
        """
        keys = StreamKeys.of(stream_id)
        ours = scripts.FINISH_JOB(
            self.client,
            [keys.state, keys.frames, keys.detections, keys.results, keys.status],
            [self._log_ids.pop(stream_id, ""), result_ttl_s, keys.pixels_prefix],
        )
        if ours:
            self.client.hdel(SOURCES_KEY, stream_id)

    def streams(self) -> dict[str, StreamConfig]:
        """The desired state: stream id -> configuration of the streams that should run."""
        found = self.client.hgetall(SOURCES_KEY)
        return {name.decode(): decode_with_paths(payload, StreamConfig) for name, payload in found.items()}

    def stream(self, stream_id: str) -> StreamConfig | None:
        """The configuration of one stream of the desired state, or None."""
        payload = self.client.hget(SOURCES_KEY, stream_id)
        stream: StreamConfig | None = None if payload is None else decode_with_paths(payload, StreamConfig)
        return stream

    def frame_writer(self, stream: StreamConfig) -> FrameWriter:
        """The decoder's interface to one stream."""
        return FrameWriter(self.client, stream)

    def frame_queue(self, worker_name: str) -> FrameQueue:
        """The infer worker's interface; `worker_name` is the name of its consumer."""
        return FrameQueue(self.client, worker_name)

    def result_writer(self, stream: StreamConfig) -> ResultWriter:
        """The tracker's interface to one stream."""
        return ResultWriter(self.client, stream)

    def lost_jobs(self) -> dict[str, str | None]:
        """Streams whose job began through this object and is no longer on the server.

        Returns stream id -> log id of the job that took its place, None if there is none.
        """
        pipe = self.client.pipeline(transaction=False)
        for stream_id in self._log_ids:
            pipe.hget(StreamKeys.of(stream_id).state, "log_id")
        pairs = zip(self._log_ids.items(), pipe.execute(), strict=True)
        found = {stream_id: (log_id, present and present.decode()) for (stream_id, log_id), present in pairs}
        return {stream_id: present for stream_id, (log_id, present) in found.items() if present != log_id}

    def source_ended(self, stream_id: str) -> bool:
        """Whether the decoder has written that no number follows. Results may still be missing from the log."""
        source_ended, ended = self.client.hmget(StreamKeys.of(stream_id).state, "source_ended", "ended")
        return bool(source_ended or ended)

    # -- results ------------------------------------------------------------------------------------------------------

    def log_id(self, stream_id: str) -> str | None:
        """The id of the stream's current log; None without a job."""
        value = self.client.hget(StreamKeys.of(stream_id).state, "log_id")
        return value.decode() if value else None

    # -- health -------------------------------------------------------------------------------------------------------

    def set_status(self, stream_id: str, **fields: str | int) -> None:
        """Set fields of the stream's status hash (see StreamStatus). Does nothing without a job."""
        keys = StreamKeys.of(stream_id)
        scripts.PUT(self.client, [keys.state, keys.status], [part for field in fields.items() for part in field])

    def set_summary(self, stream_id: str, summary: bytes) -> None:
        """Store the summary of an ended stream as JSON. The sink worker calls this."""
        keys = StreamKeys.of(stream_id)
        scripts.PUT(self.client, [keys.state, keys.status], ["summary", summary])

    def stream_summary(self, stream_id: str) -> bytes | None:
        """The JSON that `set_summary` stored, or None."""
        summary: bytes | None = self.client.hget(StreamKeys.of(stream_id).status, "summary")
        return summary

    def stream_status(self, stream_id: str, stream: StreamConfig | None) -> StreamStatus:
        """The status of one stream. `stream` is its configuration, if it is in the desired state."""
        keys = StreamKeys.of(stream_id)
        pipe = self.client.pipeline(transaction=False)
        pipe.hgetall(keys.status)
        pipe.hmget(keys.state, "last", "seq", "epoch", "sinks", "ended", "num_unpublished")
        status, (last, seq, epoch, sinks, ended, num_unpublished) = pipe.execute()
        text = {name.decode(): value.decode() for name, value in status.items()}
        names = [name for name in (sinks or b"").decode().split(",") if name]
        written = self.client.hmget(keys.state, [f"sink:{name}" for name in names]) if names else []
        phase: Any = text.get("phase", "waiting")
        if ended:
            reasons: dict[bytes, Phase] = {b"failed": "failed", b"stopped": "stopped", b"truncated": "truncated"}
            phase = reasons.get(ended, "ended")
        return StreamStatus(
            stream_id=stream_id,
            source=text.get("source", ""),
            phase=phase,
            error=text.get("error", ""),
            live_source=stream.live if stream else False,
            width=int(text.get("width", 0)),
            height=int(text.get("height", 0)),
            stream_epoch=int(epoch or 0),
            num_frames_expected=int(text["num_frames_expected"]) if text.get("num_frames_expected") else None,
            last_seq=int(last or 0),
            seq=int(seq or 0),
            num_frames=int(text.get("num_frames", 0)),
            num_instances=int(text.get("num_instances", 0)),
            num_tracks=int(text.get("num_tracks", 0)),
            gaps={name[4:]: int(value) for name, value in text.items() if name.startswith("gap:")},
            num_corrupt=int(text.get("num_corrupt", 0)),
            sinks={name: int(value or 0) for name, value in zip(names, written, strict=True)},
            num_reconnects=int(text.get("num_reconnects", 0)),
            num_unpublished=int(num_unpublished or 0),
        )

    def stream_statuses(self) -> list[StreamStatus]:
        """The status of every stream of the desired state, sorted by id."""
        return [self.stream_status(stream_id, stream) for stream_id, stream in sorted(self.streams().items())]

    def beat(
        self,
        role: str,
        name: str,
        state: Literal["starting", "running"],
        *,
        detail: str = "",
        counters: dict[str, float] | None = None,
    ) -> None:
        """Renew a worker's heartbeat. The working loop must call this, so that the heartbeat of a hung loop stops."""
        from pipeline import __version__

        status = WorkerStatus(
            role=role,
            name=name,
            state=state,
            pid=os.getpid(),
            host=socket.gethostname(),
            version=__version__,
            detail=detail,
            counters={**(counters or {}), "beat": time.monotonic()},
        )
        scripts.HEARTBEAT(self.client, [f"{WORKER_PREFIX}{role}:{name}"], [msgspec.json.encode(status), WORKER_TTL_S])

    def forget_worker(self, role: str, name: str) -> None:
        """Remove the heartbeat of a worker that has stopped."""
        self.client.delete(f"{WORKER_PREFIX}{role}:{name}")

    def worker_statuses(self) -> list[WorkerStatus]:
        """The heartbeats of all workers, sorted by role and name."""
        names = sorted(self.client.scan_iter(match=f"{WORKER_PREFIX}*", count=500))
        values = self.client.mget(names) if names else []
        return [msgspec.json.decode(value, type=WorkerStatus) for value in values if value is not None]
