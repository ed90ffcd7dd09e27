"""The verb `models`."""

from __future__ import annotations

from pipeline.contract.exit_codes import EXIT_DONE


def models() -> int:
    """List the models, where their weights are, how good they are, and their classes."""
    from pipeline.terminal.reports import model_lines

    print(*model_lines(), sep="\n")
    return EXIT_DONE
