"""A job on a real bus, with helpers for its decoder, its infer workers, its tracker and its keys in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from support import result_samples

from pipeline.bus import Bus, FrameQueue, FrameWriter, Offer, QueuedFrame, ResultWriter, StreamKeys, scripts
from pipeline.contract.arrays import ColourMatrix, Detections
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import AnyResult, GapResult, decode_result
from pipeline.contract.wire import BusMessage, FrameDetections, FrameGap, FrameHeader, SourceEnd, decode_message

WIDTH, HEIGHT = 32, 16
PIXELS = np.arange(WIDTH * HEIGHT * 3 // 2, dtype=np.uint8)


class Clock:
    """Replacement for the `time` module in a bus module. Time advances only in `sleep` and when a test sets `now_s`."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()
        self.on_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.on_sleep()


def stream_config(stream_id: str = "cam1", **options: Any) -> StreamConfig:
    fields: dict[str, Any] = {
        "source": "street.mp4",
        "kind": "file",
        "policy": "lossless",
        "conf": 0.5,
        "class_ids": None,
        "max_staleness_s": 0.5,
        "stride": 1,
        "max_fps": None,
        "max_frames": None,
        "rtsp_transport": "tcp",
        "model": "street",
        "max_in_flight": 16,
        "log_bytes": 1 << 20,
    }
    return StreamConfig(stream_id=stream_id, **(fields | options))


def set_read(bus: Bus, stream_id: str, reader: str, seq: int) -> None:
    """Store that a required reader has read the log up to `seq`."""
    state = StreamKeys.of(stream_id).state
    scripts.PUT(bus.client, [state, state], [f"sink:{reader}", seq])


class Job:
    """A job that has begun: a camera with policy latest if `live`, otherwise a file with policy lossless."""

    def __init__(
        self, bus: Bus, stream_id: str = "cam1", *, live: bool = False, sinks: list[str] | None = None, **options: Any
    ) -> None:
        kind: dict[str, Any] = {"kind": "live", "policy": "latest"} if live else {}
        self.bus = bus
        self.stream = stream_config(stream_id, **(kind | options))
        self.keys = StreamKeys.of(stream_id)
        self.log_id = bus.begin_job(self.stream, sinks or [])

    # -- decode -------------------------------------------------------------------------------------------------------

    def writer(self) -> FrameWriter:
        """Return the writer of a decoder that holds the lease and has opened a session."""
        writer = self.bus.frame_writer(self.stream)
        assert writer.lease.try_take()
        writer.open()
        return writer

    def header(self, writer: FrameWriter) -> FrameHeader:
        """Return the header of the next frame of the writer."""
        return FrameHeader(
            stream_id=self.stream.stream_id,
            session=writer.session,
            frame_seq=writer.next_seq,
            stream_epoch=writer.epoch,
            pts_s=writer.next_seq / 25,
            captured_at_ns=None,
            clock="file",
            arrived_at_ns=0,
            decode_ms=1.0,
            max_staleness_s=None,
            min_score=0.1,
            class_ids=None,
            width=WIDTH,
            height=HEIGHT,
            source_width=WIDTH,
            source_height=HEIGHT,
            matrix=ColourMatrix.BT709,
            full_range=False,
        )

    def offer(self, writer: FrameWriter, count: int = 1, pixels: bytes = PIXELS.tobytes()) -> list[Offer]:
        """Offer `count` frames one after the other and return the replies."""
        return [writer.offer(self.header(writer), memoryview(pixels)) for _ in range(count)]

    def end(self, writer: FrameWriter) -> None:
        """Write the end of the source."""
        writer.end(
            SourceEnd(
                session=writer.session,
                stream_epoch=writer.epoch,
                last_seq=writer.next_seq - 1,
                reason="finished",
                detail="",
                num_corrupt=0,
            )
        )

    # -- infer --------------------------------------------------------------------------------------------------------

    def queue(self, name: str = "w1") -> FrameQueue:
        """Return the queue of an infer worker that reads this stream and has no pending frame."""
        queue = self.bus.frame_queue(name)
        queue.set_streams([self.stream.stream_id])
        assert queue.read_pending() is None
        return queue

    @staticmethod
    def answer(queue: FrameQueue, frames: list[QueuedFrame]) -> list[bool]:
        """Deliver empty detections for the frames. Return whether the bus accepted each of them."""
        empty = Detections.empty(WIDTH, HEIGHT)
        return [
            queue.deliver(frame, FrameDetections.pack(frame.header, empty, model="street", queue_ms=0.0, infer_ms=1.0))
            for frame in frames
        ]

    # -- track --------------------------------------------------------------------------------------------------------

    def result_writer(self) -> ResultWriter:
        """Return the log of a tracker that holds the lease and has loaded the position."""
        tracker = self.bus.result_writer(self.stream)
        assert tracker.lease.try_take()
        tracker.load()
        return tracker

    def result(self, seq: int, **changes: Any) -> AnyResult:
        """Return a frame message of this job."""
        fields = {"stream_id": self.stream.stream_id, "log_id": self.log_id}
        return result_samples.frame(seq, **(fields | changes))

    def commit(
        self, tracker: ResultWriter, seq: int, *, session: str = "", consumed: list[bytes] | None = None
    ) -> None:
        """Commit the frame message of `seq`, which follows `seq - 1`."""
        tracker.commit(
            seq_before=seq - 1,
            seq_after=seq,
            session=session,
            results=[(f"{seq}-0", self.result(seq))],
            consumed=consumed or [],
            checkpoint=b"checkpoint %d" % seq,
        )

    # -- keys in Redis ------------------------------------------------------------------------------------------------

    def frames(self) -> list[int]:
        """Return the numbers of the queued frames."""
        return [int(entry_id.split(b"-")[0]) for entry_id, _ in self.bus.client.xrange(self.keys.frames)]

    def pixel_keys(self) -> list[str]:
        """Return the keys of all stored pixels, including those without a queued frame."""
        return sorted(key.decode() for key in self.bus.client.keys("*px:*"))

    def messages(self) -> list[BusMessage]:
        """Return the messages of the stream of detections."""
        return [decode_message(fields[b"m"]) for _, fields in self.bus.client.xrange(self.keys.detections)]

    def gaps(self) -> list[tuple[int, int, str, int]]:
        """Return first number, last number, cause and epoch of each gap in the stream of detections."""
        return [
            (gap.from_seq, gap.to_seq, gap.cause, gap.stream_epoch)
            for gap in self.messages()
            if isinstance(gap, FrameGap)
        ]

    def result_ids(self) -> list[str]:
        """Return the entry IDs of the result log."""
        return [entry_id.decode() for entry_id, _ in self.bus.client.xrange(self.keys.results)]

    def results(self) -> list[AnyResult]:
        """Return the messages of the result log."""
        return [decode_result(fields[b"j"]) for _, fields in self.bus.client.xrange(self.keys.results)]

    def covered(self) -> list[int]:
        """Return every frame number that a frame or a gap of the log covers, in the order of the log."""
        numbers: list[int] = []
        for result in self.results():
            first = result.from_seq if isinstance(result, GapResult) else result.frame_seq
            numbers.extend(range(first, result.frame_seq + 1))
        return numbers

    def state(self, field: str) -> str | None:
        """Return one field of the state hash, None if it does not exist."""
        value = self.bus.client.hget(self.keys.state, field)
        return None if value is None else value.decode()
