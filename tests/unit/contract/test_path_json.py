"""JSON of structs with file names that are not UTF-8."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from support.bus_parts import stream_config

from pipeline.contract.config import StreamConfig
from pipeline.contract.path_json import decode_with_paths, encode_with_paths

NAMES = [b"caf\xe9.mp4", b"\xff\xfe", "tsch\u00fc\u00df \U0001f3a5.mp4".encode(), b'quote".mp4', b"line\nend.mp4"]


class Paths(msgspec.Struct):
    folder: Path
    text: str


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_every_file_name_survives_a_round_trip_on_one_ascii_line(name: bytes) -> None:
    stream = stream_config("cam1", source=os.fsdecode(name))
    payload = encode_with_paths(stream)
    assert payload.isascii()
    assert b"\n" not in payload
    assert decode_with_paths(payload, StreamConfig) == stream
    paths = Paths(Path(os.fsdecode(name)), "x")
    assert decode_with_paths(encode_with_paths(paths), Paths) == paths


def test_other_payloads_are_refused() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        decode_with_paths(b"no JSON", Paths)
    with pytest.raises(ValueError, match="Expected `object`, got `array`"):
        decode_with_paths(b"[]", Paths)
    with pytest.raises(ValueError, match="missing required field `text`"):
        decode_with_paths(b'{"folder": "x"}', Paths)
