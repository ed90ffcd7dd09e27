"""Instance segmentation in torchvision's semantics behind one call: frames in, detections with RLE masks out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.detection import FasterRCNN

from ops.keypoints import decode_keypoints
from ops.masks import pack_bits, paste_rle
from pipeline.contract.arrays import Detections, I420Frame
from pipeline.engine.architectures import build
from pipeline.engine.device import choose_device, choose_dtype
from pipeline.engine.eager import EagerRunner
from pipeline.engine.jobs import MAX_BATCH, Found, Job, Runner, grey_frame
from pipeline.engine.network import Network
from pipeline.engine.weights import load_weights
from pipeline.models.registry import ModelSpec, get_model, input_hw
from pipeline.models.weights_table import spec_of_weights

# Every level of the pyramid must divide the input.
_SIZE_DIVISOR = 32

# Frames whose run lengths are written at once.
_PASTE_THREADS = 8


class Pending:
    """Detections on their way."""

    def __init__(self, collect: Callable[[], list[Detections]]) -> None:
        self._collect = collect
        self._found: list[Detections] | None = None

    def result(self) -> list[Detections]:
        """Waits for them: one entry per frame, in the order of the frames."""
        if self._found is None:
            self._found = self._collect()
        return self._found


class Engine:
    """A loaded network. Not safe for use from several threads at once.

    spec          the model
    device_name   `cpu` or the name of the GPU
    precision     fp32, bf16 or fp16: the format of the convolutions; boxes and the sums of RoIAlign are always fp32
    overlaps      whether it works on submitted frames while the caller does something else
    """

    def __init__(self, network: FasterRCNN, spec: ModelSpec, device: torch.device, precision: str) -> None:
        """Takes the network over: folds its batch norms and moves it. `precision` as for `choose_dtype`."""
        self.spec = spec
        self.precision, dtype = choose_dtype(precision, device)
        self.overlaps = device.type == "cuda"
        self.device_name = torch.cuda.get_device_name(device) if self.overlaps else "cpu"
        self._runner = _runner(Network(network, device, dtype), spec)
        self._class_id_of_output = np.array([0, *spec.head_class_ids], np.int32)
        self._pasting = ThreadPoolExecutor(min(_PASTE_THREADS, torch.get_num_threads()), "paste")

    def warm_up(self, sizes_hw: Iterable[tuple[int, int]], max_batch: int = 1) -> None:
        """Runs every stage for frames of these (height, width), so that the first real frame is not slow.

        max_batch is the most frames that will be submitted at once.
        """
        for hw in sizes_hw:
            frame_input_hw = input_hw(self.spec, hw)
            wanted = self._min_scores(0.0, None)[None]
            job = Job([grey_frame(hw)], [frame_input_hw], _padded(frame_input_hw), wanted)
            self._detections(job, self._runner.warm_up(job, max_batch))

    def infer(
        self,
        frames: Sequence[I420Frame],
        *,
        min_scores: Sequence[float],
        class_ids: Sequence[Collection[int] | None],
    ) -> list[Detections]:
        """Detections of each frame, in pixels of its source, at most 100, with score >= max(0.05, min_scores[i]).

        class_ids[i] are the categories to look for, None for all. Frames are run together with those of the same padded
        input shape only, so what is found on one does not depend on the others beyond rounding.
        Raises ValueError when the three sequences differ in length.
        """
        return self.submit(frames, min_scores=min_scores, class_ids=class_ids).result()

    def submit(
        self,
        frames: Sequence[I420Frame],
        *,
        min_scores: Sequence[float],
        class_ids: Sequence[Collection[int] | None],
    ) -> Pending:
        """As `infer`, but on CUDA it returns while the GPU works: submit the next frames, then ask for the result."""
        if not len(frames) == len(min_scores) == len(class_ids):
            raise ValueError(
                f"expected one minimum score and one set of classes per frame, "
                f"got {len(frames)} frames, {len(min_scores)} scores, {len(class_ids)} sets"
            )
        hws = [input_hw(self.spec, (frame.height, frame.width)) for frame in frames]
        of_shape: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for index, hw in enumerate(hws):
            of_shape[_padded(hw)].append(index)
        started: list[tuple[list[int], Job, Callable[[], Found]]] = []
        for padded_hw, group in _in_parts(of_shape):
            wanted = [self._min_scores(min_scores[index], class_ids[index]) for index in group]
            job = Job([frames[index] for index in group], [hws[index] for index in group], padded_hw, np.stack(wanted))
            started.append((group, job, self._runner.start(job)))

        def collect() -> list[Detections]:
            detections: dict[int, Detections] = {}
            for group, job, wait in started:
                detections.update(zip(group, self._detections(job, wait()), strict=True))
            return [detections[index] for index in range(len(frames))]

        return Pending(collect)

    def _min_scores(self, min_score: float, class_ids: Collection[int] | None) -> NDArray[np.float32]:
        """The lowest score of each output; infinity for classes nobody asked for, and outputs that stand for none."""
        wanted = self.spec.labels if class_ids is None else class_ids
        of_output = np.isin(self._class_id_of_output, list(wanted))
        return np.where(of_output, min_score, np.inf).astype(np.float32)

    def _detections(self, job: Job, found: Found) -> list[Detections]:
        with torch.profiler.record_function("paste"):
            ends = np.cumsum(found.num).tolist()
            return list(
                self._pasting.map(lambda index: self._of_picture(job, found, index, ends[index]), range(len(ends)))
            )

    def _of_picture(self, job: Job, found: Found, picture: int, end: int) -> Detections:
        """Everything in pixels of the source frame."""
        frame, (input_h, input_w), num = job.frames[picture], job.input_hws[picture], int(found.num[picture])
        source_wh = np.array([frame.source_width, frame.source_height] * 2, np.float32)
        input_wh = np.array([input_w, input_h] * 2, np.float32)
        detections = Detections(
            boxes_xyxy=np.minimum(found.xyxy[picture, :num] * (source_wh / input_wh), source_wh),
            scores=found.scores[picture, :num].copy(),
            class_ids=self._class_id_of_output[found.outputs[picture, :num]],
            mask_bits=None,
            rle_counts=None,
            width=frame.source_width,
            height=frame.source_height,
        )
        if found.details is None:
            return detections
        details, source_hw = found.details[end - num : end], (frame.source_height, frame.source_width)
        if self.spec.output == "masks":
            detections.mask_bits = pack_bits(details)
            detections.rle_counts = paste_rle(details, detections.boxes_xyxy, source_hw)
        else:
            detections.keypoints = decode_keypoints(details, detections.boxes_xyxy)
        return detections


def load_engine(
    model: str, *, weights: str | None = None, device: str = "auto", precision: str = "auto", threads: int | None = None
) -> Engine:
    """The engine of a registered model.

    weights   a file of the architecture, or None for the model's own; torchvision's are downloaded when not cached;
              a file that names other classes or another input size than the model's makes a spec of its own
    device    auto, cpu, cuda or cuda:N
    precision auto (bf16 where the device multiplies it, else fp32), fp32, bf16, fp16
    threads   for torch on the CPU; None leaves torch's choice
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


def _in_parts(of_shape: Mapping[tuple[int, int], list[int]]) -> Iterator[tuple[tuple[int, int], list[int]]]:
    for padded_hw, indices in of_shape.items():
        for begin in range(0, len(indices), MAX_BATCH):
            yield padded_hw, indices[begin : begin + MAX_BATCH]


def _runner(network: Network, spec: ModelSpec) -> Runner:
    if network.device.type != "cuda":
        return EagerRunner(network, spec)
    from pipeline.engine.graphs import GraphRunner

    return GraphRunner(network, spec)
