"""The verbs `evaluate coco`, `evaluate video` and `evaluate mot`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.contract import defaults
from pipeline.contract.exit_codes import EXIT_DONE
from pipeline.errors import UsageError
from pipeline.terminal import options as cli

if TYPE_CHECKING:
    from pipeline.contract.config import JobConfig

EVALUATE_EPILOG = """
[bold]Examples[/]

  maskstream evaluate coco --data val.json
  maskstream evaluate video
  maskstream evaluate mot --gt MOT15/train
"""

COCO_EPILOG = r"""
[bold]Examples[/]

  maskstream evaluate coco --data val.json
  maskstream evaluate coco --data val.json --images pictures --weights runs/mine/weights.safetensors --output report

--output DIR receives metrics.json, detections.json (in COCO's result format), worst.png and best.png. The two sheets
show the pictures with the lowest and the highest panoptic quality, ground truth beside prediction.

Needs pycocotools: pip install 'maskstream\[train]'
"""

VIDEO_EPILOG = """
[bold]Examples[/]

  maskstream evaluate video
  maskstream evaluate video --seconds 20 --size 1280x720 --model maskrcnn_resnet50_fpn_v2 --output report

The scene is evaluated twice: as an MP4 file that runs through the whole pipeline, and frame by frame, uncompressed and
at full size, by the engine and the same tracker. The difference is what the codec, the resizing for the bus and the bus
cost. --output DIR receives scene.mp4, metrics.json, worst.png and best.png.
"""

MOT_EPILOG = r"""
[bold]Examples[/]

  maskstream evaluate mot --gt MOT15/train
  maskstream evaluate mot --gt MOT15/train --det detections --output report
  maskstream evaluate mot --gt MOT15/train/TUD-Stadtmitte --results out/TUD-Stadtmitte.jsonl
  maskstream evaluate mot --gt MOTS/train --results out

--gt is a sequence folder (with gt/gt.txt and seqinfo.ini) or a folder of sequence folders. Without --results, the
tracker of this package runs with its default configuration on each sequence's det/det.txt, and its tracks are
evaluated. --det gives other detections: a folder with SEQUENCE/det/det.txt or SEQUENCE.txt, or with det/det.txt if
there is one sequence. --results evaluates existing tracks: files named SEQUENCE.jsonl (result messages of this
package) or SEQUENCE.txt (MOTChallenge's format), or a folder of such files. If the ground truth has masks (MOTS), the
results need masks too. --output DIR receives metrics.json and the evaluated tracks as SEQUENCE.txt.

Needs TrackEval: pip install 'maskstream\[mot]'
"""

DATA_PANEL, SCENE_PANEL = "Data", "Scene"

AsJson = Annotated[
    bool,
    typer.Option(
        "--json", metavar=" ", help="print one JSON object instead of tables", rich_help_panel=cli.RESULT_PANEL
    ),
]
Folder = Annotated[
    Path | None,
    cli.option(
        "--output",
        "folder for metrics.json and the other files that are named below",
        "DIR",
        cli.RESULT_PANEL,
        default="none",
    ),
]


def evaluate_coco(
    data: Annotated[Path, cli.option("--data", "ground truth in COCO's format", "FILE.json", DATA_PANEL)],
    images: Annotated[
        Path | None,
        cli.option("--images", "folder of the pictures", "DIR", DATA_PANEL, default="the folder of FILE.json"),
    ] = None,
    num: Annotated[
        int | None,
        cli.option("--num", "evaluate N pictures, evenly spread over the data", "N", DATA_PANEL, default="all", min=1),
    ] = None,
    model: cli.ModelFlag = None,
    weights: cli.WeightsFlag = None,
    device: cli.DeviceFlag = None,
    precision: cli.PrecisionFlag = None,
    conf: Annotated[
        str | None,
        cli.option(
            "--conf",
            "score threshold for IoU, Dice and the sheets; AP uses every detection",
            "SCORE",
            cli.RESULT_PANEL,
            default=defaults.CONF,
        ),
    ] = None,
    as_json: AsJson = False,
    output: Folder = None,
) -> int:
    """Evaluate a model on annotated pictures: AP of boxes and masks, IoU and Dice of each class, speed."""
    config = _config(model=model, weights=weights, device=device, precision=precision, conf=conf)
    from pipeline.evaluation.coco_evaluation import CocoSettings, evaluate_coco
    from pipeline.terminal.evaluation_report import print_coco
    from pipeline.terminal.progress_bar import progress_bar

    settings = CocoSettings(data=data, images=images, num=num, config=config, output=output)
    metrics = evaluate_coco(settings, progress_bar, _warn)
    _print(metrics, print_coco, as_json=as_json, output=output)
    return EXIT_DONE


def evaluate_video(
    seconds: Annotated[float, cli.option("--seconds", "length of the scene, in seconds", "S", SCENE_PANEL)] = 10.0,
    seed: Annotated[int, cli.option("--seed", "random seed of the scene", "N", SCENE_PANEL)] = 92,
    fps: Annotated[float, cli.option("--fps", "frames per second", "FPS", SCENE_PANEL)] = 25.0,
    size: Annotated[
        str, cli.option("--size", "width x height of the video, in pixels", "WxH", SCENE_PANEL)
    ] = "960x540",
    model: cli.ModelFlag = None,
    weights: cli.WeightsFlag = None,
    device: cli.DeviceFlag = None,
    precision: cli.PrecisionFlag = None,
    conf: cli.ConfFlag = None,
    as_json: AsJson = False,
    output: Folder = None,
) -> int:
    """Evaluate the whole pipeline on a synthetic street with exact ground truth: AP, MOTA, IDF1."""
    config = _config(model=model, weights=weights, device=device, precision=precision, conf=conf)
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"--seconds: expected a number above 0, got {seconds:g}")
    width, height = cli.parse_size("--size", size)
    from pipeline.evaluation.video_evaluation import VideoSettings, evaluate_video
    from pipeline.synthetic import SceneConfig
    from pipeline.terminal.evaluation_report import print_video
    from pipeline.terminal.progress_bar import progress_bar

    try:
        scene = SceneConfig(width=width, height=height, fps=fps, num_frames=max(round(seconds * fps), 1), seed=seed)
    except ValueError as error:
        raise UsageError(f"the scene: {error}") from None
    metrics = evaluate_video(VideoSettings(scene=scene, config=config, output=output), progress_bar)
    _print(metrics, print_video, as_json=as_json, output=output)
    return EXIT_DONE


def evaluate_mot(
    gt: Annotated[Path, cli.option("--gt", "MOTChallenge sequences with ground truth", "DIR", DATA_PANEL)],
    det: Annotated[
        Path | None,
        cli.option(
            "--det", "folder of detections to track", "DIR", DATA_PANEL, default="those beside the ground truth"
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        cli.option("--results", "evaluate these tracks; repeat it for further files", "FILE|DIR", DATA_PANEL),
    ] = None,
    classes: Annotated[
        str, cli.option("--classes", "classes to evaluate in SEQUENCE.jsonl files", "LABELS", DATA_PANEL)
    ] = "person",
    as_json: AsJson = False,
    output: Folder = None,
) -> int:
    """Evaluate tracks of boxes or masks on MOTChallenge sequences with TrackEval: HOTA, IDF1, MOTA."""
    labels = tuple(label.strip() for label in classes.split(",") if label.strip())
    if not labels:
        raise UsageError(f"--classes: expected one or more labels such as person,car, got {classes!r}")
    from pipeline.evaluation.mot_evaluation import MotSettings, evaluate_mot
    from pipeline.terminal.evaluation_report import print_mot
    from pipeline.terminal.progress_bar import progress_bar

    settings = MotSettings(truth=gt, det=det, results=tuple(results or ()), labels=labels, output=output)
    _print(evaluate_mot(settings, progress_bar), print_mot, as_json=as_json, output=output)
    return EXIT_DONE


def _config(**flags: str | None) -> JobConfig:
    from pipeline.contract.config import JobConfig
    from pipeline.job.yaml_file import with_flags

    return with_flags(JobConfig(), flags)


def _warn(line: str) -> None:
    print(f"maskstream: warning: {line}", file=sys.stderr)


def _print(metrics: dict[str, Any], print_table: Any, *, as_json: bool, output: Path | None) -> None:
    import msgspec

    if as_json:
        print(msgspec.json.encode(metrics).decode())
    else:
        print_table(metrics)
    if output is not None:
        print(f"files written to {output}", file=sys.stderr)


evaluate_app = typer.Typer(
    name="evaluate",
    short_help="evaluate a model, the pipeline or a tracker (coco, video, mot)",
    help="Evaluate a model on annotated pictures, the pipeline on a synthetic video, or a tracker on MOTChallenge.",
    epilog=EVALUATE_EPILOG,
    context_settings=cli.HELP_OPTIONS,
    **cli.APP_OPTIONS,
)
evaluate_app.command("coco", epilog=cli.unwrap(COCO_EPILOG), context_settings=cli.HELP_OPTIONS)(evaluate_coco)
evaluate_app.command("video", epilog=cli.unwrap(VIDEO_EPILOG), context_settings=cli.HELP_OPTIONS)(evaluate_video)
evaluate_app.command("mot", epilog=cli.unwrap(MOT_EPILOG), context_settings=cli.HELP_OPTIONS)(evaluate_mot)
