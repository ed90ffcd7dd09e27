"""The command `subscribe` in processes of its own, beside a running job."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.pipeline_runs import (
    ROOT,
    Running,
    covered,
    end_of,
    frames_of,
    make_scene,
    read_results,
    run,
    running,
)
from support.redis_server import RedisServer

from pipeline.bus.embedded import ServerBinary
from pipeline.contract.results import AnyResult, FrameResult, decode_result

pytestmark = pytest.mark.timeout(300)  # the jobs take minutes on a busy machine

NUM_FRAMES = 30
KILL_AT = 8
"""number of the frame after which the first subscriber is killed"""


@dataclass(frozen=True)
class Watched:
    """An ended job, and the output of its subscribers."""

    server: RedisServer
    folder: Path
    results: list[AnyResult]
    early: list[str]
    late: list[str]
    interrupted: list[str]
    resumed: list[str]
    resumed_after: int
    exit_codes: list[int]
    complaints: list[str]

    @property
    def command(self) -> tuple[str, ...]:
        """Return the arguments that replay the log."""
        return ("subscribe", "street", "--from", "start", "--redis-url", self.server.url)


@pytest.fixture(scope="module")
def server(redis_binary: ServerBinary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    socket_folder = Path(tempfile.mkdtemp(prefix="redis-"))
    server = RedisServer(redis_binary, tmp_path_factory.mktemp("redis"), socket_folder / "redis.sock", {})
    yield server
    server.kill()
    shutil.rmtree(socket_folder)


@pytest.fixture(scope="module")
def watched(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Run a job with two subscribers that wait for it. One is killed and restarted; a third one starts at the end."""
    folder, redis = tmp_path_factory.mktemp("subscribe"), ("--redis-url", server.url)
    make_scene(folder / "street.mp4", NUM_FRAMES, width=320, height=180)
    follow = ("subscribe", "street", "--from", "start", *redis)
    with (
        running(*follow, folder=folder) as early,
        running(*follow, folder=folder) as interrupted,
        running("street.mp4", "--output", "out", "--save", "jsonl", *redis, folder=folder) as job,
    ):
        interrupted.until(lambda: last_frame(interrupted) >= KILL_AT, what=f"frame {KILL_AT}")
        interrupted.process.kill()
        interrupted.wait()
        seen = last_frame(interrupted)
        resume = ("subscribe", "street", "--from", str(seen), *redis)
        with running(*follow, folder=folder) as late, running(*resume, folder=folder) as resumed:
            codes = [process.wait() for process in (job, early, late, resumed)]
    results = read_results(folder / "out" / "street.jsonl")
    complaints = [*early.err, *interrupted.err, *late.err, *resumed.err]
    lines = (early.out, late.out, interrupted.out, resumed.out)
    return Watched(server, folder, results, *lines, seen, codes, complaints)


def last_frame(subscriber: Running) -> int:
    return max((frame.frame_seq for frame in frames_of(decoded(list(subscriber.out)))), default=0)


def decoded(lines: list[str]) -> list[AnyResult]:
    return [decode_result(line) for line in lines]


def test_from_start_replays_all_messages_in_order_and_continues_live(watched: Watched) -> None:
    assert watched.exit_codes == [0, 0, 0, 0]
    assert all(
        line.startswith("waiting for stream street: no results yet on Redis at ") for line in watched.complaints
    ), "only the subscribers that came before the job say that they wait"
    assert covered(watched.results) == list(range(1, NUM_FRAMES + 1))
    assert end_of(watched.results).reason == "finished"
    assert decoded(watched.early) == watched.results
    assert decoded(watched.late) == watched.results


def test_a_restarted_subscriber_misses_and_repeats_nothing(watched: Watched) -> None:
    seen = watched.resumed_after
    assert KILL_AT <= seen < NUM_FRAMES
    upto = 1 + next(
        index for index, one in enumerate(watched.results) if isinstance(one, FrameResult) and one.frame_seq == seen
    )
    assert decoded(watched.interrupted)[:upto] == watched.results[:upto]
    assert decoded(watched.resumed) == watched.results[upto:]


def test_text_format_prints_one_line_per_message(watched: Watched) -> None:
    text = run(*watched.command, "--format", "text", folder=watched.folder)
    assert (text.code, text.err, len(text.out)) == (0, [], len(watched.results))
    assert text.out[0].startswith("street #1 0.00 s: ")
    assert text.out[-1].startswith(f"street #{NUM_FRAMES}: finished: {NUM_FRAMES} frames")


def test_an_unknown_stream_is_reported_and_ends_the_command(watched: Watched) -> None:
    done = run("subscribe", "stret", "--timeout", "4", "--redis-url", watched.server.url, folder=watched.folder)
    assert (done.code, done.out) == (1, [])
    waiting, given_up = done.err
    url = watched.server.url
    assert waiting == f"waiting for stream stret: no results yet on Redis at {url}; known streams: street"
    assert f"no results of stream 'stret' on Redis at {url} after 4 s: check the stream id" in given_up


def test_a_pipe_into_head_prints_no_error(watched: Watched) -> None:
    command = shlex.join([sys.executable, str(ROOT / "run_pipeline.py"), *watched.command])
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 2; exit ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == watched.early[:2]


def test_a_new_job_of_the_same_stream_id_replaces_the_log(watched: Watched) -> None:
    again = run(
        "street.mp4", "--output", "again", "--save", "jsonl", "--max-frames", "4",
        "--redis-url", watched.server.url, folder=watched.folder,
    )  # fmt: skip
    assert again.code == 0
    replay = run(*watched.command, folder=watched.folder)
    assert replay.out == (watched.folder / "again" / "street.jsonl").read_text().splitlines()
    results = decoded(replay.out)
    assert covered(results) == [1, 2, 3, 4]
    assert {message.log_id for message in results}.isdisjoint({message.log_id for message in watched.results})
