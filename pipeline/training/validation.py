"""Validation during training: average precision of the current weights, run by the engine that will use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ops.preprocess import rgb_to_i420
from pipeline.coco.average_precision import CocoMetrics, coco_metrics
from pipeline.coco.data import CocoData
from pipeline.coco.ground_truth import ground_truth_of_data
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.engine.architectures import build
from pipeline.engine.engine import Engine
from pipeline.models.registry import ModelSpec, bus_hw
from pipeline.source.picture_files import read_rgb


class Validation:
    """Evaluates weights on pictures that are not in the training data."""

    def __init__(self, data: CocoData, spec: ModelSpec, device: torch.device, precision: str) -> None:
        self._data, self._spec, self._device, self._precision = data, spec, device, precision
        self._ground_truth = ground_truth_of_data(data, dict(data.categories), with_masks=spec.output == "masks")
        id_of_label = {label: category_id for category_id, label in data.categories}
        self._category_of = {
            class_id: id_of_label[label] for class_id, label in spec.categories if label in id_of_label
        }
        """class id of the model -> category id of the data"""

    def __call__(self, state: Mapping[str, Tensor]) -> CocoMetrics:
        """The metrics of a state dict, given in the form in which it is stored."""
        num_threads = torch.get_num_threads()
        try:
            return self._metrics(state)
        finally:
            # numba changes torch's number of threads, and with it the order of torch's sums and the course of training.
            torch.set_num_threads(num_threads)

    def _metrics(self, state: Mapping[str, Tensor]) -> CocoMetrics:
        network = build(self._spec.architecture, len(self._spec.head_class_ids) + 1)
        network.load_state_dict(dict(state))
        with torch.inference_mode():
            engine = Engine(network, self._spec, self._device, self._precision)
            found = {
                record.image_id: self._detections(engine, index) for index, record in enumerate(self._data.pictures)
            }
        return coco_metrics(self._ground_truth, found)

    def _detections(self, engine: Engine, index: int) -> Detections:
        record = self._data.pictures[index]
        image = Image.fromarray(read_rgb(record.path, (record.height, record.width)))
        height, width = bus_hw(self._spec, (record.height, record.width))
        frame = I420Frame(
            rgb_to_i420(np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))),
            width,
            height,
            record.width,
            record.height,
            ColourMatrix.BT601,
            full_range=True,
        )
        (found,) = engine.infer([frame], min_scores=[0.0], class_ids=[list(self._category_of)])
        category_ids = [self._category_of[class_id] for class_id in found.class_ids.tolist()]
        return replace(found, class_ids=np.array(category_ids, np.int32))
