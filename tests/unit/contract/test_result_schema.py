"""docs/result.schema.json is up to date, and the messages of the code satisfy it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from support import result_samples
from support.paths import ROOT

from pipeline.contract.results import AnyResult, decode_result, encode_result, result_json_schema

DOCUMENT = ROOT / "docs" / "result.schema.json"

SAMPLES = [
    result_samples.frame(1),
    result_samples.frame(2, instances=[]),
    result_samples.frame(3, instances=[result_samples.instance(None), result_samples.instance(mask=None)]),
    result_samples.frame(3, instances=[result_samples.instance(mask=None, keypoints=result_samples.keypoints(9))]),
    result_samples.frame(4, captured_at_ns=1_790_000_000_000_000_000, clock="rtcp"),
    result_samples.gap(5, 9, "overflow"),
    result_samples.event(9, "track_end"),
    result_samples.epoch(9),
    result_samples.end(9, reason="failed", detail="the file broke off"),
]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json.loads(DOCUMENT.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schema_is_up_to_date() -> None:
    assert json.loads(DOCUMENT.read_text()) == result_json_schema(), (
        "run python -m pipeline.contract.results > docs/result.schema.json"
    )


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: f"{type(message).__name__}-{message.frame_seq}")
def test_messages_satisfy_the_schema_and_survive_a_round_trip(validator: Any, message: AnyResult) -> None:
    payload = encode_result(message)
    validator.validate(json.loads(payload))
    assert decode_result(payload) == message


@pytest.mark.parametrize(
    ("changes", "present"),
    [({"mask": None}, set()), ({}, {"mask"}), ({"mask": None, "keypoints": result_samples.keypoints()}, {"keypoints"})],
    ids=["boxes", "masks", "keypoints"],
)
def test_masks_and_keypoints_are_absent_if_the_model_has_none(changes: dict[str, Any], present: set[str]) -> None:
    message = result_samples.frame(1, instances=[result_samples.instance(**changes)])
    (instance,) = json.loads(encode_result(message))["instances"]
    assert instance.keys() & {"mask", "keypoints"} == present


def test_null_is_decoded_like_an_absent_field() -> None:
    bare = result_samples.frame(1, instances=[result_samples.instance(mask=None)])
    document = json.loads(encode_result(bare))
    document["instances"][0] |= {"mask": None, "keypoints": None}
    assert decode_result(json.dumps(document)) == bare


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "hologram"},
        {"frame_seq": "1"},
        {"clock": "sundial"},
        {"instances": None},
        {"instances": [{"label": "person"}]},
        {"box_xyxy": [1, 2, 3]},
        {"keypoints": [[1.0, 2.0]]},
        {"mask": {"counts": "PPYo1"}},
    ],
    ids=str,
)
def test_the_schema_refuses_invalid_messages(validator: Any, changes: dict[str, Any]) -> None:
    document = json.loads(encode_result(result_samples.frame(1)))
    target = document["instances"][0] if changes.keys() & {"box_xyxy", "keypoints", "mask"} else document
    target.update(changes)
    assert not validator.is_valid(document)
