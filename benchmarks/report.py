"""Helpers of the benchmarks: arguments, timing in turns, the parity gate, the table and the JSON output.

A figure is a median over runs. Ours and the peer take turns in one process, so that other load on the machine affects
both alike. The ratio is the median of the ratios of the turns; above 1, ours is better.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Row = dict[str, Any]
"""case, ours, peer, ratio, unit, p20, p80 (of ours), device, versions"""

_CASE_WIDTH = 62


class Report:
    """Prints one line for each case when it is measured, as a table or as one JSON object per line.

    rows    the printed rows as JSON objects
    """

    def __init__(self, device: str, packages: Sequence[str], peer: str, *, as_json: bool) -> None:
        """device: name of the device; packages: packages whose versions are printed; peer: its name in the table."""
        self.rows: list[Row] = []
        self._as_json = as_json
        self._device = device
        self._versions = {package: version(package) for package in packages} | {"python": platform.python_version()}
        if not as_json:
            print(f"{device}; " + ", ".join(f"{name} {number}" for name, number in self._versions.items()))
            head = f"{'unit':>8} {'p20':>9} {'p50':>9} {'p80':>9} {peer:>12} {'ratio':>7}"
            print(f"{'':>{_CASE_WIDTH}} {head}", flush=True)

    def add(self, case: str, ours: NDArray[np.float64], peer: NDArray[np.float64], unit: str = "ms") -> None:
        """Add a case. ours and peer are (R,), one value per turn. For `ms` lower is better, for other units higher."""
        p20, p50, p80 = np.percentile(ours, [20, 50, 80])
        ratio = float(np.median(peer / ours if unit == "ms" else ours / peer))
        row = {"case": case, "ours": _rounded(p50), "peer": _rounded(np.median(peer)), "ratio": _rounded(ratio)}
        row |= {"unit": unit, "p20": _rounded(p20), "p80": _rounded(p80)}
        row |= {"device": self._device, "versions": self._versions}
        self.rows.append(row)
        line = f"{case:>{_CASE_WIDTH}} {unit:>8} {p20:9.3f} {p50:9.3f} {p80:9.3f} {np.median(peer):12.3f} {ratio:7.2f}"
        print(json.dumps(row) if self._as_json else line, flush=True)


def arguments(module: str, description: str | None, num_runs: int) -> argparse.ArgumentParser:
    """A parser with --runs, --case and --json for `python -m module`, described by the docstring's first line."""
    summary = (description or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=summary)
    parser.add_argument("--runs", type=_positive, default=num_runs, help=f"turns per case (default {num_runs})")
    parser.add_argument("--case", default="", metavar="TEXT", help="only the cases whose name contains this")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the option --threads."""
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=_positive, default=num_cores, help=f"of each side (default {num_cores})")


def use_threads(num_threads: int) -> str:
    """Set the number of threads of torch and numba. Returns the CPU's name and the number, for a report."""
    import numba
    import torch

    torch.set_num_threads(num_threads)
    numba.set_num_threads(min(num_threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    return f"{cpu_name()}, {num_threads} thread{'s' if num_threads > 1 else ''}"


def selected(names: Sequence[str], text: str) -> list[str]:
    """The names of the cases that contain the text. Ends the program if there is none."""
    found = [name for name in names if text in name]
    if not found:
        sys.exit(f"no case has {text!r} in its name: expected part of one of {'; '.join(names)}")
    return found


def gate(case: str, fault: str | None) -> None:
    """End the program, before any figure of the case is printed, if parity failed."""
    if fault is not None:
        sys.exit(f"{case}: parity failed, {fault}: no figures")


def take_turns(
    calls: Sequence[Callable[[], object]], num_runs: int, wait: Callable[[], None] = lambda: None, repeats: int = 1
) -> NDArray[np.float64]:
    """Time the calls in turns: (len(calls), num_runs) milliseconds per call. Each is called once before it is timed.

    wait      function that blocks until the device has finished
    repeats   consecutive calls per turn, with one wait
    """
    times_ms = np.empty((len(calls), num_runs))
    for call in calls:
        call()
    for run in range(num_runs):
        for which, call in enumerate(calls):
            wait()
            begin_s = time.perf_counter()
            for _ in range(repeats):
                call()
            wait()
            times_ms[which, run] = (time.perf_counter() - begin_s) * 1e3 / repeats
    return times_ms


def cpu_name() -> str:
    """The model name of the CPU if the system provides it, otherwise its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _rounded(value: float) -> float:
    """Round to four significant digits."""
    return float(f"{float(value):.4g}")
