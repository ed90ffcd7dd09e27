"""An MP4 of annotated pictures, written to NAME.part and renamed on completion. Both video writers use it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from pipeline.contract.results import FrameResult
from pipeline.errors import MaskStreamError
from pipeline.exports.files import output_error
from pipeline.exports.mp4 import TIME_BASE, Mp4File
from pipeline.exports.render import draw_result
from pipeline.source import Converter, Picture

ENCODER_THREADS = 2


class AnnotatedMp4:
    """Encodes pictures with their results drawn in. Writes `NAME.part`; `complete` renames it to `NAME`."""

    def __init__(self, path: Path, num_threads: int = ENCODER_THREADS) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._num_threads = num_threads
        self._converter = Converter()
        self._file: Mp4File | None = None
        self._last_pts = -1
        self._before_packet: Callable[[float], None] | None = None

    @property
    def begun(self) -> bool:
        """Whether the file is being written: `begin` was called, `complete` and `discard` were not."""
        return self._file is not None

    @property
    def next_s(self) -> float:
        """The time at which the last picture ends, in seconds from the start of the video."""
        return 0.0 if self._file is None else float(self._last_pts * TIME_BASE) + self._file.step_s

    def begin(self, like: Picture, fps: float | None, pixel_aspect: Fraction) -> Any:
        """Create the file, with the size and colours of the picture `like`.

        fps            pictures per second; None if unknown
        pixel_aspect   width : height of one pixel

        Returns the av OutputContainer, to which streams can be added until the first picture.
        """
        self._file = Mp4File(self._part, like.frame, (like.width, like.height), fps, pixel_aspect, self._num_threads)
        return self._file.container

    def call_before_packets(self, callback: Callable[[float], None]) -> None:
        """Call `callback` with the time of each video packet, in seconds, before the packet is written.

        The sound uses it to interleave its packets.
        """
        self._before_packet = callback

    def add(self, picture: Picture, result: FrameResult | None, time_s: float) -> None:
        """Draw the result into a picture and encode it.

        time_s   when the video shows the picture, in seconds; moved to just after the previous picture's time if it is
                 not later
        """
        if self._file is None:
            return
        bgr = self._converter.to_bgr(picture)
        if result is not None:
            draw_result(bgr, result)
        self._last_pts = max(round(time_s / TIME_BASE), self._last_pts + 1)
        self._mux(self._file.encode(bgr, self._last_pts))

    def flush(self) -> None:
        """Write the packets that the encoder still buffers."""
        if self._file is not None:
            self._mux(self._file.flush())

    def complete(self) -> None:
        """Close the file and rename it to its name; call `flush` first."""
        if self._file is not None:
            self._file.container.close()
            self._file = None
            self._part.replace(self._path)

    def discard(self) -> None:
        """Close and delete a file that is not complete; may be called at any time."""
        if self._file is not None:
            with contextlib.suppress(av.FFmpegError, OSError):
                self._file.container.close()
            self._file = None
            self._part.unlink(missing_ok=True)

    @contextlib.contextmanager
    def translating_errors(self, clean_up: Callable[[], None]) -> Iterator[None]:
        """Call `clean_up` if the block raises, and turn errors of the system and of FFmpeg into OutputError."""
        try:
            yield
        except MaskStreamError:
            clean_up()
            raise
        except (av.FFmpegError, OSError) as error:
            clean_up()
            raise output_error(self._path, error) from None

    def _mux(self, packets: Iterator[Any]) -> None:
        if self._file is None:
            return
        for packet in packets:
            if self._before_packet is not None and packet.dts is not None:
                self._before_packet(float(packet.dts * packet.time_base))
            self._file.container.mux(packet)
