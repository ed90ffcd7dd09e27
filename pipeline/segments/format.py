"""A segment on disk: what the decoder has to know, then the packets, each behind its length.

    header length (u32) | header (MessagePack) | packet head (PACKET_HEAD) | data | packet head | data …

Times are kept in the stream's own time base, and a time that is missing stays missing. A file that was not written to
its end ends with its last whole packet.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import msgspec

from pipeline.source.video import picture_rate

PACKET_HEAD = struct.Struct("<IBqq")
"""bytes of data, flags, pts, dts"""
KEY, HAS_PTS, HAS_DTS = 1, 2, 4
PART_SUFFIX = ".part"
"""of a segment that is still written"""

_HEADER_LENGTH = struct.Struct("<I")
_NAME = re.compile(r"(\d+)-(\d+)\.segment")


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder and its pictures need besides the packets."""

    codec: str
    extradata: bytes | None
    width: int
    height: int
    pixel_format: str | None
    time_base: tuple[int, int]
    fps: float | None
    pixel_aspect: tuple[int, int]
    """width : height of a pixel as stored"""

    @classmethod
    def of(cls, stream: Any) -> SegmentHeader:
        """From an av video stream that was opened for reading."""
        context = stream.codec_context
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return cls(
            codec=context.codec.name,
            extradata=context.extradata,
            width=context.width,
            height=context.height,
            pixel_format=context.pix_fmt,
            time_base=stream.time_base.as_integer_ratio(),
            fps=picture_rate(stream),
            pixel_aspect=aspect.as_integer_ratio(),
        )

    def encode(self) -> bytes:
        """As it stands at the beginning of a segment."""
        body = msgspec.msgpack.encode(self)
        return _HEADER_LENGTH.pack(len(body)) + body


def packet_head(packet: Any) -> bytes:
    """What stands in front of the data of a packet."""
    flags = KEY if packet.is_keyframe else 0
    pts, dts = packet.pts, packet.dts
    if pts is not None:
        flags |= HAS_PTS
    if dts is not None:
        flags |= HAS_DTS
    return PACKET_HEAD.pack(packet.size, flags, pts or 0, dts or 0)


def read_segment(content: bytes) -> tuple[SegmentHeader, Iterator[Any]]:
    """The header and the av packets. Raises ValueError for a file that holds not even a whole header."""
    if len(content) < _HEADER_LENGTH.size:
        raise ValueError(f"expected a segment, got {len(content)} bytes")
    (length,) = _HEADER_LENGTH.unpack_from(content)
    begin = _HEADER_LENGTH.size + length
    try:
        header = msgspec.msgpack.decode(memoryview(content)[_HEADER_LENGTH.size : begin], type=SegmentHeader)
    except msgspec.DecodeError as error:
        raise ValueError(f"expected a segment: {error}") from None
    return header, _packets(content, begin, Fraction(*header.time_base))


def _packets(content: bytes, begin: int, time_base: Fraction) -> Iterator[Any]:
    data = memoryview(content)
    while begin + PACKET_HEAD.size <= len(data):
        size, flags, pts, dts = PACKET_HEAD.unpack_from(data, begin)
        begin += PACKET_HEAD.size
        if begin + size > len(data):
            return
        packet: Any = av.Packet(data[begin : begin + size])  # type: ignore[arg-type]  # any buffer will do
        packet.time_base = time_base
        packet.pts = pts if flags & HAS_PTS else None
        packet.dts = dts if flags & HAS_DTS else None
        packet.is_keyframe = bool(flags & KEY)
        yield packet
        begin += size


def segment_name(epoch: int, number: int) -> str:
    """The name of a finished segment: the n-th of its epoch, from 1."""
    return f"{epoch:06d}-{number:05d}.segment"


def finished_segments(folder: Path) -> list[tuple[int, int, Path]]:
    """(epoch, number, path) of the segments in a folder that are complete, the oldest first; none without a folder."""
    try:
        found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    except FileNotFoundError:
        return []
    return sorted((int(match[1]), int(match[2]), path) for match, path in found)
