"""The benchmarks: operations counted by hand, reports, sections that fail, and short runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import ROOT

from benchmarks import gpu, report, roofline
from benchmarks.cuda import Budget
from benchmarks.gpu import Section, slug
from benchmarks.roofline import Layer, Peaks
from pipeline.models.registry import get_model

V1, V2 = "maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2"
MODULES = ("alignment", "bus", "engine", "gpu", "keypoints", "masks", "parity", "roi_align", "tracker")

ROUNDED = 1.5e-3
"""two figures of four digits have an error of at most 5e-4 each, and their ratio is rounded too"""


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def taking(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def table() -> report.Report:
    return report.Report("a device", ["numpy"], "torchvision", as_json=True)


def json_rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# Operations


@pytest.mark.parametrize(
    ("model", "padded_hw", "gflops"),
    [(V1, (768, 1344), 522), (V2, (768, 1344), 853), (V1, (800, 1344), 538), (V2, (800, 1344), 873)],
    ids=str,
)
def test_operations_of_an_image_with_100_detections(model: str, padded_hw: tuple[int, int], gflops: float) -> None:
    counted = roofline.layers(get_model(model), padded_hw, 100)
    assert sum(layer.flops for layer in counted) / 1e9 == pytest.approx(gflops, rel=0.01)


def test_layers_counted_by_hand() -> None:
    counted = roofline.layers(get_model(V1), (768, 1344), 100)
    by_stage = {stage: [layer for layer in counted if layer.stage == stage] for stage in ("trunk", "box_head")}
    # 64 filters of 7x7 on 3 channels with stride 2
    numbers_in, numbers_out, weights = 3 * 768 * 1344, 64 * 384 * 672, 64 * 3 * 49
    expected = Layer("trunk", 2 * 3 * 49 * numbers_out, 2 * (numbers_in + numbers_out), 2 * weights)
    assert by_stage["trunk"][0] == expected
    # 1000 proposals of 256 channels, 7x7, to 1024 numbers each
    expected = Layer("box_head", 2 * 1000 * 12544 * 1024, 2 * 1000 * (12544 + 1024), 2 * 12544 * 1024)
    assert by_stage["box_head"][0] == expected
    assert len(by_stage["box_head"]) == 4
    assert {layer.stage for layer in counted} == {"trunk", "box_head", "mask_head"}


def test_mask_head_counted_by_hand() -> None:
    """Four convolutions at 14x14, a transposed one of 2x2 to 28x28, and a channel for each class or for one."""
    counted = roofline.layers(get_model(V1), (768, 1344), 100)
    *convolutions, transposed, last = [layer for layer in counted if layer.stage == "mask_head"]
    assert [layer.flops for layer in convolutions] == [2 * 100 * 196 * 256 * 256 * 9] * 4
    # each of the 28x28 outputs uses one of the 2x2 weights of each channel
    assert transposed.flops == 2 * 100 * 784 * 256 * 256
    assert last.flops == 2 * 100 * 784 * 256 * 91
    one_class = roofline.layers(get_model(V1), (768, 1344), 100, own_class_only=True)
    assert one_class[:-1] == counted[:-1]
    assert one_class[-1] == Layer("mask_head", 2 * 100 * 784 * 256, 2 * 100 * 784 * 257, 2 * 256)


def test_the_time_of_a_layer_is_the_maximum_of_operations_and_bytes() -> None:
    peaks = Peaks(flops_per_s=100, bytes_per_s=10)
    computes, moves = Layer("trunk", 500, 10, 10), Layer("trunk", 10, 20, 30)
    assert roofline.least_s([computes], 1, peaks) == 5
    assert roofline.least_s([moves], 1, peaks) == 5
    # activations count for each image, weights once
    assert roofline.least_s([computes, moves], 4, peaks) == 20 + (4 * 20 + 30) / 10


# benchmarks.gpu


def results_in(folder: Path) -> Any:
    return json.loads((folder / "a-gpu.json").read_text())


def test_sections_run_in_order_and_each_is_written_at_once(tmp_path: Path, table: report.Report) -> None:
    clock, left_s, written_before = Clock(), [], []

    def section(name: str, time_s: float, takes_s: float) -> Section:
        def measure(rows: report.Report, budget: Budget) -> Mapping[str, Any]:
            left_s.append(budget.left_s)
            written_before.append(list(results_in(tmp_path)["sections"]) if left_s[1:] else [])
            clock.taking(takes_s)
            rows.add(f"case of {name}", np.array([2.0]), np.array([6.0]))
            return {"note": f"of {name}"}

        return Section(name, time_s, measure)

    chosen = [section("a", 10, 4), section("b", 20, 30), section("c", 5, 1)]
    assert gpu.run(chosen, {"gpu": "A GPU"}, table, tmp_path, clock) is True
    assert written_before == [[], ["a"], ["a", "b"]]
    assert left_s == [10, 26, 1]  # unused time is added to the next section; overrun is not subtracted
    found = results_in(tmp_path)
    assert found["gpu"] == "A GPU"
    assert list(found["sections"]) == ["a", "b", "c"]
    assert [section["seconds"] for section in found["sections"].values()] == [4, 30, 1]
    for name, section_found in found["sections"].items():
        assert section_found["note"] == f"of {name}"
        assert [row["case"] for row in section_found["rows"]] == [f"case of {name}"]
    assert [path.name for path in tmp_path.iterdir()] == ["a-gpu.json"]


def test_a_section_that_fails_is_recorded_and_the_others_run(
    tmp_path: Path, table: report.Report, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(rows: report.Report, _: Budget) -> Mapping[str, Any]:
        rows.add("before the failure", np.array([1.0]), np.array([1.0]))
        raise RuntimeError("out of memory")

    def works(_: report.Report, __: Budget) -> Mapping[str, Any]:
        return {"done": True}

    chosen = [Section("bad", 10, fails), Section("good", 10, works)]
    assert gpu.run(chosen, {"gpu": "A GPU"}, table, tmp_path, Clock()) is False
    sections = results_in(tmp_path)["sections"]
    assert sections["bad"]["error"] == "RuntimeError('out of memory')"
    assert [row["case"] for row in sections["bad"]["rows"]] == ["before the failure"]
    assert sections["good"] == {"done": True, "seconds": 0, "rows": []}
    assert "RuntimeError: out of memory" in capsys.readouterr().err


def test_a_fault_of_parity_ends_the_run_and_is_recorded(tmp_path: Path, table: report.Report) -> None:
    def gated(_: report.Report, __: Budget) -> Mapping[str, Any]:
        report.gate("nms", "off by 3")
        return {}

    def never(_: report.Report, __: Budget) -> Mapping[str, Any]:
        raise AssertionError("measured after a fault")

    chosen = [Section("parity", 10, gated), Section("nms", 10, never)]
    with pytest.raises(SystemExit):
        gpu.run(chosen, {"gpu": "A GPU"}, table, tmp_path, Clock())
    sections = results_in(tmp_path)["sections"]
    assert list(sections) == ["parity"]
    assert sections["parity"]["fault"] == "nms: parity failed, off by 3: no figures"


def test_all_sections_leave_a_minute_of_the_8() -> None:
    sections = gpu.sections()
    assert sections[0].name == "parity"
    assert len({section.name for section in sections}) == len(sections)
    assert sum(section.time_s for section in sections) <= 7 * 60


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("Tesla T4 (MIG 1g.5gb)", "tesla-t4-mig-1g-5gb"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_gpu_benchmark_prints_one_line() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("benchmarks.gpu needs CUDA: ")


# benchmarks.report


def test_rows_have_all_fields_and_ratios_above_1_are_ours(
    table: report.Report, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, peer = np.array([1.0, 2.0, 4.0]), np.array([10.0, 40.0, 20.0])
    table.add("less is better", ours, peer)
    table.add("more is better", peer, ours, "frames/s")
    rows = json_rows(capsys.readouterr().out)
    assert rows == table.rows
    for row in rows:
        assert {"case", "ours", "peer", "ratio", "unit", "p20", "p80", "device", "versions"} == set(row)
        assert row["device"] == "a device"
        assert row["versions"] == {"numpy": np.__version__, "python": sys.version.split()[0]}
        assert row["ratio"] == 10  # the median of 10, 20 and 5, turn by turn
    assert [(row["ours"], row["peer"], row["unit"]) for row in rows] == [(2, 20, "ms"), (20, 2, "frames/s")]
    assert (rows[0]["p20"], rows[0]["p80"]) == (1.4, 3.2)


def test_the_table_has_a_header_and_one_line_per_case(capsys: pytest.CaptureFixture[str]) -> None:
    table = report.Report("a device", ["numpy"], "torchvision", as_json=False)
    table.add("a case", np.array([2.0]), np.array([5.0]))
    about, head, line = capsys.readouterr().out.splitlines()
    assert about.startswith("a device; numpy ")
    assert head.split() == ["unit", "p20", "p50", "p80", "torchvision", "ratio"]
    assert line.split() == ["a", "case", "ms", "2.000", "2.000", "2.000", "5.000", "2.50"]


def test_gate_ends_the_program_with_1_on_a_fault() -> None:
    report.gate("a case", None)
    program = "from benchmarks import report; report.gate('a case', '3 pixels differ'); print('figures')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "a case: parity failed, 3 pixels differ: no figures\n"


def test_calls_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call runs once before it is timed; then the calls take turns. With repeats, the time of a call includes its
    share of the wait.
    """
    clock, made = Clock(), []
    monkeypatch.setattr(report.time, "perf_counter", clock)

    def call(name: str, *seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def made_call() -> None:
            made.append(name)
            clock.taking(next(left))

        return made_call

    def wait() -> None:
        clock.taking(0.5)

    times_ms = report.take_turns([call("a", 9, 1, 2), call("b", 9, 3, 4)], 2)
    assert "".join(made) == "abab" + "ab"
    np.testing.assert_array_equal(times_ms, [[1000, 2000], [3000, 4000]])
    times_ms = report.take_turns([call("c", 9, 1, 2)], 1, wait, repeats=2)
    np.testing.assert_array_equal(times_ms, [[(1 + 2 + 0.5) * 1000 / 2]])


def test_cases_are_chosen_by_a_part_of_their_name() -> None:
    assert report.selected(["720p, fp32", "1080p, fp32", "720p, bf16"], "720p") == ["720p, fp32", "720p, bf16"]
    with pytest.raises(SystemExit, match="no case has '4K' in its name: expected part of one of 720p; 1080p"):
        report.selected(["720p", "1080p"], "4K")


# Programs


@pytest.mark.parametrize("module", MODULES)
def test_help(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{module}").main()
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m benchmarks.{module} ")
    assert "--json" in text


def test_every_benchmark_has_help() -> None:
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main()" in path.read_text()}
    assert programs == set(MODULES)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' decode, with numpy 2
@pytest.mark.parametrize(
    ("module", "case"), [("masks", "15 instances, 720p"), ("roi_align", "street: 20 14x14, 128 channels, fp32")]
)
def test_a_short_run(
    module: str, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark passes its parity gate and prints consistent figures."""
    threads = str(torch.get_num_threads())  # a benchmark sets the threads for the process, which other tests share
    monkeypatch.setattr(sys, "argv", [module, "--runs", "1", "--threads", threads, "--case", case, "--json"])
    importlib.import_module(f"benchmarks.{module}").main()
    (row,) = json_rows(capsys.readouterr().out)
    assert (row["case"], row["unit"]) == (case, "ms")
    assert row["ours"] > 0
    assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=ROUNDED)
    assert row["device"].endswith("threads" if int(threads) > 1 else "thread")
    assert {"torch", "torchvision", "numba", "python"} <= set(row["versions"])
