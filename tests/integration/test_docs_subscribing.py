"""The examples of docs/subscribing.md run unchanged on a result log."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
from support.paths import ROOT
from support.result_samples import end, event, frame, gap

from pipeline.bus import StreamKeys
from pipeline.contract.results import encode_result

PAGE = (ROOT / "docs" / "subscribing.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for line in PAGE.split("\n") if line.startswith("redis-cli XREAD COUNT")]


@pytest.fixture
def log(redis_client: Any) -> None:
    for name in ("cam1", "cam2"):
        key = StreamKeys.of(name).results
        for entry_id, message in [("1-0", frame(1)), ("1-1", event(1)), ("5-0", gap(2, 5)), ("5-1", end(5))]:
            payload = encode_result(message).replace(b'"cam1"', f'"{name}"'.encode())
            redis_client.xadd(key, {"j": payload}, id=entry_id)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (
            0,
            [
                "1 FrameResult",
                "person 7 (1.0, 2.0, 30.0, 40.0) 1102 pixels",
                "1 EventResult",
                "5 GapResult",
                "5 EndResult",
            ],
        ),
        (1, ["cam1 1", "cam1 1", "cam1 5", "cam1 5", "cam2 1", "cam2 1", "cam2 5", "cam2 5"]),
        (2, ["frame 1", "event 1", "gap 5", "end 5"]),
    ],
    ids=["subscribe", "subscribe-async", "plain-redis-py"],
)
def test_an_example_prints_the_log(redis_url: str, index: int, expected: list[str]) -> None:
    assert len(EXAMPLES) == 3
    program = EXAMPLES[index].replace("redis://localhost", redis_url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert [line.strip() for line in done.stdout.split("\n")[:-1]] == expected


@pytest.mark.usefixtures("log")
def test_the_commands_name_the_right_key(redis_url: str) -> None:
    cli = shutil.which("redis-cli")
    if cli is None:
        pytest.skip("no redis-cli on PATH")
    assert len(COMMANDS) == 2
    program = COMMANDS[0].replace("redis-cli", f"{cli} -s {redis_url.removeprefix('unix://')}")
    done = subprocess.run(["sh", "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.count('"type":') == 4
