"""Environments without a home folder, a writable installation, an entry in passwd, or UTF-8."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import ROOT

UID = 54321
"""a user ID without an entry in passwd"""
NO_UTF8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
WARNING = "maskstream: warning: {}: compiled kernels go to a temporary folder and are compiled again in the next run; "

KERNEL_SCRIPT = """
import os, subprocess, sys, numpy
from ops import masks
assert masks.encode_rle(numpy.ones((2, 2), bool)) == b"04"
dispatchers = [value for value in vars(masks).values() if hasattr(value, "stats")]
hits = sum(sum(value.stats.cache_hits.values()) for value in dispatchers)
misses = sum(sum(value.stats.cache_misses.values()) for value in dispatchers)
print(hits > 0, misses > 0, os.environ["XDG_CACHE_HOME"], flush=True)
if len(sys.argv) > 1:
    sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)
"""
"""calls a compiled kernel, prints whether it was found in the cache, then runs Python with its own arguments"""

PROBE_SCRIPT = """
import subprocess, sys, numpy, pipeline
print(sys.version)
subprocess.check_call([sys.executable, "-V"])
"""


@pytest.fixture(scope="module")
def installation() -> Iterator[Path]:
    """Yield a copy of the packages that is not writable for other users, in a folder that every user can enter."""
    folder = Path(tempfile.mkdtemp(prefix="installation-"))
    folder.chmod(0o755)
    for package in ("ops", "pipeline", "workers"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("run_pipeline.py", "maskstream.py"):
        shutil.copy(ROOT / module, folder / module)
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in folder.rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def public_python() -> Iterator[Path]:
    """Yield a copy of this Python that every user can execute, without its packages. The original can be in /root."""
    folder = Path(tempfile.mkdtemp(prefix="python-"))
    folder.chmod(0o755)
    standard_library = Path(sysconfig.get_path("stdlib"))
    unneeded = shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*", "idlelib", "ensurepip")
    shutil.copytree(standard_library, folder / "lib" / standard_library.name, ignore=unneeded)
    for library in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython3*.so*"):
        shutil.copy(library, folder / "lib")
    (folder / "bin").mkdir()
    yield Path(shutil.copy(os.path.realpath(sys.executable), folder / "bin"))
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody(installation: Path, public_python: Path) -> list[str]:
    """Return a command that runs Python as UID, with the right to read every installed package but to write none."""
    home = public_python.parents[1]
    packages = f"{installation}{os.pathsep}{sysconfig.get_path('purelib')}"
    variables = [f"PYTHONHOME={home}", f"PYTHONPATH={packages}", f"LD_LIBRARY_PATH={home / 'lib'}"]
    prefix = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    readable = [*prefix, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    for user in (prefix, readable):
        command = [*user, "env", *variables, str(public_python)]
        try:
            probe = run([*command, "-c", PROBE_SCRIPT], installation, installation)
        except OSError:
            break
        if probe.returncode == 0 and probe.stdout.startswith(sys.version):
            return command
    pytest.skip("needs root and setpriv, and a virtual environment that another user can read")


def run(command: list[str], installation: Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = {"HOME", "XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME", "USER", "LOGNAME"}
    inherited = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        command, cwd=cwd, env={**inherited, "PYTHONPATH": str(installation), **environment},
        capture_output=True, encoding="utf-8", timeout=110, check=False,
    )  # fmt: skip


def test_without_a_home_kernels_are_cached_in_a_private_folder(installation: Path, as_nobody: list[str]) -> None:
    """There is one warning, child processes use the same folder, and the folder is removed at exit."""
    children = ["-c", KERNEL_SCRIPT, "-c", "import pipeline.engine"]
    done = run([*as_nobody, "-c", KERNEL_SCRIPT, *children], installation, installation)
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in done.stdout.splitlines())
    assert first[:2] == ["False", "True"], "the first process compiles"
    assert second[:2] == ["True", "False"], "its child finds the kernels in the cache"
    assert first[2] == second[2]
    assert Path(first[2]).name.startswith("maskstream-cache-")
    assert done.stderr.startswith(WARNING.format("this user has no home folder"))
    assert done.stderr.count("\n") == 1
    assert not Path(first[2]).exists()


def test_the_warning_names_a_home_that_cannot_be_written(installation: Path, as_nobody: list[str]) -> None:
    done = run([*as_nobody, "-c", KERNEL_SCRIPT], installation, installation, HOME=str(installation))
    assert done.returncode == 0, done.stderr
    reason = f"{installation / '.cache'} cannot be created (permission denied)"
    assert done.stderr.startswith(WARNING.format(reason))
    assert done.stderr.count("\n") == 1


def test_models_are_listed_without_a_home_and_without_utf8(installation: Path, as_nobody: list[str]) -> None:
    done = run([*as_nobody, "-m", "run_pipeline", "models"], installation, installation, **NO_UTF8)
    assert (done.returncode, done.stderr) == (0, "")
    assert "~/.cache/torch/hub/checkpoints/maskrcnn" in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["evaluate", "mot", "--help"], ["tschüß.mp4"]], ids=" ".join)
def test_a_job_runs_in_a_locale_without_utf8(installation: Path, tmp_path: Path, arguments: list[str]) -> None:
    done = run([sys.executable, "-m", "run_pipeline", *arguments], installation, tmp_path, **NO_UTF8)
    assert done.returncode == (0 if "--help" in arguments else 2)
    assert "Traceback" not in done.stderr


def test_the_files_of_the_package_are_read_as_utf8(installation: Path, tmp_path: Path) -> None:
    """Python warns if a text file is opened without an encoding; loading the modules must not warn."""
    modules = "pipeline.bus.scripts, pipeline.job.yaml_file, pipeline.contract.results, workers.supervisor"
    code = f"import {modules}; pipeline.job.yaml_file.config_json_schema()"
    command = [sys.executable, "-X", "warn_default_encoding", "-W", "always::EncodingWarning", "-c", code]
    done = run(command, installation, tmp_path, HOME=str(tmp_path), **NO_UTF8)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith(str(installation))] == []
