"""The engine: frames in, detections with RLE masks or keypoints out, with the semantics of torchvision's models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray

from ops.keypoints import decode_keypoints
from ops.masks import pack_bits, paste_rle
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.engine.architectures import Network, build
from pipeline.engine.device import choose_device, choose_dtype
from pipeline.engine.eager import EagerRunner
from pipeline.engine.runner import MAX_BATCH, Runner, RunnerInput, RunnerOutput, grey_frame
from pipeline.engine.staged_network import StagedNetwork
from pipeline.engine.weights import load_weights
from pipeline.models.registry import ModelSpec, get_model, input_hw
from pipeline.models.weights_table import spec_of_weights

# The stride of the coarsest pyramid level that RoIs use; the padded input is a multiple of it.
_SIZE_DIVISOR = 32

# Maximum number of frames whose masks are pasted in parallel.
_PASTE_THREADS = 8


class Pending:
    """Detections that are being computed."""

    def __init__(self, collect: Callable[[], list[Detections]]) -> None:
        self._collect = collect
        self._detections: list[Detections] | None = None

    def result(self) -> list[Detections]:
        """Wait for the detections and return them, one entry for each frame, in the order of the frames."""
        if self._detections is None:
            self._detections = self._collect()
        return self._detections


class Engine:
    """A model with weights on a device. Not thread-safe.

    spec          the model
    device_name   `cpu` or the name of the GPU
    precision     fp32, bf16 or fp16: the format of the convolutions; boxes and the sums of RoIAlign are always fp32
    overlaps      whether submitted frames are computed while the caller does other work (CUDA)
    """

    def __init__(self, network: Network, spec: ModelSpec, device: torch.device, precision: str) -> None:
        """Takes ownership of the network, which is modified in place. `precision` as for `choose_dtype`."""
        self.spec = spec
        self.precision, dtype = choose_dtype(precision, device)
        self.overlaps = device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(device) if self.overlaps else "cpu"
        self._runner = _runner(StagedNetwork(network, device, dtype), spec)
        self._class_id_of_output = np.array([0, *spec.head_class_ids], np.int32)
        self._pasting = ThreadPoolExecutor(min(_PASTE_THREADS, torch.get_num_threads()), "paste")

    def warm_up(self, sizes_hw: Iterable[tuple[int, int]], max_batch: int = 1) -> None:
        """Run every stage once for frames of each (height, width), so that later frames do not wait for compilation.

        max_batch is the maximum number of frames that one call of `submit` will contain.
        """
        for hw in sizes_hw:
            frame_input_hw = input_hw(self.spec, hw)
            wanted = self._min_scores(0.0, None)[None]
            batch = RunnerInput([grey_frame(hw)], [frame_input_hw], _padded(frame_input_hw), wanted)
            self._detections(batch, self._runner.warm_up(batch, max_batch))

    def infer(
        self,
        frames: Sequence[I420Frame],
        *,
        min_scores: Sequence[float],
        class_ids: Sequence[Collection[int] | None],
    ) -> list[Detections]:
        """Detect the objects on each frame: at most 100 detections with score >= max(0.05, min_scores[i]), in pixels of
        the source frame.

        class_ids[i] lists the categories to detect, None for all. A batch contains only frames with the same padded
        input shape, so the detections on a frame do not depend on the other frames, except for rounding.
        Raises ValueError if the three sequences differ in length.
        """
        return self.submit(frames, min_scores=min_scores, class_ids=class_ids).result()

    def submit(
        self,
        frames: Sequence[I420Frame],
        *,
        min_scores: Sequence[float],
        class_ids: Sequence[Collection[int] | None],
    ) -> Pending:
        """Like `infer`, but on CUDA it returns before the result is ready, so that the next frames can be submitted."""
        if not len(frames) == len(min_scores) == len(class_ids):
            raise ValueError(
                f"expected one minimum score and one set of classes per frame, "
                f"got {len(frames)} frames, {len(min_scores)} scores, {len(class_ids)} sets"
            )
        hws = [input_hw(self.spec, (frame.height, frame.width)) for frame in frames]
        indices_by_shape: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, hw in enumerate(hws):
            indices_by_shape[_padded(hw)].append(index)
        started: list[tuple[list[int], RunnerInput, Callable[[], RunnerOutput]]] = []
        for padded_hw, group in _batches(indices_by_shape):
            wanted = [self._min_scores(min_scores[index], class_ids[index]) for index in group]
            batch = RunnerInput(
                [frames[index] for index in group], [hws[index] for index in group], padded_hw, np.stack(wanted)
            )
            started.append((group, batch, self._runner.start(batch)))

        def collect() -> list[Detections]:
            detections: dict[int, Detections] = {}
            for group, batch, wait in started:
                detections.update(zip(group, self._detections(batch, wait()), strict=True))
            return [detections[index] for index in range(len(frames))]

        return Pending(collect)

    def _min_scores(self, min_score: float, class_ids: Collection[int] | None) -> NDArray[np.float32]:
        """(outputs of the class head,) float32: the lowest score to report, infinity for classes that are not wanted
        and for outputs without a category.
        """
        wanted = self.spec.labels if class_ids is None else class_ids
        of_output = np.isin(self._class_id_of_output, list(wanted))
        return np.where(of_output, min_score, np.inf).astype(np.float32)

    def _detections(self, batch: RunnerInput, output: RunnerOutput) -> list[Detections]:
        with torch.profiler.record_function("paste"):
            ends = np.cumsum(output.num).tolist()
            return list(
                self._pasting.map(lambda index: self._of_image(batch, output, index, ends[index]), range(len(ends)))
            )

    def _of_image(self, batch: RunnerInput, output: RunnerOutput, image: int, end: int) -> Detections:
        """The detections of one image, scaled from input pixels to pixels of the source frame."""
        frame, (input_h, input_w), num = batch.frames[image], batch.input_hws[image], int(output.num[image])
        source_wh = np.array([frame.source_width, frame.source_height] * 2, np.float32)
        input_wh = np.array([input_w, input_h] * 2, np.float32)
        detections = Detections(
            boxes_xyxy=np.minimum(output.xyxy[image, :num] * (source_wh / input_wh), source_wh),
            scores=output.scores[image, :num].copy(),
            class_ids=self._class_id_of_output[output.outputs[image, :num]],
            mask_bits=None,
            rle_counts=None,
            width=frame.source_width,
            height=frame.source_height,
        )
        if output.details is None:
            return detections
        details, source_hw = output.details[end - num : end], (frame.source_height, frame.source_width)
        if self.spec.output == "masks":
            detections.mask_bits = pack_bits(details)
            detections.rle_counts = paste_rle(details, detections.boxes_xyxy, source_hw)
        else:
            detections.keypoints = decode_keypoints(details, detections.boxes_xyxy)
        return detections


def load_engine(
    model: str, *, weights: str | None = None, device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """Load a registered model.

    weights    file with weights of the architecture, or None for the model's own; torchvision's are downloaded if they
               are not cached. Classes and input size in the file's metadata replace those of the model
    device     auto, cpu, cuda or cuda:N
    precision  auto (bf16 where the device has instructions for it, otherwise fp32), fp32, bf16 or fp16
    threads    number of torch's CPU threads; None leaves the choice to torch
    Raises ModelError or UsageError.
    """
    spec = spec_of_weights(get_model(model), weights)
    torch_device = choose_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    network = build(spec.architecture, len(spec.head_class_ids) + 1)
    load_weights(network, spec, weights)
    return Engine(network, spec, torch_device, precision)


def _padded(hw: tuple[int, int]) -> tuple[int, int]:
    height, width = (-(-size_px // _SIZE_DIVISOR) * _SIZE_DIVISOR for size_px in hw)
    return height, width


def _batches(indices_by_shape: Mapping[tuple[int, int], list[int]]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    for padded_hw, indices in indices_by_shape.items():
        for begin in range(0, len(indices), MAX_BATCH):
            yield padded_hw, indices[begin : begin + MAX_BATCH]


def _runner(network: StagedNetwork, spec: ModelSpec) -> Runner:
    if network.device.type != "cuda":
        return EagerRunner(network, spec)
    from pipeline.engine.graphs import GraphRunner

    return GraphRunner(network, spec)
