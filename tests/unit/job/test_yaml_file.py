"""The configuration file, the flags that override it, and its JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from support.paths import ROOT

from pipeline.contract import defaults
from pipeline.contract.config import STREAM_DEFAULTS, JobConfig, StreamEntry
from pipeline.errors import ConfigError
from pipeline.job.yaml_file import config_json_schema, load_config, parse_config, with_flags

REFERENCE = "expected ${NAME} or ${NAME:default} with a name of letters, digits and _"
ENVIRONMENT = {
    "URL": "rtsp://user:secret@10.0.0.7/1",
    "PASSWORD": "p@ss: word#1",
    "SCORE": "0.25",
    "YEAR": "2024",
    "EMPTY": "",
    "NESTED": "${URL}",
}


def parse(text: str) -> JobConfig:
    return parse_config(text, "c.yaml", ENVIRONMENT)


def error_of(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the file ---------------------------------------------------------------------------------------------------------


def test_every_field_can_be_given() -> None:
    text = """
        conf: 0.4
        min_score: 0.3
        track: false
        classes: [person, car]
        drop_policy: latest
        max_staleness_s: 1
        stride: 2
        max_fps: 12.5
        max_frames: 1000
        rtsp_transport: udp
        fail_fast: true
        streams:
          door: {source: "rtsp://10.0.0.7/1", conf: 0.6, classes: [person]}
          1.yard_2: {source: yard.mp4}
        model: street
        weights: mine.safetensors
        device: cuda:1
        precision: fp16
        batch: 8
        batch_timeout_ms: 5
        workers: 2
        redis_url: redis://localhost
        redis_memory_mb: 2048
        max_in_flight: 32
        result_ttl_s: 60
        output: out
        overwrite: true
        save: [jsonl]
        readers: [archive]
        """
    config = parse(text)
    fields = msgspec.structs.asdict(config)
    assert fields.keys() == yaml.safe_load(text).keys()
    assert all(value != getattr(JobConfig(), name) for name, value in fields.items())
    assert config.streams["door"].conf == 0.6
    assert config.streams["door"].stride is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}"], ids=["empty", "comment", "marker", "braces"])
def test_an_empty_file_gives_the_defaults(text: str) -> None:
    assert parse(text) == JobConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conf: 1.5", "c.yaml:1: conf: expected a number from 0 to 1, got 1.5"),
        ("conf: '0.5'", "c.yaml:1: conf: expected a number from 0 to 1, got '0.5'"),
        ("conf: yes", "c.yaml:1: conf: expected a number from 0 to 1, got true"),
        ("conf: .nan", "c.yaml:1: conf: expected a finite number, got nan"),
        ("max_fps: .inf", "c.yaml:1: max_fps: expected a finite number, got inf"),
        ("max_fps: 0", "c.yaml:1: max_fps: expected a number above 0, got 0"),
        ("batch: 1.5", "c.yaml:1: batch: expected a whole number, 1 or more, got 1.5"),
        ("batch:", "c.yaml:1: batch: expected a whole number, 1 or more, got nothing"),
        ("drop_policy: oldest", "c.yaml:1: drop_policy: expected one of auto, latest, lossless, got 'oldest'"),
        ("device: gpu", "c.yaml:1: device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("output: 12", "c.yaml:1: output: expected text, got 12"),
        ("classes: person", "c.yaml:1: classes: expected a list of one or more, each text, got 'person'"),
        ("classes: []", "c.yaml:1: classes: expected a list of one or more, each text, got a list of 0"),
        ("\nsave:\n  - jsonl\n  - mp4", "c.yaml:4: save[1]: expected one of jsonl, video, got 'mp4'"),
        ("readers: [a b]", "c.yaml:1: readers[0]: expected 1 to 64 of the characters A-Z a-z 0-9 _ . -, got 'a b'"),
        ("streams:", "c.yaml:1: streams: expected a mapping, got nothing"),
        ("streams:\n  a: x.mp4", "c.yaml:2: streams.a: expected a mapping, got 'x.mp4'"),
        ("streams:\n  a: {conf: 1}", "c.yaml:2: streams.a.source: expected text, found nothing"),
        (
            "streams:\n  ok: {source: x}\n  a:\n    source: y\n    conf: 2",
            "c.yaml:5: streams.a.conf: expected a number from 0 to 1, got 2",
        ),
        (
            "streams:\n  front door: {source: x}",
            "c.yaml:2: streams.front door: expected a stream id of 1 to 64 of the characters A-Z a-z 0-9 _ . -",
        ),
        ("- conf", "c.yaml:1: the file: expected a mapping, got a list of 1"),
        ("3", "c.yaml:1: the file: expected a mapping, got 3"),
    ],
    ids=lambda value: "" if value.startswith("c.yaml") else value.strip().replace("\n", ","),
)
def test_a_wrong_value_is_reported_with_its_place_and_the_expected_values(text: str, expected: str) -> None:
    assert error_of(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cnf: 0.3", "c.yaml:1: cnf: unknown field with the value 0.3: did you mean conf?"),
        ("drop-policy: latest", "drop-policy: unknown field with the value 'latest': did you mean drop_policy?"),
        (
            "streams:\n a: {source: x, strid: 2}",
            "2: streams.a.strid: unknown field with the value 2: did you mean stride?",
        ),
        (
            "streams:\n a:\n  source: x\n  model: y",
            "4: streams.a.model: unknown field with the value 'y': it is an option of the whole job: "
            "set it at the top of the file",
        ),
        (
            "source: x",
            "source: unknown field with the value 'x': it is an option of a stream: set it under streams.NAME",
        ),
        ("zzz: {a: 1}", "zzz: unknown field with the value a mapping: expected one of conf, min_score, track,"),
    ],
    ids=["typo", "dashes", "typo in a stream", "not per stream", "not for all", "unlike any"],
)
def test_an_unknown_field_gets_a_hint(text: str, expected: str) -> None:
    assert expected in error_of(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("conf: 0.1\nbatch: a: b", "c.yaml:2:9: mapping values are not allowed here"),
        ("conf:\n\t0.1", "c.yaml:2:1: "),
        ("classes: [a", "c.yaml:1:12: "),
        ("conf: !env X", "c.yaml:1:7: could not determine a constructor for the tag '!env'"),
        ("conf: *x", "c.yaml:1:7: found undefined alias 'x'"),
        ("conf: 0.1\n---\nconf: 0.2", "c.yaml:2:1: expected a single document"),
        ("conf: 0.1\nconf: 0.2", "c.yaml:2:1: conf is given twice: remove one"),
        ("streams:\n  a: {source: x}\n  a: {source: y}", "c.yaml:3:3: streams.a is given twice: remove one"),
        ("streams:\n  7: {source: x}", "c.yaml:2:3: expected a name, got 7: write it in quotes"),
        ("streams:\n  no: {source: x}", "c.yaml:2:3: expected a name, got no: write it in quotes"),
        ("? [a]\n: b", "c.yaml:1:3: expected a name"),
        ("streams: &a\n  b: *a", "c.yaml:1:10: refers to itself"),
        ('output: "\x01"', "c.yaml: cannot be read as YAML: "),
    ],
    ids=[
        "two colons", "tab", "open bracket", "tag", "alias", "two documents", "twice", "stream twice", "number as name",
        "boolean as name", "list as name", "loop", "control character",
    ],
)  # fmt: skip
def test_broken_yaml_is_one_line_with_line_and_column(text: str, expected: str) -> None:
    assert error_of(text).startswith(expected)


def test_anchors_and_merges_work_and_may_be_overridden() -> None:
    config = parse(
        "streams:\n  a: &a {source: x, conf: 0.2, stride: 3}\n  b:\n    <<: *a\n    source: y\n    conf: 0.9"
    )
    assert config.streams["b"] == StreamEntry(source="y", conf=0.9, stride=3)


def test_credentials_are_not_repeated() -> None:
    assert "secret" not in error_of("streams:\n  a: rtsp://user:secret@host/1")
    assert "secret" not in error_of("redis: redis://:secret@host")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no such configuration file"), (b"conf: \xff", "expected UTF-8 text, but byte 6 is not valid UTF-8")],
    ids=["missing", "not UTF-8"],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_config(path)


def test_a_folder_is_not_a_configuration_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration file: Is a directory"):
        load_config(tmp_path)


def test_a_byte_order_mark_is_not_part_of_the_first_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKSTREAM_TEST_BATCH", "7")
    path = tmp_path / "c.yaml"
    path.write_text("batch: ${MASKSTREAM_TEST_BATCH}", encoding="utf-8-sig")
    assert load_config(path).batch == 7


# -- the environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("conf: ${SCORE}", "conf", 0.25),
        ('conf: "${SCORE}"', "conf", 0.25),
        ("conf: ${ABSENT:0.75}", "conf", 0.75),
        ("batch: ${ABSENT:8}", "batch", 8),
        ("drop_policy: ${ABSENT:latest}", "drop_policy", "latest"),
        ("output: ${YEAR}", "output", "2024"),
        ("output: runs/${YEAR}/${ABSENT:x}-${EMPTY}", "output", "runs/2024/x-"),
        ("redis_url: ${ABSENT:redis://localhost:6379/1}", "redis_url", "redis://localhost:6379/1"),
        ("redis_url: redis://:${PASSWORD}@host", "redis_url", "redis://:p@ss: word#1@host"),
        ("weights: ${EMPTY}", "weights", None),
        ("weights: ${ABSENT:}", "weights", None),
        ("output: ${NESTED}", "output", "${URL}"),
        ("output: $5 {x}", "output", "$5 {x}"),
        ('classes: ["${ABSENT:person}", car]', "classes", ["person", "car"]),
        ("# ${ABSENT}\nbatch: 2", "batch", 2),
    ],
)
def test_interpolation(text: str, field: str, expected: object) -> None:
    assert getattr(parse(text), field) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "\nstreams:\n  a:\n    source: rtsp://u:${CAM_PASSWORD}@h",
            "c.yaml:4:13: streams.a.source: the environment variable CAM_PASSWORD is not set: set it, or write "
            "${CAM_PASSWORD:default}",
        ),
        ("conf: ${ABSENT:much}", "c.yaml:1: conf: expected a number from 0 to 1, got 'much'"),
        (
            "model: ${A-B}",
            "c.yaml:1:8: model: expected ${NAME} or ${NAME:default} with a name of letters, digits and _",
        ),
        (
            "model: '${URL'",
            "c.yaml:1:8: model: expected ${NAME} or ${NAME:default} with a name of letters, digits and _",
        ),
    ],
    ids=["not set", "wrong default", "wrong name", "not closed"],
)
def test_wrong_interpolation(text: str, expected: str) -> None:
    assert error_of(text) == expected


# -- the schema -------------------------------------------------------------------------------------------------------


def test_the_published_schema_is_up_to_date() -> None:
    published = json.loads((ROOT / "docs" / "config.schema.json").read_text())
    assert published == config_json_schema(), "run `python -m pipeline.job.yaml_file > docs/config.schema.json`"


def test_the_schema_states_the_defaults() -> None:
    definitions = config_json_schema()["$defs"]
    for name in ("JobConfig", "StreamEntry"):
        fields = definitions[name]["properties"]
        found = {field: fields[field].get("default") for field in ("conf", "stride", "drop_policy", "max_fps")}
        assert found == {"conf": defaults.CONF, "stride": 1, "drop_policy": "auto", "max_fps": None}, name
    assert definitions["JobConfig"]["properties"]["batch"]["default"] == defaults.BATCH


def test_the_schema_describes_every_field() -> None:
    for definition in config_json_schema()["$defs"].values():
        for name, field in definition["properties"].items():
            assert len(field["description"]) > 5, name


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("{conf: 0.3, streams: {a: {source: x, stride: 2}}}", True),
        ("{conf: '${CONF:0.3}', device: '${DEVICE}', save: [video], weights: null}", True),
        ("{conf: 3}", False),
        ("{conf: much}", False),
        ("{device: gpu}", False),
        ("{cnf: 0.3}", False),
        ("{streams: {a: {}}}", False),
        ("{streams: {a b: {source: x}}}", False),
    ],
)
def test_the_schema_accepts_what_the_code_accepts(text: str, valid: bool) -> None:
    validator = jsonschema.Draft202012Validator(config_json_schema())
    assert validator.is_valid(yaml.safe_load(text)) is valid


def test_the_examples_of_the_documentation_are_valid_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (ROOT / "docs" / "configuration.md").read_text().split("```yaml\n")[1:]
    assert blocks
    mentioned: set[str] = set()
    for block in blocks:
        text = block.split("```")[0]
        parse_config(text, "docs/configuration.md", {"DOOR_PASSWORD": "x", "REDIS_PASSWORD": "y"})
        mentioned |= yaml.safe_load(text).keys()
    assert mentioned == set(JobConfig.__struct_fields__)


# -- flags ------------------------------------------------------------------------------------------------------------


def test_flags_override_the_file_and_the_fields_of_streams() -> None:
    config = parse("conf: 0.1\nstride: 2\nstreams:\n  a: {source: x, conf: 0.2, stride: 3}\n  b: {source: y}")
    merged = with_flags(config, {"conf": "0.9", "batch": "2", "stride": None})
    assert (merged.conf, merged.stride, merged.batch) == (0.9, 2, 2)
    assert merged.streams["a"] == StreamEntry(source="x", stride=3)
    assert config.streams["a"].conf == 0.2, "the configuration that was given is changed"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"conf": "1.5"}, "--conf: expected a number from 0 to 1, got 1.5"),
        ({"conf": "much"}, "--conf: expected a number from 0 to 1, got 'much'"),
        ({"conf": "nan"}, "--conf: expected a finite number, got nan"),
        ({"batch": "2.5"}, "--batch: expected a whole number, 1 or more, got 2.5"),
        ({"batch_timeout_ms": "-1"}, "--batch-timeout-ms: expected a number, 0 or more, got -1"),
        ({"drop_policy": "old"}, "--drop-policy: expected one of auto, latest, lossless, got 'old'"),
        ({"save": ["jsonl", "x"]}, "--save: expected one of jsonl, video, got 'x'"),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_an_error_names_the_wrong_flag(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_flags(JobConfig(), flags)
    assert str(caught.value) == expected


def test_text_flags_stay_text() -> None:
    assert with_flags(JobConfig(), {"output": "2024", "conf": "1"}) == JobConfig(output="2024", conf=1.0)


def test_the_documentation_states_every_option_and_its_default() -> None:
    """An option that has a default is marked `# default` in docs/configuration.md, with that value."""
    blocks = (ROOT / "docs" / "configuration.md").read_text().split("```yaml\n")[2:]
    stated: dict[str, tuple[Any, bool]] = {}
    for block in blocks:
        text = block.partition("```")[0]
        marked = {line.partition(":")[0] for line in text.splitlines() if "# default" in line}
        stated |= {field: (value, field in marked) for field, value in yaml.safe_load(text).items()}
    config = JobConfig()
    assert stated.keys() == set(JobConfig.__struct_fields__)
    for field, (value, is_default) in stated.items():
        own, of_stream = getattr(config, field), getattr(STREAM_DEFAULTS, field, None)
        default = of_stream if own is None else own
        assert is_default == (default not in (None, [], {})), field
        if is_default:
            assert value == default, field
