"""The installed package: `import maskstream`, the command, and the files other than Python modules."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

IGNORED = shutil.ignore_patterns(".git", "*.egg-info", "build", "__pycache__", ".*_cache", "tests", "runs", ".venv")

LIBRARY = """
import pathlib, sys
import maskstream
assert "torch" not in sys.modules, "torch is imported"
import pipeline.api, pipeline.client, pipeline.contract.results, pipeline.errors
assert maskstream.run is pipeline.api.run
assert maskstream.segment is pipeline.api.segment
assert maskstream.subscribe is pipeline.client.subscribe
assert maskstream.FrameResult is pipeline.contract.results.FrameResult
assert maskstream.UsageError is pipeline.errors.UsageError
print(pathlib.Path(maskstream.__file__).parent)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of `pip install --target`, run on a copy because a build writes files beside the sources."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT, folder / "source", ignore=IGNORED)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--target", str(folder / "site"), str(folder / "source")],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "site"


def run_there(installed: Path, tmp_path: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_the_library_is_importable_by_its_name(installed: Path, tmp_path: Path) -> None:
    assert Path(run_there(installed, tmp_path, sys.executable, "-c", LIBRARY)) == installed


def test_the_library_is_importable_from_the_tree(tmp_path: Path) -> None:
    assert Path(run_there(ROOT, tmp_path, sys.executable, "-c", LIBRARY)) == ROOT


def test_every_file_of_the_packages_is_installed(installed: Path) -> None:
    for package in ("ops", "pipeline", "workers"):
        wanted = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if path.is_file()}
        wanted = {path for path in wanted if "__pycache__" not in path.parts}
        assert {path for path in wanted if not (installed / path).is_file()} == set()


def test_the_command_works_from_the_installation(installed: Path, tmp_path: Path) -> None:
    out = run_there(installed, tmp_path, sys.executable, str(installed / "bin" / "maskstream"), "models")
    assert out.startswith("street  (default on")
    assert str(installed / "pipeline" / "engine" / "weights" / "street.safetensors") in out
