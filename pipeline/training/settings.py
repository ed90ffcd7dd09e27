"""What one training run is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OptimizerName = Literal["adamw", "sgd"]

DEFAULT_LR: dict[OptimizerName, float] = {"adamw": 3e-4, "sgd": 1e-2}
DEFAULT_SYNTHETIC_SHARE = 0.15
"""for data that has classes of the synthetic street; 0 for other data"""
MAX_LOADER_PROCESSES = 8
"""when training on CUDA; 1 on the CPU, where the network needs the cores"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """One run.

    data, val         COCO JSON file, or folder with one; val None trains without validation
    model, init       registered model; weights file to start from, None for the model's own
    frozen            modules of the network that are not trained, by their dotted names in the state dict
    output            folder of checkpoint, metrics, plot and weights
    epochs, minutes   the length of the run: one of the two is given
    batch             pictures a step
    lr                peak of the learning rate; the body of the network learns at BODY_LR_SHARE of it
    crop_hw           size of the training crops in pixels, both multiples of 32
    synthetic_share   of the pictures that are drawn, 0 to 1; None: a small one where the data has the scene's labels
    workers           processes that prepare pictures; None: one on the CPU, up to eight beside CUDA
    checkpoint_minutes   between checkpoints
    """

    data: Path
    val: Path | None
    model: str
    init: Path | None
    frozen: tuple[str, ...]
    output: Path
    epochs: float | None
    minutes: float | None
    batch: int
    lr: float
    optimizer: OptimizerName
    crop_hw: tuple[int, int]
    device: str
    precision: str
    seed: int
    synthetic_share: float | None
    workers: int | None
    checkpoint_minutes: float
    resume: bool
