"""A job whose URLs contain secrets: no secret appears in the terminal, a file, a status, a result or a log."""

from __future__ import annotations

import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from support.pipeline_runs import make_scene, run, running
from support.redis_server import RedisServer

from pipeline.bus.connection import connect

pytestmark = pytest.mark.timeout(300)  # a real job, on a machine that may be busy

SECRET = "hunter2"
"""part of every secret of the test and of no other text"""


def test_no_secret_of_a_job_is_shown_anywhere(own_redis: Callable[..., RedisServer], tmp_path: Path) -> None:
    make_scene(tmp_path / "street.mp4", 10)
    video = (tmp_path / "street.mp4").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_video = self.path == f"/street.mp4?token={SECRET}"
            self.send_response(200 if is_video else 401)
            self.send_header("Content-Length", str(len(video) if is_video else 0))
            self.end_headers()
            if is_video:
                self.wfile.write(video)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_address[1]}"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        off = f"127.0.0.1:{taken.getsockname()[1]}"
    redis_server = own_redis()
    with redis_server.client() as client:
        client.config_set("requirepass", f"{SECRET}#redis")
    redis_socket = redis_server.url.removeprefix("unix://")
    redis_url = f"unix://:{SECRET}%23redis@{redis_socket}"
    shown: list[str] = []
    try:
        with running(
            f"http://{host}/street.mp4?token={SECRET}",  # is read to its end
            f"http://joe:{SECRET}@{host}/refused",
            f"rtsp://joe:{SECRET}@{off}/off",
            f"rtsp://joe:{SECRET} '#/\"@{off}/odd",
            "--verbose", "--output", "out", "--redis-url", redis_url, folder=tmp_path,
        ) as job:  # fmt: skip
            job.wait_for("street: done")
            for name in ("cam1", "cam2", "cam3"):
                job.until(lambda: any(name in line and "connecting again" in line for line in job.err), what=name)  # noqa: B023
            for command in (("status",), ("status", "--json"), ("subscribe", "street", "--from", "start")):
                ended = run(*command, "--redis-url", redis_url, folder=tmp_path)
                shown += [*ended.out, *ended.err]
            with connect(redis_url) as client:
                keys = dump(client)
            job.interrupt()
            assert job.wait() == 130
            shown += [*job.out, *job.err]
    finally:
        server.shutdown()
        server.server_close()
    # the decoders read the URLs from this key, which only the rights of a worker open
    assert SECRET in keys.pop("ms:sources")
    shown += [f"{name}: {value}" for name, value in keys.items()]
    for path in (tmp_path / "out").rglob("*"):
        shown.append(str(path))
        if path.is_file():
            shown.append(path.read_bytes().decode("latin-1"))
    assert len(shown) > 30
    assert [text for text in shown if SECRET in text] == []


def dump(client: Any) -> dict[str, str]:
    """Every key of the server with its whole value as text."""
    values = {}
    for key in client.keys("*"):
        kind = client.type(key)
        read = {
            b"hash": client.hgetall,
            b"stream": client.xrange,
            b"string": client.get,
            b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"list": lambda key: client.lrange(key, 0, -1),
        }[kind]
        values[key.decode()] = str(read(key))
    return values
