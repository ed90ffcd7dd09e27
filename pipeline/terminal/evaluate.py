"""The verbs of `evaluate`. What they need is imported when they run."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.contract.exit_codes import EXIT_DONE
from pipeline.errors import UsageError
from pipeline.terminal import options as cli

if TYPE_CHECKING:
    from pipeline.contract.config import JobConfig

COCO_EPILOG = r"""
[bold]Examples[/]

  maskstream evaluate coco --data val.json
  maskstream evaluate coco --data val.json --images pictures --weights runs/mine/weights.safetensors --output report

With --output: metrics.json, detections.json (COCO's result format), and worst.png and best.png, the pictures with the
lowest and the highest panoptic quality, truth beside what was found.

Needs pycocotools: pip install 'maskstream\[train]'
"""

VIDEO_EPILOG = """
[bold]Examples[/]

  maskstream evaluate video
  maskstream evaluate video --seconds 20 --size 1280x720 --model maskrcnn_resnet50_fpn_v2 --output report

The same scene is judged twice: as an MP4 file through the whole pipeline, and by the engine alone on the frames as they
were drawn; the difference is lost on the way. With --output: scene.mp4, metrics.json, worst.png and best.png.
"""

MOT_EPILOG = r"""
[bold]Examples[/]

  maskstream evaluate mot --gt MOT15/train
  maskstream evaluate mot --gt MOT15/train --det detections --output report
  maskstream evaluate mot --gt MOT15/train/TUD-Stadtmitte --results out/TUD-Stadtmitte.jsonl
  maskstream evaluate mot --gt MOTS/train --results out

--gt holds SEQUENCE/gt/gt.txt and SEQUENCE/seqinfo.ini, or is one such SEQUENCE. Without --results our tracker is
judged, with its default configuration, on SEQUENCE/det/det.txt there or in --det. A file of --results is named like
its sequence: SEQUENCE.jsonl of our own, or SEQUENCE.txt of MOTChallenge; a folder holds such files. Where the truth is
of masks (MOTS), so must be the results. With --output: metrics.json, and what was judged as SEQUENCE.txt.

Needs TrackEval: pip install 'maskstream\[mot]'
"""

DATA_PANEL, SCENE_PANEL = "Data", "Scene"

AsJson = Annotated[bool, typer.Option("--json", help="one object for programs", rich_help_panel=cli.RESULT_PANEL)]
Folder = Annotated[Path | None, cli.option("--output", "folder for the files; default none", "DIR", cli.RESULT_PANEL)]

_SIZE = re.compile(r"(\d+)x(\d+)")


def evaluate_coco(
    data: Annotated[Path, cli.option("--data", "annotations in COCO's format", "FILE.json", DATA_PANEL)],
    images: Annotated[
        Path | None,
        cli.option("--images", "folder that the file names begin in; default beside FILE.json", "DIR", DATA_PANEL),
    ] = None,
    num: Annotated[
        int | None, cli.option("--num", "that many pictures, spread evenly; default all", "N", DATA_PANEL, min=1)
    ] = None,
    model: cli.ModelName = None,
    weights: cli.Weights = None,
    device: cli.Device = None,
    precision: cli.Precision = None,
    conf: Annotated[
        str | None,
        cli.option("--conf", "lowest score for IoU, Dice and the sheets; default 0.5", "SCORE", cli.RESULT_PANEL),
    ] = None,
    as_json: AsJson = False,
    output: Folder = None,
) -> int:
    """Judge a model on pictures with annotations: AP of boxes and masks, IoU and Dice of each class, speed."""
    config = _config(model=model, weights=weights, device=device, precision=precision, conf=conf)
    from pipeline.evaluation.coco_command import CocoSettings, evaluate_coco
    from pipeline.evaluation.report import print_coco

    metrics = evaluate_coco(CocoSettings(data=data, images=images, num=num, config=config, output=output))
    _print(metrics, print_coco, as_json=as_json, output=output)
    return EXIT_DONE


def evaluate_video(
    seconds: Annotated[float, cli.option("--seconds", "length; default 10", "S", SCENE_PANEL)] = 10.0,
    seed: Annotated[int, cli.option("--seed", "another street with another number; default 92", "N", SCENE_PANEL)] = 92,
    fps: Annotated[float, cli.option("--fps", "frames a second; default 25", "F", SCENE_PANEL)] = 25.0,
    size: Annotated[str, cli.option("--size", "of the video; default 960x540", "WxH", SCENE_PANEL)] = "960x540",
    model: cli.ModelName = None,
    weights: cli.Weights = None,
    device: cli.Device = None,
    precision: cli.Precision = None,
    conf: Annotated[
        str | None, cli.option("--conf", "lowest score of a new track; default 0.5", "SCORE", cli.RESULT_PANEL)
    ] = None,
    as_json: AsJson = False,
    output: Folder = None,
) -> int:
    """Judge the whole pipeline on a drawn street with exact truth: AP, MOTA, IDF1, and what is lost on the way."""
    config = _config(model=model, weights=weights, device=device, precision=precision, conf=conf)
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"--seconds: expected more than 0, got {seconds:g}")
    match = _SIZE.fullmatch(size)
    if match is None:
        raise UsageError(f"--size: expected WIDTHxHEIGHT in pixels, such as 960x540, got {size!r}")
    from pipeline.evaluation.report import print_video
    from pipeline.evaluation.video_command import VideoSettings, evaluate_video
    from pipeline.synthetic import SceneConfig

    try:
        scene = SceneConfig(
            width=int(match[1]), height=int(match[2]), fps=fps, num_frames=max(round(seconds * fps), 1), seed=seed
        )
    except ValueError as error:
        raise UsageError(f"the scene: {error}") from None
    metrics = evaluate_video(VideoSettings(scene=scene, config=config, output=output))
    _print(metrics, print_video, as_json=as_json, output=output)
    return EXIT_DONE


def evaluate_mot(
    gt: Annotated[Path, cli.option("--gt", "sequences of MOTChallenge with their truth", "DIR", DATA_PANEL)],
    det: Annotated[
        Path | None, cli.option("--det", "detections to track; default beside the truth", "DIR", DATA_PANEL)
    ] = None,
    results: Annotated[
        list[Path] | None,
        cli.option("--results", "judge these tracks instead; again for the next sequence", "FILE|DIR", DATA_PANEL),
    ] = None,
    classes: Annotated[
        str, cli.option("--classes", "of our own result files, those judged; default person", "LABELS", DATA_PANEL)
    ] = "person",
    as_json: AsJson = False,
    output: Folder = None,
) -> int:
    """Judge tracks on MOTChallenge sequences with TrackEval: HOTA, IDF1, MOTA, of boxes or of masks."""
    labels = tuple(label.strip() for label in classes.split(",") if label.strip())
    if not labels:
        raise UsageError(f"--classes: expected one label or more, such as person, got {classes!r}")
    from pipeline.evaluation.mot_command import MotSettings, evaluate_mot
    from pipeline.evaluation.report import print_mot

    settings = MotSettings(truth=gt, det=det, results=tuple(results or ()), labels=labels, output=output)
    _print(evaluate_mot(settings), print_mot, as_json=as_json, output=output)
    return EXIT_DONE


def _config(**flags: str | None) -> JobConfig:
    from pipeline.contract.config import JobConfig
    from pipeline.job.yaml_file import with_flags

    return with_flags(JobConfig(), flags)


def _print(metrics: dict[str, Any], print_table: Any, *, as_json: bool, output: Path | None) -> None:
    import msgspec

    if as_json:
        print(msgspec.json.encode(metrics).decode())
    else:
        print_table(metrics)
    if output is not None:
        print(f"written to {output}", file=sys.stderr)


evaluate_app = typer.Typer(
    name="evaluate",
    short_help="measure how good a model or a tracker is (coco, video, mot)",
    help="Tell how good a model is, on your pictures or a drawn video, or a tracker.",
    context_settings=cli.HELP_OPTIONS,
    **cli.APP_OPTIONS,
)
evaluate_app.command("coco", epilog=COCO_EPILOG, context_settings=cli.HELP_OPTIONS)(evaluate_coco)
evaluate_app.command("video", epilog=VIDEO_EPILOG, context_settings=cli.HELP_OPTIONS)(evaluate_video)
evaluate_app.command("mot", epilog=MOT_EPILOG, context_settings=cli.HELP_OPTIONS)(evaluate_mot)
