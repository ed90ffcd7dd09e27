"""Building a job from a configuration and a command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MaskStreamError, ModelError, OutputError, UsageError
from pipeline.job import build as job_module
from pipeline.job.build import MIB, Job, build_job, decode_job, encode_job
from pipeline.job.yaml_file import parse_config, with_flags


@pytest.fixture(autouse=True)
def _in_a_folder_with_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4", "many/a.mp4", "many/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_module, "cuda_expected", lambda: False)


def job(text: str = "", *sources: str, ids: tuple[str, ...] = (), **flags: Any) -> Job:
    return build_job(with_flags(parse_config(text, "c.yaml", {}), flags), sources, ids)


def job_error(text: str = "", *sources: str, ids: tuple[str, ...] = (), **flags: Any) -> MaskStreamError:
    with pytest.raises(MaskStreamError) as caught:
        job(text, *sources, ids=ids, **flags)
    assert "\n" not in str(caught.value)
    return caught.value


def test_defaults() -> None:
    made = job("", "a.mp4", "rtsp://host/1")
    assert (made.model, made.device, made.save, made.redis_url) == ("street", "cpu", ["jsonl", "video"], None)
    clip, cam = made.streams
    assert (clip.stream_id, clip.kind, clip.policy, clip.live) == ("a", "file", "lossless", False)
    assert (cam.stream_id, cam.kind, cam.policy, cam.live) == ("cam1", "live", "auto", True)
    assert (clip.conf, clip.class_ids, clip.max_staleness_s, clip.stride) == (0.5, None, 0.5, 1)
    assert (clip.max_fps, clip.max_frames, clip.rtsp_transport, clip.model) == (None, None, "tcp", "street")


def test_a_job_can_be_encoded_and_decoded() -> None:
    text = "streams: {own: {source: a.mp4, classes: [person], max_fps: 2.5}}"
    made = job(text, "rtsp://joe:secret@host/1", redis_url="redis://:pass@host", save=["jsonl"])
    assert decode_job(encode_job(made)) == made
    assert encode_job(made).count(b"\n") == 1


def test_the_default_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_module, "cuda_expected", lambda: True)
    made = job("", "a.mp4")
    assert (made.device, made.model) == ("cuda", "maskrcnn_resnet50_fpn_v2")
    assert job("", "a.mp4", device="cpu").model == "street"
    assert job("", "a.mp4", device="cuda:1").device == "cuda:1"


def test_precedence_of_options() -> None:
    text = """
        conf: 0.1
        classes: [car]
        max_fps: 5
        streams:
          own: {source: a.mp4, conf: 0.2, classes: [person], drop_policy: latest}
          other: {source: "rtsp://host/1", drop_policy: lossless}
        """
    own, other, added = job(text, "b.mp4", max_fps="9").streams
    assert (own.conf, own.class_ids, own.policy, own.max_fps) == (0.2, [1], "latest", 9.0)
    assert (other.conf, other.class_ids, other.policy, other.max_fps) == (0.1, [3], "lossless", 9.0)
    assert (added.stream_id, added.conf, added.class_ids, added.policy) == ("b", 0.1, [3], "lossless")
    assert [stream.conf for stream in job(text, "b.mp4", conf="0.7").streams] == [0.7, 0.7, 0.7]


def test_zero_is_different_from_unset() -> None:
    assert job("conf: 0.4\nstreams: {x: {source: a.mp4, conf: 0}}").streams[0].conf == 0.0


@pytest.mark.parametrize(
    ("sources", "ids", "expected"),
    [
        (["a.mp4", "b.mp4"], ["x", "y"], ["x", "y"]),
        (["a.mp4", "b.mp4"], ["x"], ["x", "b"]),
        (["a.mp4", "many/a.mp4"], [], ["a", "a-2"]),
        (["b.mp4", "a.mp4"], ["a"], ["a", "a-2"]),
        (["rtsp://h/1", "rtsp://h/2"], ["door"], ["door", "cam2"]),
        (["many"], ["x", "y"], ["x", "y"]),
        (["demo"], [], ["demo"]),
    ],
)
def test_names_of_streams(sources: list[str], ids: list[str], expected: list[str]) -> None:
    assert [stream.stream_id for stream in job("", *sources, ids=tuple(ids)).streams] == expected


@pytest.mark.parametrize(
    ("text", "sources", "ids", "renamed"),
    [
        ("", ["a.mp4", "many/a.mp4", "many/b.mp4"], (), {"a-2": "a"}),
        ("streams: {a: {source: b.mp4}}", ["many/a.mp4"], (), {"a-2": "a"}),
        ("", ["a.mp4", "many"], ("b",), {"b-2": "b"}),
        ("", ["a.mp4", "many/a.mp4"], ("x", "a-2"), {}),
        ("streams: {other: {source: a.mp4}}", ["rtsp://host/1", "rtsp://host/2"], (), {}),
    ],
    ids=["same name", "name in the file", "name by flag", "ids by flag", "cameras"],
)
def test_streams_that_do_not_get_the_name_of_their_source(
    text: str, sources: list[str], ids: tuple[str, ...], renamed: dict[str, str]
) -> None:
    assert job(text, *sources, ids=ids).renamed == renamed


def test_streams_of_the_file_come_first_and_keep_their_ids() -> None:
    made = job("streams: {A: {source: b.mp4}}", "a.mp4")
    assert [(stream.stream_id, stream.source) for stream in made.streams] == [("A", "b.mp4"), ("a-2", "a.mp4")]


@pytest.mark.parametrize(
    ("text", "sources", "ids", "expected"),
    [
        ("", ["a.mp4"], ["x", "y"], "--stream-id: expected at most 1, one per source on the command line, got 2"),
        ("", ["a.mp4", "b.mp4"], ["x", "X"], "stream id 'X' is used twice"),
        ("streams: {x: {source: a.mp4}}", ["b.mp4"], ["x"], "stream id 'x' is used twice"),
        ("", ["a.mp4"], ["x y"], "stream id 'x y': expected 1 to 64 of the characters"),
        ("", [], [], "no source: give a video file"),
        ("", ["nope.mp4"], [], "source 'nope.mp4' does not exist"),
        ("streams: {x: {source: nope.mp4}}", [], [], "streams.x: source 'nope.mp4' does not exist"),
        ("streams: {x: {source: many}}", [], [], "streams.x.source: expected one source, got 2 files"),
        ("weights: nope.pt", ["a.mp4"], [], "weights: expected a file, found none at nope.pt"),
        ("classes: [dog]", ["a.mp4"], [], "class 'dog' is unknown to model street"),
        ("model: streat", ["a.mp4"], [], "unknown model 'streat' (did you mean 'street'?)"),
    ],
)
def test_an_invalid_request_is_refused(text: str, sources: list[str], ids: list[str], expected: str) -> None:
    error = job_error(text, *sources, ids=tuple(ids))
    assert isinstance(error, UsageError)
    assert str(error).startswith(expected)
    assert not Path("runs").exists(), "a refused job left a folder behind"


def test_an_unknown_model_is_a_model_error() -> None:
    assert isinstance(job_error("model: x", "a.mp4"), ModelError)


def test_a_job_without_output_gets_a_fresh_folder() -> None:
    assert [str(job("", "a.mp4").output) for _ in range(3)] == ["runs/a-1", "runs/a-2", "runs/a-3"]
    several = job("", "many").output
    assert several.parent == Path("runs")
    assert several.is_dir()


def test_the_output_folder_is_created_or_reused() -> None:
    for _ in range(2):
        assert job("", "a.mp4", output="x/y").output == Path("x/y")
    assert Path("x/y").is_dir()


def test_a_result_never_replaces_a_source() -> None:
    assert "a.mp4 is a source that a result would replace" in str(job_error("", "a.mp4", output="."))
    assert "a.mp4 is a source that a result would replace" in str(
        job_error("", "a.mp4", "b.mp4", ids=("x", "a"), output=".")
    )
    assert job("", "a.mp4", output=".", save=["jsonl"]).save == ["jsonl"]
    assert job("", "a.mp4", output=".", ids=("x",)).output == Path()


@pytest.mark.parametrize("name", ["a.jsonl", "a.mp4", "summary.json"])
def test_the_results_of_an_earlier_run_are_kept_unless_overwrite_is_set(name: str) -> None:
    Path("out").mkdir()
    Path("out", name).touch()
    assert job("", "a.mp4", output="out").output == Path("out"), "an empty file is no result"
    Path("out", name).write_text("x")
    expected = f"output: out/{name} holds results of an earlier run: add --overwrite to replace them, or give another"
    assert str(job_error("", "a.mp4", output="out")).startswith(expected)
    assert Path("out", name).read_text() == "x"
    assert job("", "a.mp4", output="out", overwrite=True).output == Path("out")
    assert job("overwrite: true", "a.mp4", output="out").output == Path("out")


def test_results_of_other_streams_do_not_refuse_a_job() -> None:
    Path("out").mkdir()
    Path("out/b.jsonl").write_text("x")
    Path("out/a.mp4").write_text("x")
    assert job("", "a.mp4", output="out", save=["jsonl"]).output == Path("out")


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("a.mp4", "output: expected a folder, found a file at a.mp4; give another --output"),
        ("a.mp4/x", "output: cannot make a.mp4/x: not a directory; give another --output"),
    ],
)
def test_an_unusable_output_folder_is_refused(output: str, expected: str) -> None:
    error = job_error("", "b.mp4", output=output)
    assert isinstance(error, OutputError)
    assert str(error) == expected


def test_the_result_logs_share_the_memory_that_frames_leave() -> None:
    frame_bytes = 800 * 1333 * 3 // 2
    text = "model: maskrcnn_resnet50_fpn\nredis_memory_mb: 1024\nmax_in_flight: 16"
    log_bytes = job(text, *["a.mp4"] * 20).streams[0].log_bytes
    assert log_bytes == (1024 * MIB - 24 * MIB - 20 * 16 * frame_bytes) // 20
    assert job(text, "a.mp4").streams[0].log_bytes == 64 * MIB


def test_too_little_memory_is_refused_with_the_calculation() -> None:
    text = "model: maskrcnn_resnet50_fpn\nredis_memory_mb: 64"
    error = str(job_error(text, *["a.mp4"] * 2))
    assert error == (
        "redis_memory_mb: expected 89 or more, got 64: 2 streams x 16 frames of 1.53 MiB + 2 result logs of 8 "
        "+ 16 for subscribers + 8 for the server; raise it to 89 or lower max_in_flight to 7"
    )
    assert job(text.replace("64", "89"), *["a.mp4"] * 2).streams[0].log_bytes >= 8 * MIB
    assert job(text + "\nmax_in_flight: 7", *["a.mp4"] * 2).streams[0].log_bytes >= 8 * MIB
    assert str(job_error(text, *["a.mp4"] * 40)).endswith("; raise it to 1321")


def test_the_minimum_memory_suffices_for_one_stream_of_the_default_model() -> None:
    assert job("redis_memory_mb: 64", "a.mp4").streams[0].log_bytes >= 8 * MIB
