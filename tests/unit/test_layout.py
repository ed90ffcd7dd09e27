"""Rules of CONTRIBUTING.md: allowed imports, modules that start without torch, and the length of files."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

LAYERS = ["ops", "pipeline", "maskstream", "workers", "run_pipeline"]
"""each may import itself and the ones before it"""
ROOMS = [
    {"backoff", "child_path", "console", "errors", "redaction"},
    {"contract"},
    {"coco", "models", "source", "synthetic", "tracking"},
    {"bus", "engine", "segments"},
    {"client", "exports", "training"},
    {"frames", "job"},
    {"api"},
    {"evaluation"},
    {"terminal"},
]
"""the rooms and files of pipeline/: each may import itself and those of the lines before its own"""
TORCH = {"torch", "torchvision", "triton"}
TORCH_MODULES = re.compile(r"pipeline/(engine|training)/|ops/\w+_triton\.py$")
"""the only modules that may import torch when they are loaded"""
WITHOUT_TORCH = [
    "maskstream",
    "run_pipeline",
    "workers.decode",
    "workers.track",
    "workers.sink",
    "workers.job",
    "workers.roles",
    "workers.supervisor",
    "pipeline.terminal.train",
    "pipeline.client",
    "pipeline.contract.config",
    "pipeline.models.registry",
    "pipeline.source",
    "pipeline.coco.data",
    "pipeline.models.weights_table",
]
MAX_LINES = 400


def source_files() -> list[Path]:
    """Return every Python file of the packages that are installed."""
    packages = (path for layer in LAYERS[:-1] for path in (ROOT / layer).rglob("*.py"))
    return sorted([*packages, ROOT / "maskstream.py", ROOT / "run_pipeline.py"])


@functools.cache
def imports(text: str, package: str) -> list[tuple[str, bool]]:
    """Return the names of the imported modules, and whether each is imported when the file is loaded."""
    return list(_imports(ast.parse(text), package, loading=True))


def _imports(node: ast.AST, package: str, *, loading: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        yield from ((alias.name, loading) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
        module = ".".join(part for part in (base, node.module) if part)
        # `from pipeline import a, b` imports two rooms
        yield from ((f"{module}.{alias.name}" if module == "pipeline" else module, loading) for alias in node.names)
    elif isinstance(node, ast.If):
        loading = loading and not ast.unparse(node.test).endswith("TYPE_CHECKING")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        loading = False
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package, loading=loading)


def upward(path: str, text: str) -> list[str]:
    """Return the imported modules of higher layers, of the tests and of the benchmarks."""
    layer = LAYERS.index(path.split("/")[0].removesuffix(".py"))
    forbidden = {*LAYERS[layer + 1 :], "tests", "benchmarks"}
    package = ".".join(path.split("/")[:-1])
    return [name for name, _ in imports(text, package) if name.split(".")[0] in forbidden]


def upward_in_pipeline(path: str, text: str) -> list[str]:
    """Return the imported modules of pipeline/ whose room is not below that of the file."""
    if not path.startswith("pipeline/") or path == "pipeline/__init__.py":
        return []
    room = room_of(path.removesuffix(".py").replace("/", "."))
    allowed = {room}.union(*ROOMS[: level_of(room)])
    package = ".".join(path.split("/")[:-1])
    names = (name for name, _ in imports(text, package) if name.startswith("pipeline."))
    return [name for name in names if name != "pipeline.__version__" and room_of(name) not in allowed]


def room_of(module: str) -> str:
    """Return the room of a module: the second part of `pipeline.ROOM.file`."""
    return module.split(".")[1]


def level_of(room: str) -> int:
    """Return the index of the line of ROOMS that contains the room. Fail if no line does."""
    (level,) = (level for level, rooms in enumerate(ROOMS) if room in rooms)
    return level


def torch_at_load(path: str, text: str) -> list[str]:
    """Return the modules of torch that the file imports when it is loaded, if it must not import them."""
    if TORCH_MODULES.match(path):
        return []
    package = ".".join(path.split("/")[:-1])
    return [name for name, loading in imports(text, package) if loading and name.split(".")[0] in TORCH]


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path: Path) -> None:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text()
    assert upward(name, text) == []
    assert upward_in_pipeline(name, text) == []
    assert torch_at_load(name, text) == []
    assert len(text.splitlines()) <= MAX_LINES


def test_worker_processes_and_the_library_do_without_the_command_line() -> None:
    modules = "pipeline.api, workers.__main__, workers.job, workers.roles"
    code = f"import sys, {modules}; print(*(name for name in sys.modules if name.startswith('pipeline.terminal')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_module_starts_without_torch(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({TORCH!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_kernels_are_compiled_into_the_cache_folder() -> None:
    direct = [
        path.name for path in (ROOT / "ops").glob("*.py") if re.search(r"numba import .*\bnjit", path.read_text())
    ]
    assert direct == ["jit.py"], "import njit from ops.jit, which sets numba's cache folder"


# -- tests of the rules -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("ops/a.py", "import pipeline.contract.config", ["pipeline.contract.config"]),
        ("ops/a.py", "def f():\n    from pipeline import config", ["pipeline.config"]),
        ("pipeline/bus/a.py", "from workers.base import Life", ["workers.base"]),
        ("pipeline/bus/a.py", "from ...workers import base", ["workers"]),
        ("workers/a.py", "import numpy, run_pipeline", ["run_pipeline"]),
        ("pipeline/a.py", "import tests.conftest", ["tests.conftest"]),
        ("pipeline/bus/a.py", "from . import b\nfrom ..config import c\nimport ops.masks\nimport workersoup", []),
        ("run_pipeline.py", "import ops, pipeline, workers", []),
    ],
)
def test_imports_upwards_are_found(path: str, text: str, found: list[str]) -> None:
    assert upward(path, text) == found


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("pipeline/bus/a.py", "from pipeline.client import subscribe", ["pipeline.client"]),
        ("pipeline/bus/a.py", "def f():\n    import pipeline.exports.mp4", ["pipeline.exports.mp4"]),
        ("pipeline/bus/a.py", "from pipeline import backoff, api", ["pipeline.api"]),
        ("pipeline/source/a.py", "from pipeline.coco import data", ["pipeline.coco"]),
        ("pipeline/api.py", "from pipeline.terminal.run import run", ["pipeline.terminal.run"]),
        ("pipeline/bus/a.py", "from . import b\nfrom pipeline import __version__\nimport pipeline.contract.wire", []),
        ("pipeline/terminal/a.py", "import pipeline.api, pipeline.terminal.evaluation_report", []),
        ("workers/a.py", "import pipeline.api", []),
    ],
)
def test_imports_of_a_higher_room_are_found(path: str, text: str, found: list[str]) -> None:
    assert upward_in_pipeline(path, text) == found


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("pipeline/a.py", "import torch", ["torch"]),
        ("ops/a.py", "try:\n    from torch.nn import functional\nexcept ImportError:\n    pass", ["torch.nn"]),
        ("workers/a.py", "class A:\n    import torchvision.ops", ["torchvision.ops"]),
        ("workers/a.py", "def f():\n    import torch", []),
        ("workers/a.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", []),
        ("pipeline/engine/a.py", "import torch", []),
    ],
)
def test_torch_at_load_is_found(path: str, text: str, found: list[str]) -> None:
    assert torch_at_load(path, text) == found
