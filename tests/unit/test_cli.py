"""The command line: mistakes in one line, verbs, exit codes, closed pipes. Jobs that run to their end are elsewhere."""

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
from bus_parts import stream_config
from result_samples import end, epoch, event, frame, gap, instance

import run_pipeline
from pipeline import __version__
from pipeline.bus import Bus, StreamKeys
from pipeline.config import JobConfig
from pipeline.errors import BusError, MaskStreamError, OutputError
from pipeline.messages import AnyResult, encode_result
from pipeline.progress import Display
from workers import supervisor

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = [sys.executable, str(ROOT / "run_pipeline.py")]
NOWHERE = "unix:///nowhere/redis.sock"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command line in this process: exit code, standard output, standard error."""
    monkeypatch.delenv("MASKSTREAM_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_pipeline.main(arguments)
        return code, *capsys.readouterr()

    return call


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", "no source: give a video file, a folder, rtsp://…, webcam:0, `demo`, or --config FILE"),
        ("nope.mp4", "source 'nope.mp4' does not exist"),
        ("a.mp4 nope.mp4", "source 'nope.mp4' does not exist"),
        ("a.mp4 --modle street", "No such option: --modle"),
        ("a.mp4 --batch", "Option '--batch' requires an argument; see "),
        ("a.mp4 --conf 1.5", "--conf: expected a number from 0 to 1, got 1.5"),
        ("a.mp4 --conf much", "--conf: expected a number from 0 to 1, got 'much'"),
        ("a.mp4 --batch 0", "--batch: expected a whole number, 1 or more, got 0"),
        ("a.mp4 --workers 1.5", "--workers: expected a whole number, 1 or more, got 1.5"),
        ("a.mp4 --device gpu", "--device: expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("a.mp4 --drop-policy old", "--drop-policy: expected one of auto, latest, lossless, got 'old'"),
        ("a.mp4 --save jsonl,gif", "--save: expected one of jsonl, video, got 'gif'"),
        ("a.mp4 --classes ,", "--classes: expected a list of one or more, each text, got a list of 0"),
        ("a.mp4 --classes unicorn", "class 'unicorn' is unknown to model "),
        ("a.mp4 --model streat", "unknown model 'streat' (did you mean 'street'?)"),
        ("a.mp4 --weights w.pt", "weights: expected a file, found none at w.pt"),
        ("a.mp4 --stream-id x/y", "stream id 'x/y': expected 1 to 64 of the characters"),
        ("a.mp4 --config nope.yaml", "nope.yaml: no such configuration file"),
        ("--config broken.yaml", "broken.yaml:2:8: mapping values are not allowed here"),
        ("--config wrong.yaml", "wrong.yaml:3: streams.door.cnf: unknown field with the value 0.2: did you mean conf?"),
        ("a.mp4 --output .", "output: a.mp4 is a source that a result would replace: give another --output"),
        (f"a.mp4 --redis-url {NOWHERE}", f"no Redis at {NOWHERE}"),
        ("a.mp4 --redis-url ftp://host", "Redis URL 'ftp://host': expected redis://"),
        ("subscribe", "Missing argument 'STREAM'; see "),
        ("subscribe cam1", "no Redis: give --redis-url URL or set MASKSTREAM_REDIS_URL"),
        (f"subscribe cam1 --redis-url {NOWHERE}", f"no Redis at {NOWHERE}"),
        (f"subscribe cam1 --from never --redis-url {NOWHERE}", "start 'never': expected now, start, a frame number"),
        (f"subscribe cam1 --format xml --redis-url {NOWHERE}", "--format: expected json or text, got 'xml'"),
        (f"subscribe x/y --redis-url {NOWHERE}", "stream id 'x/y': expected 1 to 64 of the characters"),
        ("status", "no Redis: give --redis-url URL or set MASKSTREAM_REDIS_URL"),
        (f"status --json --redis-url {NOWHERE}", f"no Redis at {NOWHERE}"),
        ("models street", "Got unexpected extra argument"),
        ("worker", "Missing command; see "),
        ("worker cook", "No such command 'cook'; see "),
        ("worker infer", "Missing option '--model'; see "),
        (
            "worker infer --model street --precision fp8",
            "--precision: expected one of auto, bf16, fp16, fp32, got 'fp8'",
        ),
        ("worker track", "no Redis: give --redis-url URL or set MASKSTREAM_REDIS_URL"),
        (f"worker track --redis-url {NOWHERE}", f"no Redis at {NOWHERE}"),
        (f"worker decode nope.mp4 --model street --redis-url {NOWHERE}", "source 'nope.mp4' does not exist"),
        (f"worker decode a.mp4 --model streat --redis-url {NOWHERE}", "unknown model 'streat'"),
        ("worker sink cam1", "Missing option '--output'; see "),
    ],
)
def test_a_mistake_is_one_line_and_code_2(run: Run, arguments: str, expected: str) -> None:
    Path("broken.yaml").write_text("conf: 0.1\nconf: a: b")
    Path("wrong.yaml").write_text("streams:\n  door: {source: a.mp4,\n    cnf: 0.2}")
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"maskstream: error: {expected}")
    assert err.count("\n") == 1
    assert not Path("runs").exists(), "a refused job left a folder behind"


def test_an_output_that_cannot_be_written_is_code_1(run: Run) -> None:
    code, _, err = run("a.mp4", "--output", "a.mp4/x")
    assert code == 1
    assert err == "maskstream: error: output: cannot make a.mp4/x: not a directory; give another --output\n"


def test_control_characters_of_a_name_do_not_reach_the_terminal(run: Run) -> None:
    assert run("no\x1b[31m\nsuch")[2].isprintable() is False  # the line end
    assert "\x1b" not in run("no\x1b[31m\nsuch")[2]
    assert run("no\x1b[31m\nsuch")[2].count("\n") == 1


def test_passwords_of_the_redis_are_not_repeated(run: Run) -> None:
    code, _, err = run("a.mp4", "--redis-url", "redis://user:secret@127.0.0.1:1")
    assert code == 2
    assert "secret" not in err


def test_an_old_redis_is_refused(run: Run, own_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bus.connection.MIN_VERSION", (99, 1))
    code, _, err = run("status", "--redis-url", own_redis().url)
    assert code == 2
    assert err.count("\n") == 1
    assert "expected 99.1 or newer" in err


# -- help -------------------------------------------------------------------------------------------------------------


def test_help_is_complete(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    flags = (
        "--output --model --weights --device --precision --conf --classes --batch --batch-timeout-ms --drop-policy "
        "--max-staleness-s --stream-id --redis-url --config --save --workers --max-frames --stride --max-fps "
        "--rtsp-transport --quiet --verbose --version MASKSTREAM_REDIS_URL"
    )
    for word in flags.split():
        assert word in out, word
    for verb in run_pipeline.VERBS:
        assert f"\n   {verb} " in out, verb
    for code_text in ("0    done", "1    a stream", "2    wrong use", "130  interrupted"):
        assert code_text in out


@pytest.mark.parametrize("arguments", ["subscribe", "status", "models", "worker", "worker decode", "worker sink"])
def test_every_verb_has_help(run: Run, arguments: str) -> None:
    for flag in ("-h", "--help"):
        code, out, err = run(*arguments.split(), flag)
        assert (code, err) == (0, "")
        assert f"{arguments} " in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"maskstream {__version__}\n", "")


def test_defaults_told_by_the_help_are_those_of_the_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    out = run("--help")[1]
    config = JobConfig()
    for flag, value in {
        "--batch ": config.batch,
        "--batch-timeout-ms": config.batch_timeout_ms,
        "--workers": 1,
    }.items():
        line = next(line for line in out.splitlines() if flag in line)
        assert f"default {value:g}" in line


# -- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def job_runner(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Takes the place of the supervisor: collects the jobs it is given."""
    jobs: list[Any] = []

    def run_job(job: Any, display: Display) -> int:
        jobs.append(job)
        return 0

    monkeypatch.setattr(supervisor, "run_job", run_job)
    return jobs


def test_flags_reach_the_job(run: Run, job_runner: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.yaml").write_text("conf: 0.1\nbatch: 2\nstreams: {door: {source: 'rtsp://h/1', max_fps: 3}}")
    monkeypatch.setenv("MASKSTREAM_REDIS_URL", "unix:///from/environment")
    flags = """
        --config c.yaml --stream-id clip --conf 0.9 --classes person,car --save jsonl --output out --device cuda:1
        --precision fp16 --model street --batch-timeout-ms 7.5 --workers 2 --max-frames 5 --stride 2
        --drop-policy latest --max-staleness-s 2 --rtsp-transport udp
        """
    code, _, err = run("run", "a.mp4", *flags.split())
    assert (code, err) == (0, "")
    (job,) = job_runner
    assert [stream.stream_id for stream in job.streams] == ["door", "clip"]
    for stream in job.streams:
        assert (stream.conf, stream.class_ids, stream.max_frames, stream.stride) == (0.9, [1, 3], 5, 2)
        assert (stream.policy, stream.max_staleness_s, stream.rtsp_transport) == ("latest", 2.0, "udp")
    assert [stream.max_fps for stream in job.streams] == [3.0, None]
    assert (job.device, job.precision, job.batch, job.batch_timeout_ms, job.workers) == ("cuda:1", "fp16", 2, 7.5, 2)
    assert (job.redis_url, job.save, str(job.output)) == ("unix:///from/environment", ["jsonl"], "out")


def test_the_flag_wins_over_the_environment_and_that_over_the_file(
    run: Run, job_runner: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("c.yaml").write_text("redis_url: unix:///file")
    run("a.mp4", "--config", "c.yaml")
    monkeypatch.setenv("MASKSTREAM_REDIS_URL", "unix:///environment")
    run("a.mp4", "--config", "c.yaml")
    run("a.mp4", "--config", "c.yaml", "--redis-url", "unix:///flag")
    assert [job.redis_url for job in job_runner] == ["unix:///file", "unix:///environment", "unix:///flag"]


def test_a_file_called_like_a_verb_is_given_with_its_folder(run: Run, job_runner: list[Any]) -> None:
    Path("status").write_bytes(b"")
    assert run("./status")[0] == 0
    assert run("run", "status")[0] == 0
    assert [job.streams[0].stream_id for job in job_runner] == ["status", "status"]


@pytest.mark.parametrize(
    ("error", "began", "code"),
    [
        (BusError("no Redis"), False, 2),
        (BusError("the private Redis server ended"), True, 1),
        (OutputError("disk full"), True, 1),
        (MaskStreamError("cannot be kept running"), True, 1),
        (KeyboardInterrupt(), True, 130),
    ],
    ids=["no Redis", "Redis gone", "disk full", "worker", "Ctrl-C"],
)
def test_exit_codes_of_a_job_that_cannot_go_on(
    run: Run, monkeypatch: pytest.MonkeyPatch, redis_url: str, error: BaseException, began: bool, code: int
) -> None:
    bus = Bus(redis_url)
    bus.begin(stream_config("a"), sinks=[])

    def run_job(job: Any, display: Display) -> int:
        if began:
            display.update(bus.stream_statuses(), [])
        raise error

    monkeypatch.setattr(supervisor, "run_job", run_job)
    found, _, err = run("a.mp4")
    assert found == code
    assert "Traceback" not in err
    assert ("maskstream: error: " in err) == (code != 130)
    assert not Path("runs").exists()


def test_what_was_written_is_kept_when_a_job_fails(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(job: Any, display: Display) -> int:
        (job.output / "a.jsonl").touch()
        raise OutputError("disk full")

    monkeypatch.setattr(supervisor, "run_job", run_job)
    assert run("a.mp4")[0] == 1
    assert Path("runs/a-1/a.jsonl").is_file()


# -- subscribe --------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(redis_client: Any) -> list[AnyResult]:
    """A finished log of every kind of message."""
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


def test_subscribe_prints_the_messages_as_they_are(run: Run, redis_url: str, log: list[AnyResult]) -> None:
    code, out, err = run("subscribe", "cam1", "--from", "start", "--redis-url", redis_url)
    assert (code, err) == (0, "")
    assert out.encode() == b"".join(encode_result(message) + b"\n" for message in log)


def test_subscribe_goes_on_behind_a_number(run: Run, redis_url: str, log: list[AnyResult]) -> None:
    out = run("subscribe", "cam1", "--from", "2", "--redis-url", redis_url)[1]
    assert json.loads(out.splitlines()[0])["from_seq"] == 3


def test_subscribe_as_text_is_a_line_per_message(
    run: Run, redis_url: str, log: list[AnyResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKSTREAM_REDIS_URL", redis_url)
    code, out, _ = run("subscribe", "cam1", "--from", "start", "--format", "text")
    assert code == 0
    assert out.splitlines() == [
        "cam1 #1 0.00 s: person 7 0.98, car ? 0.71",
        "cam1 #1: person 7 appears",
        "cam1 #2 0.04 s: nothing",
        "cam1 #5: no result from #3: stale",
        "cam1 #6: no result: error (a poisonous frame)",
        "cam1 #6: opened again, epoch 2 (no answer)",
        "cam1 #6: person 7 is gone",
        "cam1 #6: finished: 2 frames, 4 without result, 1 tracks",
    ]


def start_program(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_each_line_is_there_at_once_and_a_reader_may_leave(redis_url: str, redis_client: Any) -> None:
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


def test_ctrl_c_ends_a_subscription_with_130(redis_url: str, redis_client: Any) -> None:
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


def test_a_full_disk_at_standard_output_is_one_line(redis_url: str, log: list[AnyResult]) -> None:
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


def test_status_tells_what_is_wrong(run: Run, redis_url: str) -> None:
    bus = Bus(redis_url)
    for name in ("cam1", "cam2"):
        bus.begin(stream_config(name, kind="live", policy="latest"), sinks=[])
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


# -- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Takes the place of the workers: collects their tasks."""
    found: list[Any] = []

    def run_task(task: Any) -> int:
        found.append(task)
        return 0

    monkeypatch.setattr("workers.__main__.run_task", run_task)
    return found


def test_worker_decode_begins_a_job_and_goes_on_with_it(run: Run, redis_url: str, tasks: list[Any]) -> None:
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


def test_the_other_workers_get_their_tasks(run: Run, redis_url: str, tasks: list[Any]) -> None:
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


def test_the_exit_code_of_a_worker_is_the_programs(run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.__main__.run_task", lambda task: 3)
    assert run("worker", "track", "--redis-url", redis_url)[0] == 3


# -- the program ------------------------------------------------------------------------------------------------------


def test_the_command_line_starts_without_the_heavy_parts() -> None:
    program = (
        "import sys, run_pipeline\n"
        "heavy = {'torch', 'av', 'numba', 'numpy', 'cv2', 'redis', 'msgspec', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_building_a_job_needs_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pipeline.config_file import with_flags\nfrom pipeline.config import JobConfig\n"
        "from pipeline.job import build_job\nfrom pipeline.progress import Display\n"
        f"build_job(with_flags(JobConfig(), {{'output': {str(tmp_path)!r}}}), ['demo'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_file_and_the_installed_command_are_the_same(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("maskstream")
    if not command.exists():
        pytest.skip("the package is not installed")
    for program in ([str(command)], PROGRAM):
        done = subprocess.run(
            [*program, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"maskstream {__version__}\n", "")


def test_a_closed_pipe_is_silent_for_short_answers_too() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as nobody:
        done = subprocess.run(
            [*PROGRAM, "models"], stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
