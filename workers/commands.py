"""The verbs `maskstream worker ROLE`, one for each row of the table of roles.

Each runs one worker in this process, to spread a job over hosts. Only the command line loads this module: worker
processes do without `pipeline.terminal`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import get_type_hints

import typer

from pipeline.terminal import options as cli
from workers.roles import ROLES
from workers.roles.role import Role

_ENVIRONMENT = "  export MASKSTREAM_REDIS_URL=redis://10.0.0.2"

worker_app = typer.Typer(
    name="worker",
    short_help="run one worker, to spread a job over several hosts",
    help="Run one worker of a job, to spread the job over several hosts. All workers use the same Redis server.",
    epilog="\n".join(["[bold]Examples[/]", "", _ENVIRONMENT, *(f"  {role.example}" for role in ROLES.values())]),
    context_settings=cli.HELP_OPTIONS,
    **cli.APP_OPTIONS,
)


def _verb_of(role: Role) -> Callable[..., int]:
    """The function of the verb that runs a worker of `role`, with the flags of `role.command` and --redis-url."""

    def run_worker(context: typer.Context, redis_url: str, **flags: object) -> int:
        from pipeline.bus import Bus
        from workers.__main__ import run_task

        config = cli.config_of(context)
        bus = Bus(cli.required_redis_url(redis_url))
        with bus.explained_errors():
            task = role.command(config, bus, **flags)
        return run_task(task)

    run_worker.__doc__ = role.command.__doc__
    run_worker.__annotations__ = {}
    setattr(run_worker, "__signature__", _signature_of(role))  # noqa: B010 - mypy knows no such attribute
    return run_worker


def _signature_of(role: Role) -> inspect.Signature:
    """What typer reads the flags from.

    The roles import `pipeline.terminal.options` for type checkers only, so that worker processes start without typer.
    """
    names = {"cli": cli, "typer": typer, "JobConfig": object, "Bus": object}  # the last two are no flags
    annotations = get_type_hints(role.command, localns=names, include_extras=True)
    flags = [
        parameter.replace(annotation=annotations[name])
        for name, parameter in inspect.signature(role.command).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    context = inspect.Parameter("context", keyword, annotation=typer.Context)
    redis_url = inspect.Parameter("redis_url", keyword, default="", annotation=cli.RequiredRedisUrlFlag)
    return inspect.Signature([context, *flags, redis_url])


for _role in ROLES.values():
    worker_app.command(
        _role.name,
        epilog="\n".join(["[bold]Example[/]", "", _ENVIRONMENT, f"  {_role.example}"]),
        context_settings=cli.HELP_OPTIONS,
    )(_verb_of(_role))
