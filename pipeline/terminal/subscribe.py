"""The verb `subscribe`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.contract.exit_codes import EXIT_DONE
from pipeline.errors import BusError, MaskStreamError, UsageError
from pipeline.terminal import options as cli

SUBSCRIBE_EPILOG = """
[bold]Examples[/]

  maskstream subscribe door --redis-url redis://localhost
  maskstream subscribe door yard --from start --format text --redis-url redis://localhost
  maskstream subscribe door --from 420 --redis-url redis://localhost > door.jsonl

[bold]Exit codes[/]

  0    every stream has ended, or the reader of the output closed the pipe
  1    the connection to Redis was lost for good, or --timeout has passed
  2    wrong arguments, or no usable Redis server
  130  interrupted by Ctrl-C
"""


def subscribe(
    streams: Annotated[list[str], typer.Argument(metavar="STREAM", help="ids of the streams")],
    start: Annotated[
        str,
        cli.option(
            "--from",
            "first message: now (the next one), start (the oldest in the log) or SEQ (the one after frame SEQ)",
            "now|start|SEQ",
        ),
    ] = "now",
    output_format: Annotated[
        str, cli.option("--format", "json (one message per line) or text (for people)", "json|text")
    ] = "json",
    timeout_s: Annotated[
        float | None,
        cli.option(
            "--timeout",
            "maximum time to wait for a stream without results, or for an unreachable server, in seconds",
            "S",
            default="no limit",
            min=0,
        ),
    ] = None,
    redis_url: cli.RequiredRedisUrlFlag = "",
) -> int:
    """Print the result messages of some streams, one per line, until every stream has ended."""
    from pipeline.bus import Bus
    from pipeline.client import subscribe as results_of
    from pipeline.contract.results import encode_result
    from pipeline.terminal.reports import ResultLines

    if output_format not in {"json", "text"}:
        raise UsageError(f"--format: expected json or text, got {output_format!r}")
    url = cli.required_redis_url(redis_url)
    results = results_of(url, *streams, start=start, wait_s=timeout_s, timeout_s=timeout_s)
    Bus(url).check()
    lines = ResultLines()
    try:
        for result in results:
            if output_format == "json":
                print(encode_result(result).decode(), flush=True)
            else:
                for line in lines.add(result):
                    print(line, flush=True)
    except BusError as error:
        raise MaskStreamError(str(error)) from None
    finally:
        for line in lines.rest():
            print(line, flush=True)
    return EXIT_DONE
