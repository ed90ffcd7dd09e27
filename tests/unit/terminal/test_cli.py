"""The command line: usage errors, help, flags, exit codes, closed pipes. tests/integration/workers runs whole jobs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.bus_parts import stream_config
from support.paths import ROOT

import run_pipeline
from pipeline import __version__
from pipeline.bus import Bus
from pipeline.contract.config import STREAM_DEFAULTS, JobConfig
from pipeline.errors import BusError, MaskStreamError, OutputError
from pipeline.terminal.progress import Display
from workers import job as worker_job

PROGRAM = [sys.executable, str(ROOT / "run_pipeline.py")]
NOWHERE = "unix:///nowhere/redis.sock"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _folder_with_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run every test in a folder that contains `a.mp4`, without a default Redis URL."""
    monkeypatch.delenv("MASKSTREAM_REDIS_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()


# -- usage errors -----------------------------------------------------------------------------------------------------


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
        ("a.mp4 --save jsonl --save gif", "--save: expected one of jsonl, video, got 'gif'"),
        ("a.mp4 --save gif --save jsonl", "--save: expected one of jsonl, video, got 'gif'"),
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
def test_a_usage_error_is_one_line_and_exit_code_2(run: Run, arguments: str, expected: str) -> None:
    Path("broken.yaml").write_text("conf: 0.1\nconf: a: b")
    Path("wrong.yaml").write_text("streams:\n  door: {source: a.mp4,\n    cnf: 0.2}")
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"maskstream: error: {expected}")
    assert err.count("\n") == 1
    assert not Path("runs").exists(), "a refused job left a folder behind"


def test_an_output_folder_that_cannot_be_created_is_exit_code_1(run: Run) -> None:
    code, _, err = run("a.mp4", "--output", "a.mp4/x")
    assert code == 1
    assert err == "maskstream: error: output: cannot make a.mp4/x: not a directory; give another --output\n"


def test_control_characters_in_a_file_name_do_not_reach_the_terminal(run: Run) -> None:
    assert run("no\x1b[31m\nsuch")[2].isprintable() is False  # the line end
    assert "\x1b" not in run("no\x1b[31m\nsuch")[2]
    assert run("no\x1b[31m\nsuch")[2].count("\n") == 1


def test_the_password_of_a_redis_url_is_not_printed(run: Run) -> None:
    code, _, err = run("a.mp4", "--redis-url", "redis://user:secret@127.0.0.1:1")
    assert code == 2
    assert "secret" not in err


def test_an_old_redis_is_refused(run: Run, own_redis: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.bus.server_check.MIN_VERSION", (99, 1))
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
    for verb in run_pipeline.COMMAND_LINE.verbs:
        assert f"\n   {verb} " in out, verb
    for code_text in ("0    every stream", "1    a stream", "2    the request", "130  interrupted"):
        assert code_text in out


SUBVERBS = {"worker": ["decode", "infer", "track", "sink"], "evaluate": ["coco", "video", "mot"]}


@pytest.mark.parametrize(
    "arguments",
    [f"{verb} {sub}".strip() for verb in run_pipeline.COMMAND_LINE.verbs for sub in ["", *SUBVERBS.get(verb, [])]],
)
def test_every_verb_has_help(run: Run, arguments: str) -> None:
    for flag in ("-h", "--help"):
        code, out, err = run(*arguments.split(), flag)
        assert (code, err) == (0, "")
        assert f"{arguments} " in out
        assert "Example" in out


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"maskstream {__version__}\n", "")


def test_help_shows_the_defaults_of_the_configuration(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    out = run("--help")[1] + run("worker", "decode", "--help")[1]
    config = JobConfig()
    for field in JobConfig.__struct_fields__:
        value = getattr(STREAM_DEFAULTS, field, None) or getattr(config, field)
        line = next((line for line in out.splitlines() if f"--{field.replace('_', '-')} " in line), "")
        if line and value:
            text = ",".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
            assert f"[default: {text}]" in line, field


# -- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def job_runner(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace the supervisor by a function that records the jobs. Return the list of jobs."""
    jobs: list[Any] = []

    def run_job(job: Any, display: Display) -> int:
        jobs.append(job)
        return 0

    monkeypatch.setattr(worker_job, "run_job", run_job)
    return jobs


def test_flags_reach_the_job(run: Run, job_runner: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.yaml").write_text("conf: 0.1\nbatch: 2\nstreams: {door: {source: 'rtsp://h/1', max_fps: 3}}")
    monkeypatch.setenv("MASKSTREAM_REDIS_URL", "unix:///from/environment")
    flags = """
        --config c.yaml --stream-id clip --conf 0.9 --classes person --classes car,bus --save jsonl --output out
        --device cuda:1
        --precision fp16 --model street --batch-timeout-ms 7.5 --workers 2 --max-frames 5 --stride 2
        --drop-policy latest --max-staleness-s 2 --rtsp-transport udp
        """
    code, _, err = run("run", "a.mp4", *flags.split())
    assert (code, err) == (0, "")
    (job,) = job_runner
    assert [stream.stream_id for stream in job.streams] == ["door", "clip"]
    for stream in job.streams:
        assert (stream.conf, stream.class_ids, stream.max_frames, stream.stride) == (0.9, [1, 3, 6], 5, 2)
        assert (stream.policy, stream.max_staleness_s, stream.rtsp_transport) == ("latest", 2.0, "udp")
    assert [stream.max_fps for stream in job.streams] == [3.0, None]
    assert (job.device, job.precision, job.batch, job.batch_timeout_ms, job.workers) == ("cuda:1", "fp16", 2, 7.5, 2)
    assert (job.redis_url, job.save, str(job.output)) == ("unix:///from/environment", ["jsonl"], "out")


def test_a_flag_overrides_the_environment_which_overrides_the_file(
    run: Run, job_runner: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("c.yaml").write_text("redis_url: unix:///file")
    run("a.mp4", "--config", "c.yaml")
    monkeypatch.setenv("MASKSTREAM_REDIS_URL", "unix:///environment")
    run("a.mp4", "--config", "c.yaml")
    run("a.mp4", "--config", "c.yaml", "--redis-url", "unix:///flag")
    assert [job.redis_url for job in job_runner] == ["unix:///file", "unix:///environment", "unix:///flag"]


def test_a_file_named_like_a_verb_is_given_as_a_path(run: Run, job_runner: list[Any]) -> None:
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
def test_exit_codes_of_a_job_that_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch, redis_url: str, error: BaseException, began: bool, code: int
) -> None:
    bus = Bus(redis_url)
    bus.begin_job(stream_config("a"), sinks=[])

    def run_job(job: Any, display: Display) -> int:
        if began:
            display.update(bus.stream_statuses(), [])
        raise error

    monkeypatch.setattr(worker_job, "run_job", run_job)
    found, _, err = run("a.mp4")
    assert found == code
    assert "Traceback" not in err
    assert ("maskstream: error: " in err) == (code != 130)
    assert not Path("runs").exists()


def test_a_failed_job_keeps_the_files_it_has_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_job(job: Any, display: Display) -> int:
        (job.output / "a.jsonl").touch()
        raise OutputError("disk full")

    monkeypatch.setattr(worker_job, "run_job", run_job)
    assert run("a.mp4")[0] == 1
    assert Path("runs/a-1/a.jsonl").is_file()


def test_a_renamed_stream_is_announced(run: Run, job_runner: list[Any]) -> None:
    for folder in ("x", "y"):
        Path(folder).mkdir()
        (Path(folder) / "cam.mp4").touch()
    code, _, err = run("x/cam.mp4", "y/cam.mp4", "a.mp4")
    assert code == 0
    assert [stream.stream_id for stream in job_runner[0].streams] == ["cam", "cam-2", "a"]
    assert err.splitlines()[0] == "y/cam.mp4 is stream cam-2, because cam is the id of another stream"
    assert "x/cam.mp4" not in err
    assert "is stream" not in run("x/cam.mp4", "y/cam.mp4", "--stream-id", "one", "--stream-id", "two")[2]
    assert "is stream" not in run("x/cam.mp4", "y/cam.mp4", "--quiet")[2]


def test_verbose_names_the_source_of_every_stream(run: Run, job_runner: list[Any]) -> None:
    err = run("a.mp4", "rtsp://joe:secret@host/1", "--verbose")[2]
    assert err.splitlines()[:2] == ["a.mp4 is stream a", "rtsp://***@host/1 is stream cam1"]
    assert "secret" not in err


# -- the program ------------------------------------------------------------------------------------------------------


def test_the_command_line_starts_without_heavy_imports() -> None:
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
        "from pipeline.job.yaml_file import with_flags\nfrom pipeline.contract.config import JobConfig\n"
        "from pipeline.job.build import build_job\nfrom pipeline.terminal.progress import Display\n"
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


def test_a_closed_pipe_is_silent_for_short_output_too() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed_pipe:
        done = subprocess.run(
            [*PROGRAM, "models"], stdout=closed_pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")
