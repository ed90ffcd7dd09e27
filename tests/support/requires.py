"""Handling of requirements that the machine does not meet."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(name: str, reason: str) -> NoReturn:
    """Skip the test, or fail it if `name` is one of the comma-separated names in MASKSTREAM_REQUIRE."""
    if name in os.environ.get("MASKSTREAM_REQUIRE", "").split(","):
        pytest.fail(f"{reason} (required by MASKSTREAM_REQUIRE={name})")
    pytest.skip(reason)
