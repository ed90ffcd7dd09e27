"""Helpers that run the command line as a process in a folder of its own, and read the files that it writes.

A test fails if a run leaves a process or a temporary file behind, even if the run was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import psutil
from support.paths import ROOT

from pipeline.bus import StreamKeys
from pipeline.contract.results import AnyResult, EndResult, FrameResult, GapResult, decode_result
from pipeline.synthetic import Scene, SceneConfig, write_video

TIMEOUT_S = 90.0
GONE_TIMEOUT_S = 10.0
"""maximum time for the other processes of a run to end after the command"""
T = TypeVar("T")


class Running:
    """A running command line. Its output is appended to `out` and `err`."""

    def __init__(
        self, arguments: tuple[str | Path, ...], folder: Path, environment: dict[str, str], prefix: tuple[str, ...]
    ) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="run-"))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("MASKSTREAM_")}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, str(ROOT / "run_pipeline.py"), *map(str, arguments)],
            cwd=folder,
            env={**inherited, "TMPDIR": str(self.temporary), "COLUMNS": "200", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=_collect, args=(pipe, lines), daemon=True)
            for pipe, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for the end and return the exit code. Fail with the output so far if it takes longer."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.output}") from None
        for reader in self._readers:
            reader.join(GONE_TIMEOUT_S)
        return code

    def wait_for(self, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until a line of standard error contains the text."""
        self.until(lambda: any(text in line for line in self.err), timeout_s, repr(text))

    def until(self, condition: Callable[[], T], timeout_s: float = TIMEOUT_S, what: str = "the condition") -> T:
        """Wait until `condition` is true and return its value. Fail if the command ends first or it takes too long."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {what}:\n{self.output}"
            assert time.monotonic() < deadline_s, f"no {what} after {timeout_s} s:\n{self.output}"
            time.sleep(0.05)
        return found

    def interrupt(self) -> None:
        """Send SIGINT to the whole process group, as the terminal does on Ctrl-C."""
        os.killpg(self.process.pid, signal.SIGINT)

    def worker(self, name: str) -> psutil.Process | None:
        """Return the running worker whose name (`decode clip`, `infer-…`) starts with the text."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    _, found, words = " ".join(child.cmdline()).partition("-m workers ")
                    if found and words.startswith(name):
                        return child
        return None

    def redis_url(self) -> str:
        """Return the URL of the private server of this run."""
        socket = self.until(lambda: next(self.temporary.glob("maskstream-*/redis.sock"), None), what="the Redis socket")
        return f"unix://{socket}"

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the run, including those that are no descendants of the command."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                # A Redis server overwrites its environment, but its process title contains the path of its socket.
                inside = process.environ().get("TMPDIR") == str(self.temporary)
                if inside or str(self.temporary) in " ".join(process.cmdline()):
                    found.append(process)
        return found

    @property
    def output(self) -> str:
        """Return standard error and standard output so far."""
        return "\n".join([*self.err, *self.out])

    def close(self) -> None:
        """End the command if it runs. Fail if a process or a temporary file is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        deadline_s = time.monotonic() + GONE_TIMEOUT_S
        while (left := self._leftovers()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        for process in self.processes():
            process.kill()
        for reader, pipe in zip(self._readers, (self.process.stdout, self.process.stderr), strict=True):
            reader.join(GONE_TIMEOUT_S)
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self.temporary, ignore_errors=True)
        assert not left, f"left behind: {', '.join(left)}\n{self.output}"

    def _leftovers(self) -> list[str]:
        processes = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                processes.append(f"{process.pid} {' '.join(process.cmdline())}")
        return [*processes, *map(str, self.temporary.iterdir())]


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a command line that has ended."""

    code: int
    out: list[str]
    err: list[str]
    folder: Path
    wall_s: float


@contextlib.contextmanager
def running(
    *arguments: str | Path, folder: Path, prefix: tuple[str, ...] = (), **environment: str
) -> Iterator[Running]:
    """Start a command line in `folder` and end it after the block. Fail if a process or a temporary file is left.

    `prefix` is a command that runs the command line given as its arguments.
    """
    run = Running(arguments, folder, environment, prefix)
    try:
        yield run
    finally:
        run.close()


def run(
    *arguments: str | Path,
    folder: Path,
    timeout_s: float = TIMEOUT_S,
    prefix: tuple[str, ...] = (),
    **environment: str,
) -> Ended:
    """Run a command line in `folder` until it ends. Fail if it prints a traceback."""
    start_s = time.monotonic()
    with running(*arguments, folder=folder, prefix=prefix, **environment) as process:
        code = process.wait(timeout_s)
        wall_s = time.monotonic() - start_s
    assert "Traceback" not in process.output
    return Ended(code, process.out, process.err, folder, wall_s)


def _collect(pipe: Any, lines: list[str]) -> None:
    lines.extend(line.rstrip("\n") for line in pipe)


# -- results ----------------------------------------------------------------------------------------------------------


def read_results(path: Path) -> list[AnyResult]:
    """Return the messages of a JSONL file."""
    return [decode_result(line) for line in path.read_bytes().splitlines()]


def read_results_so_far(path: Path) -> list[AnyResult]:
    """Return the complete messages of a JSONL file that is being written or does not exist yet."""
    complete = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return [decode_result(line) for line in complete.splitlines()]


def read_log(client: Any, stream_id: str) -> list[AnyResult]:
    """Return the messages of a result log."""
    return [decode_result(fields[b"j"]) for _, fields in client.xrange(StreamKeys.of(stream_id).results)]


def frames_of(results: list[AnyResult]) -> list[FrameResult]:
    """Return the frame messages."""
    return [message for message in results if isinstance(message, FrameResult)]


def end_of(results: list[AnyResult]) -> EndResult:
    """Return the last message. Fail if it is not an end or if there is another end."""
    ends = [message for message in results if isinstance(message, EndResult)]
    assert len(ends) == 1
    assert ends[0] is results[-1]
    return ends[0]


def covered(results: list[AnyResult]) -> list[int]:
    """Return every frame number that a frame or a gap covers, in the order of the messages."""
    numbers: list[int] = []
    for message in results:
        if isinstance(message, FrameResult):
            numbers.append(message.frame_seq)
        elif isinstance(message, GapResult):
            numbers.extend(range(message.from_seq, message.frame_seq + 1))
    return numbers


def content(results: list[AnyResult]) -> list[Any]:
    """Return the messages without the fields that differ between runs: ID of the log, clock times and durations."""
    found = []
    for message in results:
        fields = {name: getattr(message, name) for name in message.__struct_fields__}
        for name in ("log_id", "published_at_ns", "arrived_at_ns", "timing_ms"):
            fields.pop(name, None)
        found.append((type(message).__name__, fields))
    return found


def count_pictures(path: Path) -> int:
    """Decode a video file and return its number of pictures."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


# -- sources ----------------------------------------------------------------------------------------------------------


def make_scene(path: Path, num_frames: int, **options: Any) -> Scene:
    """Write a synthetic street as H.264, by default 480x270 at 25 fps with four people and two cars."""
    config = {"width": 480, "height": 270, "num_people": 4, "num_cars": 2, "num_bicycles": 0, "seed": 3}
    scene = Scene(SceneConfig(num_frames=num_frames, **(config | options)))
    write_video(scene, path)
    return scene


def with_sound(source: Path, target: Path, rate_hz: int = 48000) -> Path:
    """Write the video of `source` without encoding it again, with a tone of the same length as sound."""
    import numpy as np

    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        video = container.add_stream_from_template(given.streams.video[0])
        sound = container.add_stream("aac", rate=rate_hz, layout="mono")
        duration_s = 0.0
        for packet in given.demux(video=0):
            if packet.dts is not None:
                duration_s = max(duration_s, float((packet.pts + packet.duration) * packet.time_base))
                packet.stream = video
                container.mux(packet)
        samples = (8000 * np.sin(np.arange(int(duration_s * rate_hz)) * 440 * 2 * np.pi / rate_hz)).astype(np.int16)
        for first in range(0, len(samples), 1024):
            chunk = av.AudioFrame.from_ndarray(samples[None, first : first + 1024], format="s16", layout="mono")
            chunk.sample_rate, chunk.pts = rate_hz, first
            container.mux(sound.encode(chunk))
        container.mux(sound.encode(None))
    return target
