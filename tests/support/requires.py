"""What a test needs from the machine it runs on."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def missing(name: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where MASKSTREAM_REQUIRE (comma-separated names) says that `name` must be there."""
    if name in os.environ.get("MASKSTREAM_REQUIRE", "").split(","):
        pytest.fail(f"{reason} (required by MASKSTREAM_REQUIRE={name})")
    pytest.skip(reason)
