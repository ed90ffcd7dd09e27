"""The verb `status`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.contract.exit_codes import EXIT_DONE, EXIT_FAILED
from pipeline.errors import BusError
from pipeline.terminal import options as cli

STATUS_EPILOG = """
[bold]Examples[/]

  maskstream status --redis-url redis://localhost
  maskstream status --json --redis-url redis://localhost

[bold]Exit codes[/]

  0    no problem: every stream runs or has ended, and the workers it needs are there
  1    a stream failed or is stalled, or no worker of a needed role is running
  2    no usable Redis server
"""


def status(
    context: typer.Context,
    as_json: Annotated[
        bool, typer.Option("--json", metavar=" ", help="print one JSON object instead of tables")
    ] = False,
    redis_url: cli.RequiredRedisUrlFlag = "",
) -> int:
    """Show the state of the streams and workers of a Redis server, for people and for health checks."""
    import msgspec

    from pipeline.bus import LOST_CONNECTION, Bus
    from pipeline.terminal.reports import problems_of, status_lines

    bus = Bus(cli.required_redis_url(redis_url))
    bus.check()
    try:
        with bus.explained_errors():
            streams, workers = bus.stream_statuses(), bus.worker_statuses()
    except LOST_CONNECTION as error:
        raise BusError(f"Redis went away: {error}") from None
    problems = problems_of(streams, workers, context.obj.required_roles)
    if as_json:
        report = {"healthy": not problems, "problems": problems, "streams": streams, "workers": workers}
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(*status_lines(streams, workers), *problems, sep="\n")
    return EXIT_FAILED if problems else EXIT_DONE
