"""The verb `track`."""

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

Both files are in MOTChallenge's format. A row of the detections is frame,-1,left,top,width,height,score; a row of the
result is frame,id,left,top,width,height,score,-1,-1,-1. Frames, ids and pixels count from 1. The result holds the
detections of confirmed tracks.
"""


def track(
    det: Annotated[Path, cli.option("--det", "detection file in MOTChallenge's format", "FILE.txt")],
    output: Annotated[Path, cli.option("--output", "result file to write, in the same format", "FILE.txt")],
    fps: Annotated[
        float | None, cli.option("--fps", "frames per second", "FPS", default="from the sequence's seqinfo.ini")
    ] = None,
) -> int:
    """Run the tracker on a detection file, without a model or a video."""
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UsageError(f"--fps: expected a number above 0, got {fps:g}")
    from pipeline.evaluation.mot_tracking import track_file

    track_file(det, output, fps)
    return EXIT_DONE
