"""The verb `models`."""

from __future__ import annotations

from pipeline.contract.exit_codes import EXIT_DONE

MODELS_EPILOG = """
[bold]Example[/]

  maskstream models
"""


def models() -> int:
    """List the models: where their weights are, what they detect, their average precision, licence and classes."""
    from pipeline.terminal.reports import model_lines

    print(*model_lines(), sep="\n")
    return EXIT_DONE
