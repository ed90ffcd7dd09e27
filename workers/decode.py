"""The decode worker: turns one source into numbered frames on the bus.

Each stream has a process of its own, so that a crash inside a decoder library affects one stream only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.backoff import Backoff
from pipeline.bus import Bus, Offer, Opened
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import EndReason
from pipeline.contract.wire import FrameHeader, SourceEnd
from pipeline.errors import AccessDeniedError, BusError, JobLostError, PositionMovedError, SourceError
from pipeline.models.registry import bus_hw
from pipeline.models.weights_table import spec_of_stream
from pipeline.redaction import redact_url
from pipeline.segments import SegmentWriter
from pipeline.source import Converter, Picture, Reader, Selection, open_source
from pipeline.source.release import CATCH_UP, ReleaseClock
from workers.base import WORKER_DRAIN_S, Life, Reconnecting, log, log_outage
from workers.roles.decode import DecodeTask

LEASE_POLL_S = 0.25
FINISH_S = 10.0
"""maximum time that a decoder without a supervisor waits for the last results after a request to stop; it must be less
than WORKER_DRAIN_S"""
FULL_FIRST_PAUSE_S = 0.005
FULL_MAX_PAUSE_S = 0.1
"""pauses while the bus is full; with 40 decoders on two cores, constant pauses of 5 ms took more CPU time than the
model"""
STATUS_INTERVAL_S = 0.5
REOPEN_FIRST_PAUSE_S = 0.5
REOPEN_MAX_PAUSE_S = 15.0
"""pauses before a live source is opened again"""
DENIED_FIRST_PAUSE_S = 30.0
DENIED_MAX_PAUSE_S = 600.0
"""pauses between attempts after the server of a source refused the user or the password"""
SOURCE_TIMEOUT_S = 5.0
"""maximum time a network source may send nothing; a request to stop takes effect at the latest after it"""


def run(task: DecodeTask, life: Life) -> None:
    """Decode until the source ends or the worker is asked to stop. Raises SourceError if a file cannot be read."""
    bus = Bus(task.redis_url)
    stream = bus.stream(task.stream_id)
    if stream is None:
        raise BusError(f"no stream {task.stream_id!r} on this Redis: start it with a source")
    if stream.live and task.result_ttl_s is not None:
        log.info("this decoder stores no pictures: a camera's video needs decoder and sink in one job on one host")
    failure: SourceError | None = None
    try:
        Decoder(task, bus, stream, life).run()
    except SourceError as error:
        failure = error
    if task.result_ttl_s is not None:
        _finish(bus, task.stream_id, task.result_ttl_s, life)
    if failure is not None:
        raise failure


def _finish(bus: Bus, stream_id: str, result_ttl_s: int, life: Life) -> None:
    """Wait until the last result is committed and every required reader has read it, then remove the stream from Redis.

    A worker that is asked to stop waits at most FINISH_S, and leaves the stream in Redis if that was not enough.
    Raises JobLostError.
    """
    log.info("waiting for the last results of %s; a second Ctrl-C leaves at once", stream_id)
    reconnecting = Reconnecting(life)
    while True:
        status = reconnecting(lambda: bus.stream_status(stream_id, None))
        if status.is_over and all(seq >= status.seq for seq in status.sinks.values()):
            break
        if reconnecting(lambda: bus.log_id(stream_id)) is None:
            raise JobLostError(f"Redis no longer holds the job of {stream_id}")
        if life.drain_left_s <= WORKER_DRAIN_S - FINISH_S:
            log.warning(
                "leaving before the last results of %s: %d of %d frames have one; check that infer, track and the "
                "readers of the log run (maskstream status)",
                stream_id,
                status.seq,
                status.last_seq,
            )
            return
        time.sleep(LEASE_POLL_S)
    reconnecting(lambda: bus.finish_job(stream_id, result_ttl_s))


class Decoder:
    """Decodes the source of one stream while it holds the stream's `decode` lease."""

    def __init__(self, task: DecodeTask, bus: Bus, stream: StreamConfig, life: Life) -> None:
        self._bus = bus
        self._stream = stream
        self._life = life
        self._writer = bus.frame_writer(stream)
        self._reconnecting = Reconnecting(life)
        self._converter = Converter(task.num_threads)
        self._crashed_on = frozenset(task.skipped_seqs)
        self._segments = SegmentWriter(Path(stream.segment_folder)) if stream.segment_folder else None
        self._num_corrupt = 0
        self._num_offered = 0
        self._num_reconnects = 0
        self._status_at_s = 0.0
        self._model = spec_of_stream(stream)
        self._is_live = stream.live
        """whether the source cannot wait; a live kind turns out to be finite when it is opened (HLS, RTSP playback)"""

    def run(self) -> None:
        """Wait for the lease, decode until the source has ended, and give the lease back."""
        while not self._reconnecting(self._writer.lease.try_take):
            if self._life.stopping:
                return
            self._life.sleep(LEASE_POLL_S)
        self._set_status(source=redact_url(self._stream.source), phase="connecting")
        try:
            if self._stream.live:
                self._run_live()
            else:
                self._run_file()
        finally:
            self._reconnecting(self._writer.lease.release)

    def _run_file(self) -> None:
        """Decode a file from the frame after the last committed one to its end.

        The file is opened again at that frame if Redis lost its latest writes. Raises SourceError.
        """
        while True:
            try:
                opened = self._reconnecting(self._writer.open)
                with self._open_source() as reader:
                    reason: EndReason = "finished" if self._feed(reader, opened.seq) else "stopped"
                if reader.unreadable:
                    log.warning("%s: %s", self._stream.stream_id, reader.unreadable)
                if reader.truncation:
                    reason = "truncated"
                    self._set_status(error=reader.truncation)
                self._end(reason, reader.truncation or reader.unreadable)
                return
            except PositionMovedError as moved:
                if self._reconnecting(lambda: self._bus.source_ended(self._stream.stream_id)):
                    return  # an earlier process of this worker wrote the end
                log_outage("Redis lost its latest writes, decoding again from the last result: %s", moved)
            except SourceError as error:
                self._fail(error)
                raise

    def _run_live(self) -> None:
        """Decode a live source. Open it again after every loss, without limit; the pauses grow until frames arrive."""
        opened, problem, is_denied = False, "", False
        backoff = Backoff(REOPEN_FIRST_PAUSE_S, REOPEN_MAX_PAUSE_S)
        while not self._life.stopping:
            try:
                with self._keeping_packets(), self._open_source() as reader:
                    begin = self._begin_session(reader)
                    opened = True
                    if self._segments is not None:
                        self._segments.begin(begin.epoch)
                    over = self._feed(reader, None if self._is_live else begin.seq)
                if self._life.stopping or over:
                    break
                problem = "the source ended"
                backoff.reset()
            except PositionMovedError as moved:
                log_outage("Redis lost its latest writes, opening the source again: %s", moved)
                continue
            except SourceError as error:
                if not self._is_live or (self._stream.fail_fast and not opened):
                    if not opened:
                        self._reconnecting(self._writer.open)
                    self._fail(error)
                    raise
                problem = str(error)
                if self._num_offered:
                    backoff.reset()
                if isinstance(error, AccessDeniedError) and not is_denied:
                    # Cameras lock accounts after a few attempts with a wrong password.
                    backoff, is_denied = Backoff(DENIED_FIRST_PAUSE_S, DENIED_MAX_PAUSE_S), True
            self._num_offered = 0
            self._num_reconnects += 1
            pause_s = backoff.next_s()
            log.warning("%s: %s; connecting again in %.1f s", self._stream.stream_id, problem, pause_s)
            self._set_status(phase="stalled", error=problem, num_reconnects=self._num_reconnects)
            self._rest(pause_s)
        if opened:
            self._end("stopped" if self._life.stopping else "finished", "")
        else:
            self._reconnecting(self._writer.open)
            self._end("stopped", f"the source was never reached: {problem}" if problem else "")

    def _begin_session(self, reader: Reader) -> Opened:
        """Begin a session for a source that is live by its kind, as the opened source turns out to be."""
        self._is_live = not reader.is_finite
        if self._stream.policy == "auto":
            self._writer.policy = "latest" if self._is_live else "lossless"
        return self._reconnecting(lambda: self._writer.open("live" if self._is_live else "file"))

    def _open_source(self) -> Reader:
        return open_source(
            self._stream.source,
            self._stream.kind,
            rtsp_transport=self._stream.rtsp_transport,
            timeout_s=SOURCE_TIMEOUT_S,
            on_packet=self._segments.take if self._segments is not None else None,
        )

    @contextlib.contextmanager
    def _keeping_packets(self) -> Iterator[None]:
        """A context around one connection, at whose end the segments of the connection are closed."""
        try:
            yield
        finally:
            if self._segments is not None:
                self._segments.end()

    def _feed(self, reader: Reader, committed_seq: int | None) -> bool:
        """Put the selected pictures of a source on the bus; returns whether its end, or `max_frames`, was reached.

        committed_seq   pictures up to this number have results already and are only counted; None for a live source
        """
        stream = self._stream
        corrupt_before = self._num_corrupt
        max_frames = stream.max_frames
        if max_frames is not None and committed_seq is None:  # a live source counts over all its connections
            max_frames = max(max_frames - (self._writer.next_seq - 1), 0)
        selection = Selection(stream.stride, stream.max_fps, max_frames)
        self._set_status(
            phase="live",
            error="",
            width=reader.width,
            height=reader.height,
            num_frames_expected="" if self._is_live else _num_expected(reader, stream),
        )
        release = ReleaseClock(1.0 if reader.waits_for_reader else CATCH_UP)
        start_s, first_pts_s = time.monotonic(), None
        decode_from_s = time.perf_counter()
        for picture in reader:
            if self._life.stopping:
                return False
            self._num_corrupt = corrupt_before + reader.num_corrupt
            number = selection.number(picture.pts_s)
            if number is not None and (committed_seq is None or number > committed_seq):
                decoded_s = time.monotonic()
                wait_s = 0.0
                if self._writer.policy == "latest" and self._is_live:
                    wait_s = release.schedule(picture.pts_s, decoded_s)
                elif self._writer.policy == "latest":
                    first_pts_s = picture.pts_s if first_pts_s is None else first_pts_s
                    wait_s = picture.pts_s - first_pts_s - (decoded_s - start_s)
                if wait_s > 0:
                    self._rest(wait_s)
                    arrived_s = time.monotonic()
                    decode_from_s += arrived_s - decoded_s
                else:
                    arrived_s = picture.arrived_monotonic_s
                if number in self._crashed_on and not self._is_live:
                    self._writer.skip("error", "the decoder crashed on this frame")
                else:
                    self._offer(picture, arrived_s, decode_from_s)
                self._refresh_status()
            if selection.done:
                return True
            decode_from_s = time.perf_counter()
        self._num_corrupt = corrupt_before + reader.num_corrupt
        return reader.is_finite

    def _offer(self, picture: Picture, arrived_s: float, decode_from_s: float) -> None:
        """Put one picture on the bus.

        With too many frames in flight or a full log, policy lossless waits and policy latest skips this picture. Where
        too many frames are undelivered, offer.lua drops the oldest.
        """
        stream = self._stream
        height, width = bus_hw(self._model, picture.display_hw)
        frame = self._converter.to_i420(picture, (width, height))
        age_s = time.monotonic() - arrived_s
        header = FrameHeader(
            stream_id=stream.stream_id,
            session=self._writer.session,
            frame_seq=self._writer.next_seq,
            stream_epoch=self._writer.epoch,
            pts_s=picture.pts_s,
            captured_at_ns=picture.captured_at_ns,
            clock=picture.clock,
            arrived_at_ns=self._reconnecting(self._bus.clock.now_ns) - int(age_s * 1e9),
            decode_ms=(time.perf_counter() - decode_from_s) * 1000,
            max_staleness_s=stream.max_staleness_s if self._writer.policy == "latest" else None,
            min_score=stream.score_floor,
            class_ids=stream.class_ids,
            width=frame.width,
            height=frame.height,
            source_width=frame.source_width,
            source_height=frame.source_height,
            matrix=frame.matrix,
            full_range=frame.full_range,
            source_name=picture.source_name,
        )
        backoff = Backoff(FULL_FIRST_PAUSE_S, FULL_MAX_PAUSE_S)
        while self._reconnecting(lambda: self._writer.offer(header, frame.data.data)) is Offer.FULL:
            if self._life.stopping:
                return
            if self._writer.policy == "latest":
                self._reconnecting(lambda: self._writer.skip("overflow", "the bus was full"))
                return
            self._refresh_status()
            self._life.sleep(backoff.next_s())
        self._num_offered += 1

    def _rest(self, seconds: float) -> None:
        """Sleep and keep the lease; return early if the worker is asked to stop."""
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 and not self._life.stopping:
            self._reconnecting(self._writer.lease.beat)
            self._life.sleep(min(left_s, LEASE_POLL_S))

    def _end(self, reason: EndReason, detail: str) -> None:
        """Write the end of the source to the bus."""
        self._set_status(num_corrupt=self._num_corrupt)
        self._reconnecting(
            lambda: self._writer.end(
                SourceEnd(
                    session=self._writer.session,
                    stream_epoch=self._writer.epoch,
                    last_seq=self._writer.next_seq - 1,
                    reason=reason,
                    detail=detail,
                    num_corrupt=self._num_corrupt,
                )
            )
        )

    def _fail(self, error: SourceError) -> None:
        """End the stream as failed; the results of the frames before the error stay."""
        self._set_status(error=str(error))
        self._end("failed", str(error))

    def _refresh_status(self) -> None:
        """Write the counters to the status, at most every STATUS_INTERVAL_S."""
        if time.monotonic() >= self._status_at_s:
            self._status_at_s = time.monotonic() + STATUS_INTERVAL_S
            self._set_status(num_corrupt=self._num_corrupt)

    def _set_status(self, **fields: str | int) -> None:
        self._reconnecting(lambda: self._bus.set_status(self._stream.stream_id, **fields))


def _num_expected(reader: Reader, stream: StreamConfig) -> int | str:
    """Number of frames that the file will probably yield after selection; empty if its container does not say."""
    expected = reader.num_frames_expected
    if expected is not None:
        expected = -(-expected // stream.stride)
        if stream.max_fps and reader.fps and reader.fps / stream.stride > stream.max_fps:
            expected = int(expected * stream.max_fps * stream.stride / reader.fps)
    if stream.max_frames is not None:
        expected = min(expected or stream.max_frames, stream.max_frames)
    return "" if expected is None else expected
