"""The settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OptimizerName = Literal["adamw", "sgd"]

DEFAULT_LR: dict[OptimizerName, float] = {"adamw": 3e-4, "sgd": 1e-2}
DEFAULT_SYNTHETIC_SHARE = 0.15
"""for data with all classes of the synthetic scene; 0 for other data"""
MAX_LOADER_PROCESSES = 8
"""on CUDA; 1 on the CPU, where the network needs the cores"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """The settings of one run.

    data, val            COCO JSON files, or folders with one; val None: no validation
    model                name of a registered model
    init                 weights to start from; None: the model's own weights
    frozen               modules of the network that are not trained, by their dotted names
    output               folder for checkpoint, metrics, plot and weights
    epochs, minutes      length of the run; exactly one of them is not None
    batch                number of pictures per step
    lr                   peak learning rate; the backbone's body learns at BODY_LR_SHARE of it
    crop_hw              height and width of the training crops in pixels, multiples of 32
    device, precision    as in `choose_device` and `choose_dtype`
    synthetic_share      share of synthetic pictures, 0 to 1; None: DEFAULT_SYNTHETIC_SHARE or 0, by the classes
    workers              number of loader processes; None: 1 on the CPU, up to MAX_LOADER_PROCESSES on CUDA
    checkpoint_minutes   time between two checkpoints
    resume               continue from the checkpoint in `output` if there is one
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
