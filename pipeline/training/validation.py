"""Average precision of weights in training, by the engine that will run them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ops.preprocess import rgb_to_i420
from pipeline.coco.data import CocoData
from pipeline.coco.precision import CocoPrecision, coco_precision
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.engine.architectures import build
from pipeline.engine.engine import Engine
from pipeline.models.registry import ModelSpec, bus_hw
from pipeline.source.picture_files import read_rgb


class Validation:
    """Pictures that are never trained on. Classes of the data that the model does not have are left out."""

    def __init__(self, data: CocoData, spec: ModelSpec, device: torch.device, precision: str) -> None:
        self._data, self._spec, self._device, self._precision = data, spec, device, precision
        self._truth = _truth(data)
        of_label = {label: category_id for category_id, label in data.categories}
        self._category_of = {class_id: of_label[label] for class_id, label in spec.categories if label in of_label}

    def __call__(self, state: Mapping[str, Tensor]) -> CocoPrecision:
        """Of a state dict as it is stored."""
        num_threads = torch.get_num_threads()
        try:
            return self._precision_of(state)
        finally:
            # numba's threads are torch's: it sets their number anew, and with it the order of torch's sums
            torch.set_num_threads(num_threads)

    def _precision_of(self, state: Mapping[str, Tensor]) -> CocoPrecision:
        network = build(self._spec.architecture, len(self._spec.head_class_ids) + 1)
        network.load_state_dict(dict(state))
        with torch.inference_mode():
            engine = Engine(network, self._spec, self._device, self._precision)
            found = {
                record.image_id: self._detections(engine, index) for index, record in enumerate(self._data.pictures)
            }
        return coco_precision(self._truth, found)

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


def _truth(data: CocoData) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(data.path))
