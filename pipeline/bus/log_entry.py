"""Entries of a result log: ids, decoding, and the position at which a reader starts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from pipeline.contract.results import SCHEMA_VERSION, AnyResult, decode_result
from pipeline.errors import BusError, UsageError

EntryId: TypeAlias = tuple[int, int]
"""(frame_seq, n): the entry's id in Redis is `frame_seq-n`"""
Start: TypeAlias = Literal["now", "start"] | int | str

_ENTRY_ID = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One message of a result log, with its id and its JSON."""

    entry_id: EntryId
    payload: bytes
    message: AnyResult


class _SchemaOnly(msgspec.Struct):
    schema: int = 0


def decode_entry(raw_id: bytes, fields: dict[bytes, bytes], key: str, server: str) -> LogEntry:
    """Decode an entry of the result log `key`.

    Raises BusError, naming `key` and `server`, if the entry is not a message of a schema that this program knows.
    """
    payload = fields.get(b"j", b"")
    try:
        message = decode_result(payload)
    except msgspec.DecodeError as error:
        _refuse_newer(_schema_of(payload), key, server)
        raise BusError(f"entry {raw_id.decode()} of {key} on {server} is not a result: {error}") from None
    _refuse_newer(message.schema, key, server)
    seq, _, index = raw_id.decode().partition("-")
    return LogEntry((int(seq), int(index)), payload, message)


def parse_start(start: Start) -> EntryId | None:
    """The id after which reading starts; None for "now". Raises UsageError for anything else than a `Start`."""
    if start == "now":
        return None
    if start == "start":
        return (0, 0)
    match = _ENTRY_ID.fullmatch(str(start))
    if match is None:
        raise UsageError(f"start {start!r}: expected now, start, a frame number, or the id of an entry such as 42-1")
    return int(match[1]), int(match[2] or 0)


def _refuse_newer(schema: int, key: str, server: str) -> None:
    if schema > SCHEMA_VERSION:
        raise BusError(
            f"{key} on {server} is written in result schema {schema}, this program reads {SCHEMA_VERSION}: install a "
            "newer maskstream"
        )


def _schema_of(payload: bytes) -> int:
    """The field `schema` of a message that could not be decoded; 0 if there is none."""
    try:
        return msgspec.json.decode(payload, type=_SchemaOnly).schema
    except msgspec.DecodeError:
        return 0
