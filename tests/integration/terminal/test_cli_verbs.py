"""The verbs subscribe, status, models and worker, on a real Redis server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.bus_parts import stream_config
from support.paths import ROOT
from support.result_samples import end, epoch, event, frame, gap, instance

from pipeline.bus import Bus, StreamKeys
from pipeline.contract.results import AnyResult, encode_result

PROGRAM = [sys.executable, str(ROOT / "run_pipeline.py")]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _folder_with_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run every test in a folder that contains `a.mp4`, without a default Redis URL."""
    monkeypatch.delenv("MASKSTREAM_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()


# -- subscribe --------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(redis_client: Any) -> list[AnyResult]:
    """Write the result log of an ended stream with a message of every type, and return the messages."""
    messages: list[AnyResult] = [
        frame(1, instances=[instance(7, score=0.984), instance(None, label="car", score=0.71)]),
        event(1),
        frame(2, instances=[]),
        gap(3, 5, cause="stale"),
        gap(6, 6, cause="error", detail="a poisonous\nframe"),
        epoch(6, stream_epoch=2, detail="no answer"),
        event(6, kind="track_end"),
        end(6, num_frames=2, num_gap_frames=4),
    ]
    seen: dict[int, int] = {}
    for message in messages:
        index = seen[message.frame_seq] = seen.get(message.frame_seq, -1) + 1
        entry_id = f"{message.frame_seq}-{index}"
        redis_client.xadd(StreamKeys.of("cam1").results, {"j": encode_result(message)}, id=entry_id)
    return messages


def test_subscribe_prints_the_messages_unchanged(run: Run, redis_url: str, log: list[AnyResult]) -> None:
    code, out, err = run("subscribe", "cam1", "--from", "start", "--redis-url", redis_url)
    assert (code, err) == (0, "")
    assert out.encode() == b"".join(encode_result(message) + b"\n" for message in log)


def test_subscribe_continues_after_a_frame_number(run: Run, redis_url: str, log: list[AnyResult]) -> None:
    out = run("subscribe", "cam1", "--from", "2", "--redis-url", redis_url)[1]
    assert json.loads(out.splitlines()[0])["from_seq"] == 3


def test_subscribe_prints_one_text_line_per_message(
    run: Run, redis_url: str, log: list[AnyResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKSTREAM_REDIS_URL", redis_url)
    code, out, _ = run("subscribe", "cam1", "--from", "start", "--format", "text")
    assert code == 0
    assert out.splitlines() == [
        "cam1 #1 0.00 s: person 7 0.98, car ? 0.71",
        "cam1 #1: track 7 (person) starts",
        "cam1 #2 0.04 s: nothing",
        "cam1 #5: no result from #3 (3 frames): stale",
        "cam1 #6: no result (1 frame): error (a poisonous frame)",
        "cam1 #6: source reopened, epoch 2 (no answer)",
        "cam1 #6: track 7 (person) ends",
        "cam1 #6: finished: 2 frames, 4 dropped, 1 tracks",
    ]


def start_program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_subscribe_flushes_each_line_and_ends_when_the_reader_closes_the_pipe(
    redis_url: str, redis_client: Any
) -> None:
    stopping = threading.Event()

    def commit() -> None:
        for seq in range(1, 10_000):
            redis_client.xadd(StreamKeys.of("cam1").results, {"j": encode_result(frame(seq))}, id=f"{seq}-0")
            if stopping.wait(0.02):
                return

    with start_program("subscribe", "cam1", "--from", "start", "--redis-url", redis_url) as program:
        writer = threading.Thread(target=commit)
        writer.start()
        try:
            assert program.stdout is not None
            assert json.loads(program.stdout.readline())["frame_seq"] == 1
            program.stdout.close()
            assert program.wait(20) == 0
            assert program.stderr is not None
            assert program.stderr.read() == ""
        finally:
            stopping.set()
            writer.join()
            program.kill()


def test_ctrl_c_ends_a_subscription_with_exit_code_130(redis_url: str, redis_client: Any) -> None:
    redis_client.xadd(StreamKeys.of("cam1").results, {"j": encode_result(frame(1))}, id="1-0")
    with start_program("subscribe", "cam1", "--from", "start", "--redis-url", redis_url) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
        try:
            assert program.wait(20) == 130
            assert program.stderr is not None
            assert program.stderr.read() == ""
        finally:
            program.kill()


def test_a_full_disk_behind_standard_output_is_one_error_line(redis_url: str, log: list[AnyResult]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "subscribe", "cam1", "--from", "start", "--redis-url", redis_url],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "maskstream: error: cannot write: no space left on device; free some space there\n"


# -- status, models ---------------------------------------------------------------------------------------------------


def test_status_of_a_redis_without_streams(run: Run, redis_url: str) -> None:
    assert run("status", "--redis-url", redis_url) == (0, "no streams\n", "")
    code, out, _ = run("status", "--json", "--redis-url", redis_url)
    assert (code, json.loads(out)) == (0, {"healthy": True, "problems": [], "streams": [], "workers": []})


def test_status_reports_problems(run: Run, redis_url: str) -> None:
    bus = Bus(redis_url)
    for name in ("cam1", "cam2"):
        bus.begin_job(stream_config(name, kind="live", policy="latest"), sinks=[])
        bus.set_status(name, phase="live", source="rtsp://***@host/1")
    assert run("status", "--redis-url", redis_url)[1].splitlines()[-2:] == ["no infer worker", "no track worker"]
    bus.beat("infer", "infer-1", "running", detail="street on cpu")
    bus.beat("track", "track-1", "running")
    code, out, _ = run("status", "--redis-url", redis_url)
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines() if line] == [
        ["stream", "state"], ["cam1", "live"], ["cam2", "live"],
        ["worker", "role"], ["infer-1", "infer"], ["track-1", "track"],
    ]  # fmt: skip
    bus.set_status("cam2", phase="stalled", error="no answer")
    code, out, _ = run("status", "--redis-url", redis_url)
    assert code == 1
    assert out.splitlines()[-1] == "stream cam2 is stalled (no answer)"
    code, out, _ = run("status", "--json", "--redis-url", redis_url)
    report = json.loads(out)
    assert (code, report["healthy"], report["problems"]) == (1, False, ["stream cam2 is stalled (no answer)"])
    assert [stream["phase"] for stream in report["streams"]] == ["live", "stalled"]


def test_models_lists_names_and_classes(run: Run) -> None:
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert out.startswith("street  (default on cpu)\n")
    assert "  classes  person, bicycle, car, motorcycle, bus, truck\n" in out
    assert "\nmaskrcnn_resnet50_fpn_v2  (default on cuda)\n" in out
    assert out.count("toothbrush") == 1, "a list of classes is printed once"
    blocks = {block.splitlines()[0]: block.splitlines() for block in out.rstrip("\n").split("\n\n")}
    assert blocks["fasterrcnn_mobilenet_v3_large_320_fpn"][-4:] == [
        "  detects  boxes",
        "  AP       box 22.8: COCO val2017, published by torchvision",
        "  licence  BSD-3-Clause (torchvision), trained on COCO 2017",
        "  classes  the same as maskrcnn_resnet50_fpn_v2",
    ]


# -- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the workers by a function that records the tasks. Return the list of tasks."""
    found: list[Any] = []

    def run_task(task: Any) -> int:
        found.append(task)
        return 0

    monkeypatch.setattr("workers.__main__.run_task", run_task)
    return found


def test_worker_decode_starts_a_log_and_continues_it_with_the_same_arguments(
    run: Run, redis_url: str, tasks: list[Any]
) -> None:
    arguments = ["worker", "decode", "a.mp4", "--model", "street", "--stream-id", "clip", "--redis-url", redis_url]
    bus = Bus(redis_url)
    assert run(*arguments)[0] == 0
    first = bus.log_id("clip")
    assert first is not None
    assert run(*arguments)[0] == 0
    assert bus.log_id("clip") == first, "the same arguments began a new log"
    assert run(*arguments, "--stride", "2", "--result-ttl-s", "60")[0] == 0
    assert bus.log_id("clip") != first
    stream = bus.stream("clip")
    assert stream is not None
    assert (stream.source, stream.stride, stream.policy) == ("a.mp4", 2, "lossless")
    assert {(task.stream_id, task.redis_url) for task in tasks} == {("clip", redis_url)}
    assert [task.result_ttl_s for task in tasks] == [3600, 3600, 60]


def test_worker_decode_takes_one_source(run: Run, redis_url: str) -> None:
    Path("many").mkdir()
    for name in ("x.mp4", "y.mp4"):
        (Path("many") / name).touch()
    code, _, err = run("worker", "decode", "many", "--model", "street", "--redis-url", redis_url)
    assert code == 2
    assert err == "maskstream: error: source 'many': expected one stream, got 2: start a worker for each\n"


def test_the_flags_of_the_other_workers_reach_their_tasks(run: Run, redis_url: str, tasks: list[Any]) -> None:
    infer = ["--model", "street", "--device", "cpu", "--batch", "3", "--batch-timeout-ms", "9", "--name", "i1"]
    run("worker", "infer", *infer, "--redis-url", redis_url)
    run("worker", "track", "--redis-url", redis_url)
    run("worker", "sink", "cam1", "--output", "out/x", "--save", "jsonl", "--redis-url", redis_url)
    first, second, third = [msgspec.to_builtins(task) for task in tasks]
    assert first["role"] == "infer"
    assert (first["name"], first["model"], first["device"]) == ("i1", "street", "cpu")
    assert (first["batch"], first["batch_timeout_ms"], first["precision"]) == (3, 9.0, "auto")
    assert second["role"] == "track"
    assert second["name"].startswith("track-")
    assert (third["role"], third["stream_id"], third["output"], third["save"]) == ("sink", "cam1", "out/x", ["jsonl"])
    assert Path("out/x").is_dir()


def test_the_exit_code_of_a_worker_is_that_of_the_command(
    run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.__main__.run_task", lambda task: 3)
    assert run("worker", "track", "--redis-url", redis_url)[0] == 3
