"""The verb `subscribe`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.contract.exit_codes import EXIT_DONE
from pipeline.errors import BusError, MaskStreamError, UsageError
from pipeline.terminal import options as cli


def subscribe(
    streams: Annotated[list[str], typer.Argument(metavar="STREAM", help="stream ids")],
    start: Annotated[str, cli.option("--from", "SEQ: go on behind that frame; default now", "now|start|SEQ")] = "now",
    output_format: Annotated[str, cli.option("--format", "default json", "json|text")] = "json",
    redis_url: cli.RequiredRedisUrl = "",
) -> int:
    """Print the results of some streams, a line each, until every one has ended."""
    from pipeline.bus import Bus
    from pipeline.client import subscribe as results_of
    from pipeline.contract.results import encode_result
    from pipeline.terminal.reports import result_line

    if output_format not in {"json", "text"}:
        raise UsageError(f"--format: expected json or text, got {output_format!r}")
    url = cli.required_redis_url(redis_url)
    results = results_of(url, *streams, start=start)
    Bus(url).check()
    try:
        for result in results:
            print(encode_result(result).decode() if output_format == "json" else result_line(result), flush=True)
    except BusError as error:
        raise MaskStreamError(str(error)) from None
    return EXIT_DONE
