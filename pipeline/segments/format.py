"""The format of a segment file: a header for the decoder, then the packets, each after its length.

    header length (u32) | header (MessagePack) | packet head (PACKET_HEAD) | data | packet head | data …

Times are stored in the time base of the packets; a missing time stays missing. A file that was not completed ends
with its last complete packet.
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
"""number of data bytes, flags, pts, dts"""
KEY, HAS_PTS, HAS_DTS = 1, 2, 4
PART_SUFFIX = ".part"
"""suffix of a segment that is being written"""

_HEADER_LENGTH = struct.Struct("<I")
_NAME = re.compile(r"(\d+)-(\d+)\.segment")


class SegmentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What is needed to decode the packets, and properties of the stream that are not in the packets."""

    codec: str
    extradata: bytes | None
    width: int
    height: int
    pixel_format: str | None
    time_base: tuple[int, int]
    fps: float | None
    pixel_aspect: tuple[int, int]
    """width : height of one stored pixel"""

    @classmethod
    def of(cls, packet: Any) -> SegmentHeader:
        """The header of an av video stream that is open for reading, from its first packet."""
        stream = packet.stream
        context = stream.codec_context
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        return cls(
            codec=context.codec.name,
            extradata=context.extradata,
            width=context.width,
            height=context.height,
            pixel_format=context.pix_fmt,
            time_base=Fraction(packet.time_base).as_integer_ratio(),
            fps=picture_rate(stream),
            pixel_aspect=aspect.as_integer_ratio(),
        )

    def encode(self) -> bytes:
        """The bytes at the beginning of a segment: length and MessagePack."""
        body = msgspec.msgpack.encode(self)
        return _HEADER_LENGTH.pack(len(body)) + body


def packet_head(packet: Any) -> bytes:
    """The fixed-size head that precedes the data of a packet."""
    flags = KEY if packet.is_keyframe else 0
    pts, dts = packet.pts, packet.dts
    if pts is not None:
        flags |= HAS_PTS
    if dts is not None:
        flags |= HAS_DTS
    return PACKET_HEAD.pack(packet.size, flags, pts or 0, dts or 0)


def read_segment(content: bytes) -> tuple[SegmentHeader, Iterator[Any]]:
    """The header and an iterator over the av packets of a segment. Raises ValueError if the header is incomplete."""
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
    """The file name of the n-th finished segment of an epoch; numbers start at 1."""
    return f"{epoch:06d}-{number:05d}.segment"


def finished_segments(folder: Path) -> list[tuple[int, int, Path]]:
    """(epoch, number, path) of the complete segments in a folder, oldest first; empty if there is no folder."""
    try:
        found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    except FileNotFoundError:
        return []
    return sorted((int(match[1]), int(match[2]), path) for match, path in found)
