"""Finds the local sources of a job that cannot be read, while the workers start and the model is loaded.

`SourceProbe` runs `python -m workers.source_probe`, which opens the sources one after the other and decodes the first
picture of each. It is a process of its own because a damaged file may crash a decoder. The sources after such a file
are not probed: their own decoders report what is wrong with them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue

from pipeline.child_path import python_path
from pipeline.contract.config import StreamConfig
from pipeline.contract.path_json import decode_with_paths, encode_with_paths
from pipeline.errors import SourceError
from pipeline.source import open_source
from pipeline.source.container import is_remote


class SourceProbe:
    """Probes the sources that are on this host, in the background; live sources and URLs are left out."""

    def __init__(self, streams: Sequence[StreamConfig]) -> None:
        self._failures: SimpleQueue[tuple[str, str]] = SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.source_probe"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": python_path()},
            start_new_session=True,
        )
        local = [stream for stream in streams if not stream.live and not is_remote(stream.source)]
        self._thread = threading.Thread(target=self._communicate, args=(encode_with_paths(local),), daemon=True)
        self._thread.start()

    def take_failures(self) -> list[tuple[str, str]]:
        """(stream id, error text) of each source that was found unreadable since the last call."""
        failures = []
        with contextlib.suppress(Empty):
            while True:
                failures.append(self._failures.get_nowait())
        return failures

    def close(self) -> None:
        """End the probe, whether it has finished or not; may be called more than once."""
        self._process.kill()
        self._process.wait()
        self._thread.join()

    def _communicate(self, request: bytes) -> None:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("the probe was started without pipes")
        with contextlib.suppress(BrokenPipeError), stdin:
            stdin.write(request)
        with stdout:
            for line in stdout:
                stream_id, problem = decode_with_paths(line, tuple[str, str])
                self._failures.put((stream_id, problem))


def _main() -> None:
    for stream in decode_with_paths(sys.stdin.buffer.read(), list[StreamConfig]):
        try:
            open_source(stream.source, stream.kind).close()
        except SourceError as error:
            sys.stdout.buffer.write(encode_with_paths((stream.stream_id, str(error))) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
