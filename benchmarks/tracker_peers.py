"""The trackers of `benchmarks.tracker` as child processes on one core. Ours runs in this environment; the peers run in
environments of their own, created when they are first needed, because their dependencies conflict.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

CHILD = Path(__file__).with_name("tracker_child.py")

ENVIRONMENTS = {
    "trackers": ("trackers==2.6.1", "supervision==0.31.2", "numpy==2.4.6", "scipy==1.17.1", "opencv-python==5.0.0.93"),
    "supervision": ("supervision==0.25.1", "numpy==2.4.6", "scipy==1.17.1", "opencv-python==5.0.0.93"),
    "norfair": ("norfair==2.3.0", "numpy==1.26.4", "scipy==1.17.1", "filterpy==1.4.5"),
    "motpy": ("motpy==0.0.10", "numpy==2.4.6", "scipy==1.17.1", "filterpy==2.0.0"),
}
"""environment -> packages to install; the first is the peer"""

_ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "VECLIB_MAXIMUM")
}
_MARK = "installed.txt"
_MAX_SHOWN = 2000


class Peer(NamedTuple):
    """name in `benchmarks/tracker_child.py` -> environment, None for ours"""

    tracker: str
    environment: str | None


OURS, OURS_MASKS = Peer("ours", None), Peer("ours, masks", None)
PEERS = [
    Peer("trackers SORT", "trackers"),
    Peer("trackers ByteTrack", "trackers"),
    Peer("trackers OC-SORT", "trackers"),
    Peer("trackers BoT-SORT", "trackers"),
    Peer("supervision ByteTrack", "supervision"),
    Peer("norfair", "norfair"),
    Peer("motpy", "motpy"),
]


def default_folder() -> Path:
    """Folder of the environments: under $XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "maskstream" / "benchmarks"


def interpreter(environment: str, folder: Path) -> Path:
    """The Python of a peer's environment in the folder. The environment is created unless it exists with the packages
    of ENVIRONMENTS. Ends the program with pip's output if that fails.
    """
    home, pins = folder / environment, ENVIRONMENTS[environment]
    python, mark = home / "bin" / "python", home / _MARK
    wanted = "\n".join(pins)
    if not (mark.is_file() and mark.read_text(encoding="utf-8") == wanted):
        print(f"making an environment with {pins[0]} in {home}, once", file=sys.stderr)
        _call([sys.executable, "-m", "venv", "--clear", str(home)])
        _call([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pins])
        mark.write_text(wanted, encoding="utf-8")
    return python


class Child:
    """A tracker in a child process with one thread."""

    def __init__(self, peer: Peer, process: subprocess.Popen[str], errors: Any) -> None:
        self.peer = peer
        self._process = process
        self._errors = errors

    def open(self, scene: Path) -> None:
        """Begin a scene with a new tracker."""
        self._ask({"open": str(scene)})

    def run(self, num_frames: int) -> list[float]:
        """Process up to that many more frames. Returns the seconds inside each update."""
        update_s: list[float] = self._ask({"run": num_frames})["update_s"]
        return update_s

    def save(self, path: Path) -> None:
        """Write the tracks so far."""
        self._ask({"save": str(path)})

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and return the answer. Ends the program with the child's output if the child has died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            print(json.dumps(command), file=stdin, flush=True)
        except BrokenPipeError:
            line = ""
        else:
            line = stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            sys.exit(f"{self.peer.tracker} failed:\n{self._errors.read()[-_MAX_SHOWN:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def children(peers: Sequence[Peer], folder: Path) -> Iterator[list[Child]]:
    """One process for each tracker, with its environment in the folder; the processes end with the block."""
    pythons = [None if peer.environment is None else interpreter(peer.environment, folder) for peer in peers]
    with ExitStack() as stack:
        yield [stack.enter_context(_started(peer, python)) for peer, python in zip(peers, pythons, strict=True)]


@contextmanager
def _started(peer: Peer, python: Path | None) -> Iterator[Child]:
    """Start a tracker. With python None, it runs in this environment and can import the checkout."""
    variables = os.environ | _ONE_THREAD
    if python is None:
        variables["PYTHONPATH"] = str(CHILD.parents[1])
    start = [sys.executable, "-P"] if python is None else [str(python), "-I"]
    command = [*start, "-W", "ignore", str(CHILD), peer.tracker]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=variables) as process,
    ):
        # All on one core, because the cores of a shared host can run at different speeds.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        try:
            yield Child(peer, process, errors)
        finally:
            process.kill()
            if process.stdin is not None:
                with suppress(BrokenPipeError):
                    process.stdin.close()


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-_MAX_SHOWN:]}")
