"""The commands `train` and `synthetic`. What they need is imported when they run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.contract.exit_codes import EXIT_DONE, EXIT_INTERRUPTED
from pipeline.errors import UsageError
from pipeline.terminal import options as cli

TRAIN_EPILOG = """
[bold]Examples[/]

  maskstream train --data train.json --val val.json --model street --output runs/mine --epochs 20
  maskstream train --data shots/ --model maskrcnn_resnet50_fpn_v2 --output runs/mine --minutes 60 --lr 1e-4
  maskstream train --data few.json --model street --freeze backbone.body --output runs/few --epochs 20 --lr 1e-4
  maskstream train --data train.json --model street --output runs/mine --epochs 20 --resume
  maskstream video.mp4 --model street --weights runs/mine/weights.safetensors

[bold]Exit codes[/]

  0    trained to the end
  1    the run failed, or its folder cannot be written
  2    wrong use, or data that cannot be used
  130  stopped by Ctrl-C; --resume goes on
"""

SYNTHETIC_EPILOG = """
[bold]Examples[/]

  maskstream synthetic scene
  maskstream synthetic scene --pictures 200 --val-pictures 40 --size 960x540
"""

RUN_PANEL, DATA_PANEL = "Run", "Data"

_SIZE = re.compile(r"(\d+)x(\d+)")


def _number(name: str, help_text: str, metavar: str, panel: str = RUN_PANEL, **limits: Any) -> Any:
    return cli.option(name, help_text, metavar, panel, **limits)


def train(
    data: Annotated[Path, cli.option("--data", "COCO JSON, or the folder with one", "JSON|DIR", DATA_PANEL)],
    output: Annotated[Path, cli.option("--output", "folder of the run", "DIR", RUN_PANEL)],
    val: Annotated[
        Path | None, cli.option("--val", "the same for validation; default none", "JSON|DIR", DATA_PANEL)
    ] = None,
    model: Annotated[str, cli.option("--model", "see `models`; default street", "NAME", cli.MODEL_PANEL)] = "street",
    init: Annotated[
        Path | None, cli.option("--init", "weights to start from; default the model's own", "FILE", cli.MODEL_PANEL)
    ] = None,
    freeze: Annotated[
        list[str] | None,
        cli.option("--freeze", "a part not to train, as backbone.body; again for another", "PART", cli.MODEL_PANEL),
    ] = None,
    epochs: Annotated[float | None, _number("--epochs", "length of the run: this or --minutes", "N")] = None,
    minutes: Annotated[float | None, _number("--minutes", "length of the run: this or --epochs", "T")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on after a stop", rich_help_panel=RUN_PANEL)] = False,
    batch: Annotated[int, _number("--batch", "pictures a step; default 4", "N", min=1)] = 4,
    lr: Annotated[
        float | None, _number("--lr", "peak learning rate; default 3e-4 for adamw, 1e-2 for sgd", "RATE")
    ] = None,
    optimizer: Annotated[str, cli.option("--optimizer", "default adamw", "adamw|sgd", RUN_PANEL)] = "adamw",
    crop: Annotated[
        str | None, cli.option("--crop", "height x width of the training crops; default by model", "HxW", RUN_PANEL)
    ] = None,
    synthetic_share: Annotated[
        float | None,
        _number(
            "--synthetic-share",
            "of drawn pictures among them; default 0.15 where the data has their classes",
            "SHARE",
            DATA_PANEL,
            min=0.0,
            max=0.9,
        ),
    ] = None,
    device: Annotated[str, cli.option("--device", "default auto", "auto|cpu|cuda|cuda:N", RUN_PANEL)] = "auto",
    precision: Annotated[str, cli.option("--precision", "default auto", "auto|fp32|bf16|fp16", RUN_PANEL)] = "auto",
    seed: Annotated[
        int, _number("--seed", "of order, augmentation and sampling; default 0", "N", min=0, max=2**31 - 1)
    ] = 0,
    workers: Annotated[
        int | None, _number("--workers", "processes that prepare pictures; default by device", "N", min=0)
    ] = None,
    checkpoint_minutes: Annotated[
        float, _number("--checkpoint-minutes", "between checkpoints; default 5", "T", min=0.0)
    ] = 5.0,
) -> int:
    """Train a model, or fine-tune it to the classes of your own pictures."""
    from pipeline.models.registry import get_model

    spec = get_model(model)
    _one_of("--optimizer", optimizer, ("adamw", "sgd"))
    _one_of("--precision", precision, ("auto", "fp32", "bf16", "fp16"))
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device: expected auto, cpu, cuda or cuda:N, got {device!r}")
    if (epochs is None) == (minutes is None):
        raise UsageError("the length of the run: expected either --epochs N or --minutes T")
    for name, value in (("--epochs", epochs), ("--minutes", minutes), ("--lr", lr)):
        if value is not None and not 0 < value < 1e6:
            raise UsageError(f"{name}: expected a number above 0, got {value:g}")
    crop_hw = _size("--crop", crop) if crop else default_crop_hw(spec.min_size)
    if min(crop_hw) < 64 or crop_hw[0] % 32 or crop_hw[1] % 32:
        raise UsageError(f"--crop: expected multiples of 32 from 64 on, got {crop_hw[0]}x{crop_hw[1]}")

    from pipeline.training.command import train as run
    from pipeline.training.settings import TrainSettings

    settings = TrainSettings(
        data=data,
        val=val,
        model=model,
        init=init,
        frozen=tuple(freeze or ()),
        output=output.expanduser(),
        epochs=epochs,
        minutes=minutes,
        batch=batch,
        lr=lr if lr is not None else {"adamw": 3e-4, "sgd": 1e-2}[optimizer],
        optimizer="sgd" if optimizer == "sgd" else "adamw",
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
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a folder that is empty or not there yet")],
    pictures: Annotated[int, _number("--pictures", "in train.json; default 120", "N", min=1)] = 120,
    val_pictures: Annotated[int, _number("--val-pictures", "in val.json; default 24", "N", min=1)] = 24,
    size: Annotated[str, cli.option("--size", "width x height; default 640x360", "WxH", RUN_PANEL)] = "640x360",
    seed: Annotated[int, _number("--seed", "of the streets; default 0", "N", min=0)] = 0,
) -> int:
    """Write pictures of the drawn street, the one of `demo`, with their truth as COCO data."""
    from pipeline.training.scene_data import write_scene_data

    write_scene_data(folder.expanduser(), (pictures, val_pictures), _size("--size", size), seed)
    return EXIT_DONE


def default_crop_hw(min_size: int) -> tuple[int, int]:
    """As high as the model's shorter side, and half as wide again; multiples of 32."""
    height = max(min_size // 32 * 32, 64)
    return height, height * 3 // 2 // 32 * 32


def _size(name: str, text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text.strip().lower())
    if not found:
        raise UsageError(f"{name}: expected two numbers like 384x576, got {text!r}")
    return int(found[1]), int(found[2])


def _one_of(name: str, value: str, expected: tuple[str, ...]) -> None:
    if value not in expected:
        raise UsageError(f"{name}: expected {', '.join(expected[:-1])} or {expected[-1]}, got {value!r}")
