"""The training loop: steps, checkpoints, validation and reports."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.coco.data import CocoData, read_coco
from pipeline.engine.device import choose_device, choose_dtype
from pipeline.errors import MaskStreamError, OutputError, SourceError, UsageError
from pipeline.models.registry import ModelSpec, get_model
from pipeline.models.weights_table import check_weights_file, spec_of_weights
from pipeline.source.picture_files import check_picture
from pipeline.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint, write_weights
from pipeline.training.dataset import BatchPositions, Mixture, TrainingDataset
from pipeline.training.loss import DetectionLoss, Losses, Sampling
from pipeline.training.model_spec import spec_for_data, weights_metadata
from pipeline.training.network import start_network, stored_state
from pipeline.training.optimizer import MAX_GRADIENT_NORM, AveragedWeights, make_optimizer, set_lr
from pipeline.training.reporting import Report, Reporter
from pipeline.training.sample import Batch, collate
from pipeline.training.settings import DEFAULT_SYNTHETIC_SHARE, MAX_LOADER_PROCESSES, TrainSettings
from pipeline.training.synthetic_pictures import can_be_mixed_in
from pipeline.training.validation import Validation

# Steps between two lines of metrics; the end of an epoch writes one too. The losses stay on the device in between, so
# that no step waits for a copy.
_STEPS_PER_REPORT = 20


class Trainer:
    """One training run, from its first step or from its last checkpoint."""

    def __init__(self, settings: TrainSettings, reporter: Reporter) -> None:
        """Reads and checks data, weights and checkpoint. Raises UsageError, ModelError, SourceError or OutputError."""
        self._settings, self._reporter = settings, reporter
        self._device = choose_device(settings.device)
        self._precision, dtype = choose_dtype(settings.precision, self._device)
        base = _initial_spec(settings)
        data = self._read_data(settings.data, base)
        self._spec = spec_for_data(base, data)
        self._validation = self._make_validation(data)
        self._identity = _identity(settings, data, self._precision)
        self._output = _made_folder(settings.output, settings.resume)
        torch.manual_seed(settings.seed)
        init = None if settings.init is None else str(settings.init)
        self._network = start_network(self._spec, base, init, settings.frozen)
        self._network.to(self._device)
        mixture = Mixture(settings.seed, settings.crop_hw, self._synthetic_share(data))
        self._dataset = TrainingDataset(data, self._spec, mixture)
        self._optimizer = make_optimizer(self._network, settings.optimizer, settings.lr)
        self._average = AveragedWeights(self._network)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=dtype is torch.float16)
        autocast: AbstractContextManager[object] = (
            nullcontext() if dtype is torch.float32 else torch.autocast(self._device.type, dtype=dtype)
        )
        self._loss = DetectionLoss(self._network, self._spec.mean, self._spec.std, autocast, Sampling())
        self._step, self._elapsed_before_s, self._started_s = 0, 0.0, time.monotonic()
        if settings.resume and self._checkpoint_path.is_file():
            self._restore(read_checkpoint(self._checkpoint_path, self._identity))
        self._unreported_losses: list[Tensor] = []

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def step(self) -> int:
        """The number of steps so far, including those before the run was resumed."""
        return self._step

    @property
    def weights_path(self) -> Path:
        return self._output / "weights.safetensors"

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Trains until the end of the run or until `stop_requested()`; returns whether the end was reached.

        In both cases a checkpoint and the weights are written, also before a SourceError for a damaged picture.
        """
        self._started_s = time.monotonic()
        self._reporter.begin(self._output, self._step)
        try:
            self._train(stop_requested)
        except SourceError:
            if self._step:
                self._save()
            raise
        finished = self._progress() >= 1
        self._check_finite()
        self._save()
        if finished:
            self._validate()
            self._reporter.finish()
        return finished

    def _train(self, stop_requested: Callable[[], bool]) -> None:
        report_s = saved_s = self._started_s
        report_step = self._step
        for batch in self._batches():
            if self._progress() >= 1 or stop_requested():
                break
            lr = self._make_step(batch)
            now_s = time.monotonic()
            ends_epoch = self._epoch(self._step) > self._epoch(self._step - 1)
            if self._step % _STEPS_PER_REPORT == 0 or ends_epoch:
                rate = (self._step - report_step) * self._settings.batch / (now_s - report_s)
                self._report(lr, rate)
                report_s, report_step = now_s, self._step
            if ends_epoch and self._progress() < 1:
                self._validate()
            if now_s - saved_s > 60 * self._settings.checkpoint_minutes:
                self._save()
                saved_s = time.monotonic()
            report_s += time.monotonic() - now_s  # validation and checkpoints do not count for the rate

    def _make_step(self, batch: Batch) -> float:
        settings = self._settings
        lr = set_lr(self._optimizer, settings.lr, self._progress())
        # The samplers draw from the global generator. A seed per step makes a resumed run draw the same samples.
        torch.manual_seed((settings.seed << 32) + self._step)
        losses = self._loss(batch.to(self._device))
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([self._scaler.scale(losses.total)])
        self._scaler.unscale_(self._optimizer)
        trained = [item for group in self._optimizer.param_groups for item in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._average.update(self._step)
        self._unreported_losses.append(torch.stack([*losses]).detach())
        self._step += 1
        return lr

    def _report(self, lr: float, pictures_per_s: float) -> None:
        losses = self._check_finite()
        progress, elapsed_s = self._progress(), self._elapsed_s()
        left_s = elapsed_s * (1 - progress) / progress if progress else math.inf
        values = dict(zip(Losses._fields, losses, strict=True))
        self._reporter.step(
            Report(self._step, self._epoch(self._step), values, lr, pictures_per_s, elapsed_s, left_s, progress)
        )

    def _check_finite(self) -> list[float]:
        """The mean losses since the last report. Raises MaskStreamError if one of them is NaN or infinite."""
        if not self._unreported_losses:
            return []
        means = torch.stack(self._unreported_losses).mean(0).tolist()
        self._unreported_losses.clear()
        if not all(map(math.isfinite, means)):
            raise MaskStreamError(f"the loss is NaN or infinite at step {self._step}; try a lower --lr")
        return [float(value) for value in means]

    def _validate(self) -> None:
        if self._validation is not None:
            precision = self._validation(self._stored())
            self._reporter.validation(self._step, self._epoch(self._step), precision)

    def _save(self) -> None:
        write_checkpoint(
            self._checkpoint_path,
            Checkpoint(
                self._step,
                self._elapsed_s(),
                self._identity,
                self._network.state_dict(),
                self._average.tensors,
                self._optimizer.state_dict(),
                self._scaler.state_dict(),
            ),
        )
        write_weights(self.weights_path, self._stored(), weights_metadata(self._spec))

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._network.load_state_dict(checkpoint.network)
        self._average.load(checkpoint.average)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        self._scaler.load_state_dict(checkpoint.scaler)
        self._step, self._elapsed_before_s = checkpoint.step, checkpoint.elapsed_s

    def _stored(self) -> dict[str, Tensor]:
        return stored_state(self._spec, {**self._network.state_dict(), **self._average.tensors})

    def _progress(self) -> float:
        """The completed share of the run, 0 to 1."""
        if self._settings.minutes is not None:
            return min(self._elapsed_s() / (60 * self._settings.minutes), 1.0)
        assert self._settings.epochs is not None
        return min(self._step * self._settings.batch / (self._settings.epochs * self._dataset.epoch_length), 1.0)

    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + time.monotonic() - self._started_s

    def _epoch(self, step: int) -> int:
        """The number of complete epochs after `step` steps."""
        return step * self._settings.batch // self._dataset.epoch_length

    def _batches(self) -> Iterator[Batch]:
        settings = self._settings
        workers = settings.workers
        if workers is None:
            workers = 1 if self._device.type == "cpu" else min(MAX_LOADER_PROCESSES, os.cpu_count() or 1)
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=BatchPositions(self._step, settings.batch),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_start_worker,
            multiprocessing_context="fork" if workers else None,
        )
        try:
            yield from loader
        except SourceError as error:
            # torch puts the traceback of the loader process into the message; its last line is the original error.
            last_line = str(error).strip().rpartition("\n")[2]
            raise SourceError(last_line.removeprefix(f"{SourceError.__module__}.{SourceError.__name__}: ")) from None

    def _synthetic_share(self, data: CocoData) -> float:
        given = self._settings.synthetic_share
        if given is not None:
            return given
        return DEFAULT_SYNTHETIC_SHARE if can_be_mixed_in({label for _, label in data.categories}) else 0.0

    def _make_validation(self, data: CocoData) -> Validation | None:
        if self._settings.val is None:
            return None
        val = self._read_data(self._settings.val, self._spec)
        if val.path.samefile(data.path):
            raise UsageError(f"--val {val.path} is the training data; validate on pictures that are not trained on")
        unknown = {label for _, label in val.categories} - set(self._spec.labels.values())
        if unknown:
            raise UsageError(f"--val {val.path}: the training data has no category {min(unknown)!r}")
        return Validation(val, self._spec, self._device, self._precision)

    def _read_data(self, path: Path, spec: ModelSpec) -> CocoData:
        """The data set, after its annotations and the headers of its pictures have been checked."""
        data = read_coco(path, need_masks=spec.output == "masks")
        for line in data.warnings:
            self._reporter.warn(line)
        if not any(record.annotations for record in data.pictures):
            raise UsageError(f"data {data.path}: expected at least one annotation that covers part of its picture")
        for record in data.pictures:
            check_picture(record.path, (record.height, record.width))
        return data

    @property
    def _checkpoint_path(self) -> Path:
        return self._output / "checkpoint.pt"


def _initial_spec(settings: TrainSettings) -> ModelSpec:
    """The model with the classes of the weights to start from. Raises UsageError or ModelError."""
    model = get_model(settings.model)
    if model.output == "keypoints":
        raise UsageError(f"model {model.name} finds keypoints, which cannot be trained; choose one for masks or boxes")
    if settings.init is not None:
        check_weights_file(model, settings.init)
    return spec_of_weights(model, settings.init)


def _start_worker(_: int) -> None:
    """Ignores SIGINT: Ctrl-C reaches all processes of the group, and the main process decides what to do."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def _identity(settings: TrainSettings, data: CocoData, precision: str) -> dict[str, str]:
    """The settings and checksums that must be the same when a run is resumed, as text."""
    names = ("model", "epochs", "minutes", "batch", "lr", "optimizer", "crop_hw", "seed", "synthetic_share")
    identity = {f"--{name.removesuffix('_hw').replace('_', '-')}": str(getattr(settings, name)) for name in names}
    identity["--precision"] = precision
    identity["--freeze"] = " ".join(settings.frozen) or "nothing"
    identity["--data with SHA-256"] = data.sha256
    if settings.init is not None:
        identity["--init with SHA-256"] = _sha256(settings.init)
    return identity


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"--init {path}: there is no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _made_folder(path: Path, resume: bool) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"--output {path}: {str(error.strerror).lower()}") from None
    if not resume and (path / "checkpoint.pt").exists():
        raise UsageError(f"--output {path} already has a run: continue it with --resume, or choose another folder")
    return path
