"""The table of exports: every row has its module, and texts, checks and defaults follow the table."""

from __future__ import annotations

import importlib
import subprocess
import sys

import msgspec
import pytest
from support.paths import ROOT

from pipeline.contract.config import JobConfig
from pipeline.contract.exports import DEFAULT_EXPORTS, EXPORTS, Export


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS)
def test_a_row_names_a_module_that_opens_writers(export: Export) -> None:
    assert callable(importlib.import_module(export.module).open_writer)
    assert EXPORTS[export.name] is export


def test_no_two_exports_write_to_one_path() -> None:
    suffixes = [suffix for export in EXPORTS.values() for suffix in (export.suffix, export.pictures_suffix) if suffix]
    assert len(set(suffixes)) == len(suffixes)


def test_the_configuration_takes_the_names_of_the_table_and_no_other() -> None:
    assert msgspec.convert({"save": list(EXPORTS)}, JobConfig).save == list(EXPORTS)
    assert JobConfig().save == DEFAULT_EXPORTS
    with pytest.raises(msgspec.ValidationError, match="matching regex"):
        msgspec.convert({"save": ["jsonlx"]}, JobConfig)


def test_help_describes_every_export() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "run_pipeline", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    words = " ".join(done.stdout.replace("│", " ").split())
    for export in EXPORTS.values():
        assert f"{export.name}: {export.description}" in words


def test_the_table_is_read_without_pyav_and_opencv() -> None:
    code = "import sys, pipeline.contract.exports, pipeline.exports; print(*sorted({'av', 'cv2'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
