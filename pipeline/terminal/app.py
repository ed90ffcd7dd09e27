"""The command line: takes the arguments and returns the exit code. Every verb is registered here.

A verb imports its heavy dependencies when it runs, so that --help and error messages appear without delay.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer

from pipeline.contract.exit_codes import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from pipeline.errors import BusError, MaskStreamError, UsageError
from pipeline.terminal import evaluate, train
from pipeline.terminal import options as cli
from pipeline.terminal.models import MODELS_EPILOG, models
from pipeline.terminal.run import RUN_EPILOG, Workers, run
from pipeline.terminal.status import STATUS_EPILOG, status
from pipeline.terminal.subscribe import SUBSCRIBE_EPILOG, subscribe
from pipeline.terminal.track import TRACK_EPILOG, track

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Verb(NamedTuple):
    """A verb. Its name is the name of its function."""

    function: Callable[..., int]
    summary: str
    """description in the list of verbs"""
    epilog: str
    """text after the options in the verb's --help: examples and exit codes"""


VERBS = [
    Verb(subscribe, "print result messages live, or replay them", SUBSCRIBE_EPILOG),
    Verb(status, "show the state of streams and workers", STATUS_EPILOG),
    Verb(models, "list the models with their classes and weights", MODELS_EPILOG),
    Verb(train.train, "train a model, or fine-tune it on your own classes", train.TRAIN_EPILOG),
    Verb(train.synthetic, "write pictures of a synthetic street as COCO data", train.SYNTHETIC_EPILOG),
    Verb(track, "run the tracker on a detection file", TRACK_EPILOG),
]


class CommandLine:
    """All verbs. `groups` are typer apps with verbs of their own, such as `worker decode`."""

    def __init__(self, workers: Workers, groups: Sequence[typer.Typer] = ()) -> None:
        self._workers = workers
        self._verbs_app = typer.Typer(**cli.APP_OPTIONS)
        for verb in VERBS:
            register = self._verbs_app.command(
                verb.function.__name__,
                short_help=verb.summary,
                epilog=cli.unwrap(verb.epilog),
                context_settings=cli.HELP_OPTIONS,
            )
            register(verb.function)
        for group in (evaluate.evaluate_app, *groups):
            self._verbs_app.add_typer(group)
        self._run_app = typer.Typer(**cli.APP_OPTIONS)
        listing = "\n".join(f"  {name:11} {summary}" for name, summary in self._summaries())
        epilog = cli.unwrap(RUN_EPILOG).format(verbs=listing)
        self._run_app.command(epilog=epilog, context_settings=cli.HELP_OPTIONS)(run)

    @property
    def verbs(self) -> list[str]:
        """The names of all verbs: first arguments that are not taken for a source."""
        return [name for name, _ in self._summaries()]

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run the command line; returns its exit code."""
        given = list(sys.argv[1:] if arguments is None else arguments)
        app = self._verbs_app if given and given[0] in self.verbs else self._run_app
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a name or a locale without UTF-8 is no reason to fail
        program = "run_pipeline.py" if Path(sys.argv[0]).suffix == ".py" else "maskstream"
        try:
            command: Any = typer.main.get_command(app)
            arguments = given[1:] if given[:1] == ["run"] else given
            # command.main() would use its own exit codes and messages for Ctrl-C and for closed pipes
            with command.make_context(program, arguments, obj=self._workers) as context:
                code = command.invoke(context)
            sys.stdout.flush()
        except typer.Exit as exit_:
            return exit_.exit_code
        except _WrongArguments as error:
            command_path = error.ctx.command_path if error.ctx else program
            return _fail(f"{error.format_message().rstrip('.')}; see {command_path} --help", EXIT_USAGE)
        except (UsageError, BusError) as error:
            return _fail(str(error), EXIT_USAGE)
        except MaskStreamError as error:
            return _fail(str(error), EXIT_FAILED)
        except BrokenPipeError:
            # The reader closed the pipe. Python flushes the buffer at exit, which must not fail a second time.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            return EXIT_DONE
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            return _fail(f"cannot write: {str(error.strerror).lower()}; free some space there", EXIT_FAILED)
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        return int(code or EXIT_DONE)

    def _summaries(self) -> list[tuple[str, str]]:
        """(name, description) of every verb and group."""
        registered = [(command.name, command.short_help) for command in self._verbs_app.registered_commands]
        groups = (group.typer_instance for group in self._verbs_app.registered_groups)
        registered += [(group.info.name, group.info.short_help) for group in groups if group is not None]
        return [(str(name), str(summary)) for name, summary in registered]


def _fail(text: str, code: int) -> int:
    from pipeline.terminal.progress_table import one_line

    with contextlib.suppress(BrokenPipeError):
        print(f"maskstream: error: {one_line(text)}", file=sys.stderr)
    return code


# click's UsageError, which typer raises for wrong arguments but does not export
_WrongArguments: Any = typer.BadParameter.__mro__[1]
