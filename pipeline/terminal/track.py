"""The command `track`. What it needs is imported when it runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from pipeline.contract.exit_codes import EXIT_DONE
from pipeline.errors import UsageError
from pipeline.terminal import options as cli

TRACK_EPILOG = """
[bold]Examples[/]

  maskstream track --det TUD-Stadtmitte/det/det.txt --output results/TUD-Stadtmitte.txt
  maskstream track --det det.txt --output result.txt --fps 25

A row of det.txt is frame,-1,left,top,width,height,score, one of result.txt
frame,id,left,top,width,height,score,-1,-1,-1. Frames, ids and pixels are numbered from 1, as MOTChallenge has them. A
detection is among the results once its track has an id.
"""


def track(
    det: Annotated[Path, cli.option("--det", "detections in MOTChallenge's format", "FILE.txt")],
    output: Annotated[Path, cli.option("--output", "the results, in the same format", "FILE.txt")],
    fps: Annotated[
        float | None, cli.option("--fps", "frames a second; default that of the sequence's seqinfo.ini", "F")
    ] = None,
) -> int:
    """Run the tracker alone on a file of detections."""
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"--fps: expected more than 0, got {fps:g}")
    from pipeline.evaluation.mot_tracking import track_file

    track_file(det, output, fps)
    return EXIT_DONE
