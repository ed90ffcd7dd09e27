"""Redis users with limited rights, servers that evict keys, and keys of a wrong type."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from support import pipeline_runs
from support.bus_parts import Job, stream_config
from support.paths import ROOT
from support.redis_server import RedisServer

from pipeline.bus import Bus, StreamKeys
from pipeline.errors import BusError
from pipeline.terminal.reports import status_lines

PAGE = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
USERS = {line.split()[1]: line for line in re.findall(r"^user ms-.*$", PAGE, re.MULTILINE)}
"""name -> rights, as the documentation prints them"""


@pytest.fixture
def server(own_redis: Callable[..., RedisServer]) -> RedisServer:
    return own_redis()


def url_of_user(server: RedisServer, name: str, rights: str) -> str:
    """Create the user on the server and return the URL with its name and password."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", name, "reset", *rights.split())
    return f"unix://{name}:pw@{server.url.removeprefix('unix://')}"


def documented_user(server: RedisServer, name: str) -> str:
    """Return the URL of a user with the rights of docs/contract.md."""
    rights = USERS[name].split(maxsplit=2)[2].replace(">PASSWORD", ">pw")
    if server.version < (7, 0, 0):
        rights = rights.replace("%R~", "~")
    return url_of_user(server, name, rights)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    pipeline_runs.make_scene(path, 10, width=160, height=90)
    return path


@contextlib.contextmanager
def worker(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(ROOT / "run_pipeline.py"), "worker", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_each_role_works_with_the_documented_rights(server: RedisServer, clip: Path, tmp_path: Path) -> None:
    urls = {name: documented_user(server, name) for name in USERS}
    with (
        worker("infer", "--model", "street", "--redis-url", urls["ms-infer"]),
        worker("track", "--redis-url", urls["ms-track"]),
        worker("decode", clip, "--model", "street", "--redis-url", urls["ms-decode"]) as decode,
    ):
        bus = Bus(server.url)
        while "clip" not in bus.streams():
            assert decode.poll() is None, decode.communicate()[1]
        with worker("sink", "clip", "--output", tmp_path, "--save", "jsonl", "--redis-url", urls["ms-sink"]) as sink:
            program = [sys.executable, str(ROOT / "run_pipeline.py")]
            status = subprocess.run(
                [*program, "status", "--redis-url", urls["ms-status"]], capture_output=True, text=True, check=False
            )
            assert "clip" in status.stdout, status.stderr
            subscribe = [*program, "subscribe", "clip", "--from", "start", "--redis-url", urls["ms-reader"]]
            heard = subprocess.run(subscribe, capture_output=True, text=True, timeout=90, check=False)
            assert heard.returncode == 0, heard.stderr
            assert all(line.startswith("waiting for stream clip: ") for line in heard.stderr.splitlines())
            assert sink.wait(60) == 0, sink.communicate()[1]
        assert decode.wait(60) == 0, decode.communicate()[1]
        bus.close()
    assert heard.stdout == (tmp_path / "clip.jsonl").read_text()
    assert heard.stdout.count('"type":"frame"') == 10


def test_one_command_works_with_the_documented_rights(server: RedisServer, clip: Path, tmp_path: Path) -> None:
    url = documented_user(server, "ms-job")
    ended = pipeline_runs.run(
        clip, "--save", "jsonl", "--output", tmp_path / "out", "--redis-url", url, folder=tmp_path
    )
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "clip.jsonl").read_text().count('"type":"frame"') == 10


def test_a_missing_right_is_reported_with_the_page_that_lists_the_rights(server: RedisServer) -> None:
    bus = Bus(url_of_user(server, "weak", "on >pw ~ms:* -@all +ping"))
    bus.check()
    with pytest.raises(BusError, match=r"the user lacks a right .* docs/contract\.md"), bus.explained_errors():
        bus.begin_job(stream_config("cam1"), [])
    bus.close()


# -- channels ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def mute(server: RedisServer) -> Iterator[Bus]:
    """Return the bus of a user with all rights except on channels, the default of a new user in Redis 7."""
    bus = Bus(url_of_user(server, "mute", "on >pw ~* +@all resetchannels"))
    yield bus
    bus.close()


def test_results_that_could_not_be_published_are_counted(mute: Bus) -> None:
    job = Job(mute)
    tracker = job.result_writer()
    job.offer(job.writer(), 2)
    job.commit(tracker, 1)
    job.commit(tracker, 2)
    assert job.result_ids() == ["1-0", "2-0"]
    status = mute.stream_status("cam1", None)
    assert status.num_unpublished == 2
    assert "cam1: 2 results are in the log but not on the channel" in "\n".join(status_lines([status], []))


def test_denied_channels_are_detected_before_the_first_result(mute: Bus, server: RedisServer) -> None:
    if server.version < (7, 0, 0):
        assert mute.denied_channels(["cam1"]) == []  # this version of the server does not report it
        return
    assert mute.denied_channels(["cam1", "cam2"]) == ["ms:results:cam1", "ms:results:cam2"]
    partial = Bus(url_of_user(server, "partial", "on >pw ~* +@all resetchannels &ms:results:cam1"))
    assert partial.denied_channels(["cam1", "cam2"]) == ["ms:results:cam2"]
    partial.close()


def test_a_job_warns_of_a_silent_channel_and_writes_the_log(mute: Bus, server: RedisServer, clip: Path) -> None:
    folder = clip.parent
    ended = pipeline_runs.run(
        clip, "--save", "jsonl", "--output", folder / "out", "--redis-url", mute.url, folder=folder
    )
    assert ended.code == 0, ended.err
    if server.version >= (7, 0, 0):  # earlier versions cannot tell it before the first result
        assert [line for line in ended.err if "may not publish on ms:results:clip" in line]
    [line] = [line for line in ended.err if "results are in the log but not on the channel" in line]
    # ten frames and the end, at least
    assert int(line.split("clip: ")[1].split()[0]) >= 11
    assert (clip.parent / "out" / "clip.jsonl").read_text().count('"type":"frame"') == 10


# -- eviction ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl"])
def test_a_server_that_would_evict_keys_of_a_job_is_refused(own_redis: Callable[..., RedisServer], policy: str) -> None:
    server = own_redis(maxmemory="64mb", maxmemory_policy=policy)
    for rights in ("on >pw ~* +@all", "on >pw ~* +@all -config", "on >pw ~* +@all -info"):
        bus = Bus(url_of_user(server, "user", rights))
        with pytest.raises(BusError, match=f"maxmemory-policy {policy}: .* CONFIG SET maxmemory-policy noeviction"):
            bus.check()
        bus.close()


def test_a_policy_without_a_limit_evicts_nothing(own_redis: Callable[..., RedisServer]) -> None:
    bus = Bus(own_redis(maxmemory="0", maxmemory_policy="allkeys-lru").url)
    bus.check()
    bus.close()


def test_a_user_who_may_not_read_the_policy_is_accepted(own_redis: Callable[..., RedisServer]) -> None:
    server = own_redis(maxmemory="64mb", maxmemory_policy="allkeys-lru")
    bus = Bus(url_of_user(server, "user", "on >pw ~* +@all -config -info"))
    bus.check()
    bus.close()


# -- keys of a wrong type ---------------------------------------------------------------------------------------------

WRONG_KEYS = {"ms:sources": "hash", StreamKeys.of("clip").state: "hash", StreamKeys.of("clip").frames: "stream"}


@pytest.mark.parametrize("key", WRONG_KEYS)
def test_a_job_names_a_key_of_a_wrong_type(
    run: Callable[..., tuple[int, str, str]], redis_url: str, redis_client: Any, clip: Path, key: str
) -> None:
    redis_client.set(key, "of another program")
    code, _, err = run(clip, "--output", clip.parent / "out", "--redis-url", redis_url, "-q")
    assert code == 2
    assert err.count("\n") == 1
    assert f"key {key} holds a string where a {WRONG_KEYS[key]} is expected" in err
    assert f"redis-cli DEL '{key}'" in err


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("ms:sources", "status"),
        (StreamKeys.of("clip").status, "status"),
        (StreamKeys.of("clip").state, "status"),
        (StreamKeys.of("clip").results, "subscribe clip --from start"),
        ("ms:sources", "worker decode clip.mp4 --model street"),
        (StreamKeys.of("clip").state, "worker decode clip.mp4 --model street"),
        (StreamKeys.of("clip").state, "worker sink clip --output out"),
    ],
)
def test_verbs_name_a_key_of_a_wrong_type(
    run: Callable[..., tuple[int, str, str]],
    redis_url: str,
    redis_client: Any,
    clip: Path,
    key: str,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(clip.parent)
    bus = Bus(redis_url)
    bus.begin_job(stream_config("clip", source="clip.mp4", kind="file", model="street"), ["output"])
    bus.close()
    redis_client.delete(key)
    redis_client.set(key, "of another program")
    code, _, err = run(*shlex.split(command), "--redis-url", redis_url)
    assert code in (1, 2)
    assert "Traceback" not in err
    assert key in err
    assert "redis-cli DEL" in err


@pytest.mark.parametrize(
    ("role", "name"),
    [
        ("track", "ms:sources"),
        ("track", StreamKeys.of("clip").state),
        ("track", StreamKeys.of("clip").detections),
        ("track", StreamKeys.of("clip").results),
        ("track", StreamKeys.of("clip").status),
        ("sink clip --output out", StreamKeys.of("clip").results),
    ],
)
def test_a_running_worker_names_a_key_of_a_wrong_type(
    redis_url: str, redis_client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bus = Bus(redis_url)
    job = Job(bus, "clip", sinks=["output"])
    queue = job.queue()
    job.offer(job.writer(), 2)
    job.answer(queue, queue.read(2))
    bus.close()
    redis_client.delete(name)
    redis_client.set(name, "of another program")
    with worker(*role.split(), "--redis-url", redis_url) as process:
        assert process.stderr is not None
        err = process.stderr.read()
        assert process.wait(60) == 1
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("ERROR")]
    assert name in line
    assert f"redis-cli DEL '{name}'" in line


def test_any_other_error_reply_is_shown(redis_url: str) -> None:
    bus = Bus(redis_url)
    with pytest.raises(BusError, match="refuses: "), bus.explained_errors():
        bus.client.execute_command("INCR")
    with pytest.raises(redis.ConnectionError), bus.explained_errors():
        raise redis.ConnectionError("away")
    bus.close()
