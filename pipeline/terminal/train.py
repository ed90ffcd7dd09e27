"""The verbs `train` and `synthetic`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.contract import defaults
from pipeline.contract.exit_codes import EXIT_DONE, EXIT_INTERRUPTED
from pipeline.errors import UsageError
from pipeline.terminal import options as cli
from pipeline.training.settings import DEFAULT_LR, DEFAULT_SYNTHETIC_SHARE, MAX_LOADER_PROCESSES, OptimizerName

TRAIN_EPILOG = """
[bold]Examples[/]

  maskstream train --data train.json --val val.json --model street --output runs/mine --epochs 20
  maskstream train --data shots/ --model maskrcnn_resnet50_fpn_v2 --output runs/mine --minutes 60 --lr 1e-4
  maskstream train --data few.json --model street --freeze backbone.body --output runs/few --epochs 20 --lr 1e-4
  maskstream train --data train.json --model street --output runs/mine --epochs 20 --resume
  maskstream video.mp4 --model street --weights runs/mine/weights.safetensors

[bold]Exit codes[/]

  0    the run is complete
  1    the run failed, or its folder cannot be written
  2    wrong arguments, or unusable data
  130  interrupted by Ctrl-C; --resume continues the run from its last checkpoint
"""

SYNTHETIC_EPILOG = """
[bold]Examples[/]

  maskstream synthetic scene
  maskstream synthetic scene --pictures 200 --val-pictures 40 --size 960x540
"""

RUN_PANEL, DATA_PANEL = "Run", "Data"


def _number(name: str, help_text: str, metavar: str, panel: str = RUN_PANEL, **limits: Any) -> Any:
    return cli.option(name, help_text, metavar, panel, **limits)


def train(
    data: Annotated[
        Path, cli.option("--data", "training data: a COCO JSON file, or a folder with one", "JSON|DIR", DATA_PANEL)
    ],
    output: Annotated[Path, cli.option("--output", "folder for checkpoints, metrics and weights", "DIR", RUN_PANEL)],
    val: Annotated[
        Path | None,
        cli.option("--val", "validation data, in the same format", "JSON|DIR", DATA_PANEL, default="no validation"),
    ] = None,
    model: Annotated[
        str, cli.option("--model", "model to train; `maskstream models` lists them", "NAME", cli.MODEL_PANEL)
    ] = defaults.CPU_MODEL,
    init: Annotated[
        Path | None,
        cli.option("--init", "weights to start from", "FILE", cli.MODEL_PANEL, default="the model's own weights"),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        cli.option("--freeze", "module not to train, such as backbone.body; repeatable", "MODULE", cli.MODEL_PANEL),
    ] = None,
    epochs: Annotated[
        float | None, _number("--epochs", "length of the run in epochs (give this or --minutes)", "N")
    ] = None,
    minutes: Annotated[
        float | None, _number("--minutes", "length of the run in minutes (give this or --epochs)", "T")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar=" ",
            help="continue from the last checkpoint in the output folder",
            rich_help_panel=RUN_PANEL,
        ),
    ] = False,
    batch: Annotated[int, _number("--batch", "number of pictures per step", "N", min=1)] = 4,
    lr: Annotated[
        float | None,
        _number(
            "--lr",
            "peak learning rate",
            "RATE",
            default=", ".join(f"{rate:g} for {name}" for name, rate in DEFAULT_LR.items()),
        ),
    ] = None,
    optimizer: Annotated[str, cli.option("--optimizer", "optimizer", "adamw|sgd", RUN_PANEL)] = "adamw",
    crop: Annotated[
        str | None,
        cli.option(
            "--crop", "height x width of the training crops in pixels", "HxW", RUN_PANEL, default="from the model"
        ),
    ] = None,
    synthetic_share: Annotated[
        float | None,
        _number(
            "--synthetic-share",
            "share of synthetic pictures in the training data, 0 to 0.9",
            "SHARE",
            DATA_PANEL,
            default=f"{DEFAULT_SYNTHETIC_SHARE} if the data has classes of the synthetic street, else 0",
            min=0.0,
            max=0.9,
        ),
    ] = None,
    device: Annotated[str, cli.option("--device", "device to train on", "auto|cpu|cuda|cuda:N", RUN_PANEL)] = "auto",
    precision: Annotated[
        str, cli.option("--precision", "floating-point type of the forward pass", "auto|fp32|bf16|fp16", RUN_PANEL)
    ] = "auto",
    seed: Annotated[
        int, _number("--seed", "random seed of data order, augmentation and sampling", "N", min=0, max=2**31 - 1)
    ] = 0,
    workers: Annotated[
        int | None,
        _number(
            "--workers",
            "number of data loader processes",
            "N",
            default=f"1 on the CPU, at most {MAX_LOADER_PROCESSES} on CUDA",
            min=0,
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float, _number("--checkpoint-minutes", "time between two checkpoints, in minutes", "T", min=0.0)
    ] = 5.0,
) -> int:
    """Train a model, or fine-tune it on your own pictures and classes."""
    from pipeline.models.registry import get_model

    spec = get_model(model)
    optimizer_name: OptimizerName = "sgd" if optimizer == "sgd" else "adamw"
    _one_of("--optimizer", optimizer, tuple(DEFAULT_LR))
    _one_of("--precision", precision, ("auto", "fp32", "bf16", "fp16"))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if (epochs is None) == (minutes is None):
        raise UsageError("the length of the run: expected either --epochs N or --minutes T, not both")
    for name, value in (("--epochs", epochs), ("--minutes", minutes), ("--lr", lr)):
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"{name}: expected a number above 0, got {value:g}")
    crop_hw = cli.parse_size("--crop", crop) if crop else default_crop_hw(spec.min_size)
    if min(crop_hw) < 64 or crop_hw[0] % 32 or crop_hw[1] % 32:
        raise UsageError(f"--crop: expected multiples of 32 that are at least 64, got {crop_hw[0]}x{crop_hw[1]}")

    from pipeline.training.run import train as run
    from pipeline.training.settings import TrainSettings

    settings = TrainSettings(
        data=data,
        val=val,
        model=model,
        init=init,
        frozen=tuple(freeze or ()),
        output=Path(os.path.expanduser(output)),
        epochs=epochs,
        minutes=minutes,
        batch=batch,
        lr=lr if lr is not None else DEFAULT_LR[optimizer_name],
        optimizer=optimizer_name,
        crop_hw=crop_hw,
        device=device,
        precision=precision,
        seed=seed,
        synthetic_share=synthetic_share,
        workers=workers,
        checkpoint_minutes=checkpoint_minutes,
        resume=resume,
    )
    return EXIT_DONE if run(settings) else EXIT_INTERRUPTED


def synthetic(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="output folder; it must be empty or not exist yet")],
    pictures: Annotated[int, _number("--pictures", "number of pictures in train.json", "N", min=1)] = 120,
    val_pictures: Annotated[int, _number("--val-pictures", "number of pictures in val.json", "N", min=1)] = 24,
    size: Annotated[
        str, cli.option("--size", "width x height of the pictures, in pixels", "WxH", RUN_PANEL)
    ] = "640x360",
    seed: Annotated[int, _number("--seed", "random seed of the scenes", "N", min=0)] = 0,
) -> int:
    """Write pictures of the synthetic street that `demo` shows, with ground truth, as COCO data."""
    from pipeline.synthetic.coco_data import write_coco_data

    write_coco_data(Path(os.path.expanduser(folder)), (pictures, val_pictures), cli.parse_size("--size", size), seed)
    return EXIT_DONE


def default_crop_hw(min_size: int) -> tuple[int, int]:
    """(height, width) of the training crops, multiples of 32: the model's shorter side, and 1.5 times as wide."""
    height = max(min_size // 32 * 32, 64)
    return height, height * 3 // 2 // 32 * 32


def _one_of(name: str, value: str, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise UsageError(f"{name}: expected {', '.join(expected[:-1])} or {expected[-1]}, got {value!r}")
