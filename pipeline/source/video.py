"""Reads video files, network streams and cameras with FFmpeg."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import av
from av.stream import Disposition

from pipeline.contract.results import ClockOrigin
from pipeline.errors import SourceError
from pipeline.redaction import redact_url
from pipeline.source.announced_end import AnnouncedEnd
from pipeline.source.container import RtspTransport, failure_text, is_remote, open_container
from pipeline.source.packet_times import PacketTimes, has_invented_times
from pipeline.source.picture import MediaClock, Orientations
from pipeline.source.reader import Decoded, OpenOptions, PacketTap, Reader

# Some containers state the rate of their clock as the frame rate. A rate above this limit is such a rate.
MAX_FPS = 1000.0
# Bounds the memory for capture times. A decoder delays far fewer pictures.
MAX_CAPTURE_TIMES = 256
# A decoder may report damage each time it is flushed.
MAX_FLUSH_ATTEMPTS = 64
AV_NS_PER_US = 1000
STILLS = Disposition.still_image | Disposition.timed_thumbnails
PICTURE_CODECS = frozenset({"mjpeg", "png", "bmp", "gif", "webp", "tiff"})


def picture_rate(stream: Any) -> float | None:
    """Return the average frame rate in frames per second, or None if it is unknown.

    The rate of the container is preferred to the rate of the codec, except in a format without timestamps.
    """
    rates = [stream.average_rate, stream.guessed_rate]
    if has_invented_times(stream.container.format):
        rates.reverse()
    rate = rates[0] or rates[1]
    return float(rate) if rate and 0 < rate <= MAX_FPS else None


class VideoReader(Reader):
    """Reads one video stream of a source. If the source has several, `_stream_rank` selects the stream.

    Damaged pictures, and packets that the decoder rejects, are counted in `num_corrupt` and skipped. Pictures that
    FFmpeg discards (outside an edit list) are not counted. The pictures of a truncated file on disk end where the data
    end. A truncated source on the network raises SourceError.
    """

    def __init__(
        self,
        source: str,
        *,
        live: bool,
        rtsp_transport: RtspTransport,
        timeout_s: float,
        on_packet: PacketTap | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._live = live
        self._on_packet = on_packet
        self._capture_clock = CaptureClock() if live else None
        self._orientations = Orientations()
        with ExitStack() as resources:
            self._container = open_container(source, resources, rtsp_transport=rtsp_transport, timeout_s=timeout_s)
            self._stream = self._choose_stream(source)
            self._read_header()
            # With several threads, FFmpeg may return a picture before it detects that the picture is damaged. Two
            # readers of one file would then number the pictures differently (measured: 5 of 40 readings of a truncated
            # H.264 file).
            self._stream.thread_count = 1
            self._resources = resources.pop_all()
        super().__init__(source)

    def close(self) -> None:
        """Close the file or the connection."""
        self._resources.close()

    def _choose_stream(self, source: str) -> Any:
        """Return the video stream with the lowest `_stream_rank`. Raises SourceError if there is no video stream."""
        streams = self._container.streams
        videos = [stream for stream in streams.video if not stream.disposition & Disposition.attached_pic]
        if videos:
            return min(videos, key=_stream_rank)
        kinds = {"a cover picture" if stream.type == "video" else stream.type for stream in streams}
        found = f"only {' and '.join(sorted(kinds, key=len))}" if kinds else "no stream at all"
        raise SourceError(f"{redact_url(source)} holds no video: found {found}; expected a file with pictures")

    def _read_header(self) -> None:
        stream, container = self._stream, self._container
        self.fps = picture_rate(stream)
        self._packet_times = PacketTimes(stream, is_live=self._live)
        self.time_offsets_s = self._packet_times.offsets_s
        self.sample_aspect_ratio = Fraction(stream.sample_aspect_ratio or 1)
        self.has_audio = bool(container.streams.audio)
        self.waits_for_reader = container.format.name == "hls"
        duration_s = container.duration / av.time_base if container.duration else None
        self.is_finite = not self._live or duration_s is not None
        self._announced_end = AnnouncedEnd(container, stream, self.fps)
        duration_s = self._announced_end.duration_s or duration_s
        if stream.frames:
            self.num_frames_expected = stream.frames
        elif duration_s and duration_s > 0 and self.fps:
            self.num_frames_expected = max(1, round(duration_s * self.fps))
        read = {stream.index for stream in self._announced_end.streams}
        for other in container.streams:
            if other.index not in read:
                other.discard = av.stream.Discard.all

    def _no_picture_reason(self) -> str:
        codec = self._stream.codec_context.name
        return f": none of its {codec} data could be decoded; expected a whole video file"

    def _decode(self) -> Iterator[Decoded]:
        media_clock = MediaClock(self.fps, self._stream.time_base)
        clock: ClockOrigin = "host" if self._live else "file"
        num_frames = 0
        for frame in self._frames():
            if frame.is_corrupt:
                self.num_corrupt += 1
                continue
            pts_s = media_clock.of(frame)
            captured_at_ns = self._capture_clock.of(frame.pts, pts_s) if self._capture_clock else None
            orientation = self._orientations.of(frame)
            num_frames += 1
            yield Decoded(frame, pts_s, orientation, captured_at_ns, clock if captured_at_ns is None else "rtcp")
        self._check_end(num_frames)

    def _check_end(self, num_frames: int) -> None:
        """Set `truncation` of a file that ends early. Raises SourceError for a source on the network."""
        end = self._announced_end
        if end.is_reached:
            return
        if is_remote(self.source):
            raise SourceError(
                f"{redact_url(self.source)} broke off: {end.read_s:.1f} of {end.duration_s or 0.0:.1f} s received; "
                "check the server and the network, and run the job again"
            )
        expected = f"{end.num_frames}" if end.num_frames else f"about {self.num_frames_expected}"
        self.truncation = f"{num_frames} of {expected} frames: the file ends early"

    def _frames(self) -> Iterator[Any]:
        """Yield every frame that the decoder returns, damaged or not."""
        for packet in self._packets():
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self.num_corrupt += 1
        context = self._stream.codec_context
        for _ in range(MAX_FLUSH_ATTEMPTS):
            try:
                yield from context.decode(None)
                return
            except av.error.EOFError:
                return
            except av.FFmpegError:
                self.num_corrupt += 1

    def _packets(self) -> Iterator[Any]:
        """Yield the video packets that hold data. An empty packet would flush the decoder."""
        try:
            for packet in self._container.demux(self._announced_end.streams):
                is_video = packet.stream_index == self._stream.index
                if is_video and packet.size:
                    self._packet_times.correct(packet)
                self._announced_end.note(packet, is_video=is_video)
                if packet.size == 0 or not is_video:
                    continue
                if self._capture_clock:
                    self._capture_clock.note(packet)
                if self._on_packet:
                    self._on_packet(packet)
                yield packet
        except av.error.InvalidDataError as error:
            if is_remote(self.source):
                raise self._broken_off(error) from error
        except (av.FFmpegError, OSError) as error:
            raise self._broken_off(error) from error

    def _broken_off(self, error: Exception) -> SourceError:
        return SourceError(failure_text(self.source, "broke off", error, "", self._timeout_s))


def _stream_rank(stream: Any) -> tuple[bool, bool, bool, int]:
    """Return the sort key of a video stream. The stream with the lowest key is read.

    Moving pictures precede still images, default streams precede other streams, video codecs precede image codecs, and
    a higher resolution precedes a lower one. The codec matters because some formats mark no still image and make every
    stream a default stream.
    """
    context = stream.codec_context
    is_still = bool(stream.disposition & STILLS) or stream.frames == 1
    is_default = bool(stream.disposition & Disposition.default)
    return is_still, not is_default, context.name in PICTURE_CODECS, -context.width * context.height


def open_file(source: str, options: OpenOptions) -> Reader:
    """Open a video file or a finite video on the network. Raises SourceError."""
    return VideoReader(source, live=False, **options._asdict())


def open_live(source: str, options: OpenOptions) -> Reader:
    """Open a camera or a live stream. Raises SourceError."""
    return VideoReader(source, live=True, **options._asdict())


class CaptureClock:
    """Computes the capture time of each picture from the RTCP sender reports of the camera.

    From about the first report on, FFmpeg attaches the time to packets as side data (AVProducerReferenceTime: int64
    microseconds of UTC, int32 flags). The first such time is ignored: a picture is complete only when the next picture
    begins, so FFmpeg attaches the time of the following picture to the first packet. After the first known time, the
    capture time of a picture without side data is extrapolated with its pts_s.
    """

    def __init__(self) -> None:
        self._times_ns: OrderedDict[int, int] = OrderedDict()
        self._saw_first = False
        self._last: tuple[float, int] | None = None

    def note(self, packet: Any) -> None:
        """Store the capture time that a packet carries, if any."""
        if packet.pts is None or not packet.has_sidedata("prft"):
            return
        if not self._saw_first:
            self._saw_first = True
            return
        (wallclock_us,) = struct.unpack_from("=q", bytes(packet.get_sidedata("prft")))
        self._times_ns[packet.pts] = wallclock_us * AV_NS_PER_US
        if len(self._times_ns) > MAX_CAPTURE_TIMES:
            self._times_ns.popitem(last=False)

    def of(self, pts: int | None, pts_s: float) -> int | None:
        """Return the capture time of the picture at `pts`, UTC in nanoseconds; None before the first report."""
        captured_at_ns = self._times_ns.pop(pts, None) if pts is not None else None
        if captured_at_ns is None and self._last is not None:
            last_pts_s, last_ns = self._last
            captured_at_ns = last_ns + round((pts_s - last_pts_s) * 1e9)
        if captured_at_ns is not None:
            self._last = (pts_s, captured_at_ns)
        return captured_at_ns
