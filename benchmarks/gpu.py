"""All benchmarks of a CUDA device in under 8 minutes: parity, kernels, the engine, its stages and its roofline.

    python -m benchmarks.gpu [--json]

Writes benchmarks/results/<gpu>.json after each section, so that a later failure loses nothing. A parity failure ends
the program before the first figure. A section that has used up its time skips the rest of its cases and lists them;
unused time is added to the next section. Without CUDA, the program prints one line and exits with code 2.

roi_align, nms, preprocess   milliseconds of the kernels, called and in a CUDA graph, beside torchvision's or torch's
engines                      frames per second from I420 on the host to boxes and RLE strings on the host, by batch
                             size, beside torchvision's forward pass (see `benchmarks.gpu_engine`)
roofline                     lower bound of the time for the network's operations and bytes (`benchmarks.roofline`), as
                             a share of the measured time; the peak rates are those of a large matrix product and of a
                             large copy on the same device
stages                       milliseconds of each stage on the device
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_engine, gpu_kernels, report, roi_align
from benchmarks.cuda import Budget

RESULTS = Path(__file__).parent / "results"

_PACKAGES = ("torch", "torchvision", "triton", "numba")

_SMI_FIELDS = (
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)


class Section(NamedTuple):
    name: str
    time_s: float
    """time for the section, to which the unused time of earlier sections is added"""
    measure: Callable[[report.Report, Budget], Mapping[str, Any]]
    """adds rows to the report and returns further items for the JSON file"""


def parity(_: report.Report, budget: Budget) -> Mapping[str, Any]:
    """End the program if a result differs from its peer."""
    device = torch.device("cuda")
    for name, fault in (gpu_kernels.faults(device) | {"street in fp32": gpu_engine.fault(device)}).items():
        report.gate(name, fault)
    return {}


def sections() -> list[Section]:
    """The sections, 420 seconds in all. The rest of the 8 minutes is for imports and for cases in progress."""
    engines = [
        Section(model, time_s, partial(gpu_engine.measure, model))
        for model, time_s in (("maskrcnn_resnet50_fpn", 100), ("street", 50), ("maskrcnn_resnet50_fpn_v2", 90))
    ]
    return [
        Section("parity", 70, parity),
        Section("roi_align", 30, roi_align.measure_cuda),
        Section("nms", 20, gpu_kernels.measure_nms),
        Section("preprocess", 20, gpu_kernels.measure_preprocess),
        *engines,
        Section("stages", 40, gpu_engine.measure_stages),
    ]


def run(
    chosen: list[Section], results: dict[str, Any], table: report.Report, folder: Path, clock: Callable[[], float]
) -> bool:
    """Run the sections in order and write the results after each. Returns whether all succeeded."""
    results["sections"] = {}
    end_s = clock()
    failed = False
    for section in chosen:
        begin_s, first_row = clock(), len(table.rows)
        end_s += section.time_s
        written: dict[str, Any] = {}
        results["sections"][section.name] = written
        try:
            written |= section.measure(table, Budget(end_s, clock))
        except SystemExit as fault:  # raised by report.gate
            written["fault"] = str(fault)
            raise
        except Exception as error:  # the other sections still run
            failed = True
            written["error"] = repr(error)
            traceback.print_exc()
        finally:
            torch.cuda.empty_cache()
            written |= {"seconds": round(clock() - begin_s, 1), "rows": table.rows[first_row:]}
            write(results, folder)
    return not failed


def write(results: Mapping[str, Any], folder: Path) -> Path:
    """Write the GPU's file atomically and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{slug(results['gpu'])}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def slug(name: str) -> str:
    """The name of a GPU as a file name: lower case letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def state_of_gpu() -> dict[str, str]:
    """Driver version, clocks (MHz), temperature and power from nvidia-smi; empty if it cannot be run."""
    query = [f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_SMI_FIELDS, (value.strip() for value in done.stdout.split(",")), strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object per line, in addition to the file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"benchmarks.gpu needs CUDA: torch {torch.__version__} finds no CUDA device here", file=sys.stderr)
        sys.exit(2)
    name = torch.cuda.get_device_name()
    results: dict[str, Any] = {
        "gpu": name,
        "command": f"python -m benchmarks.gpu{' --json' if arguments.json else ''}",
        "began_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{report.cpu_name()}, {torch.get_num_threads()} threads, {platform.system()} {platform.release()}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "before": state_of_gpu(),
    }
    table = report.Report(name, _PACKAGES, "peer", as_json=arguments.json)
    fine = run(sections(), results, table, RESULTS, time.monotonic)
    results["after"] = state_of_gpu()
    path = write(results, RESULTS)
    if not arguments.json:
        print(f"written to {path}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
