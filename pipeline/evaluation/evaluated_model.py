"""The model that is evaluated: its description, its engine, its classes in the ground truth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline.coco.ground_truth import check_pycocotools
from pipeline.contract.config import JobConfig
from pipeline.errors import UsageError
from pipeline.models.registry import ModelSpec, default_model, get_model
from pipeline.models.weights_table import check_weights_file, spec_of_weights

if TYPE_CHECKING:
    from pipeline.engine.engine import Engine


def evaluated_spec(config: JobConfig) -> ModelSpec:
    """The model to evaluate, with the classes of its weights.

    Raises UsageError for a keypoint model, ModelError for weights that cannot be read or have another architecture.
    """
    check_pycocotools()
    spec = get_model(config.model or default_model(config.device))
    if spec.output == "keypoints":
        raise UsageError(
            f"model {spec.name} finds keypoints, which are not evaluated: expected a model that finds boxes or masks"
        )
    if config.weights is not None:
        check_weights_file(spec, config.weights)
    return spec_of_weights(spec, config.weights)


def load_engine(config: JobConfig) -> Engine:
    """The engine of the model of `evaluated_spec`. Raises ModelError."""
    from pipeline.engine.engine import load_engine

    name = config.model or default_model(config.device)
    return load_engine(name, weights=config.weights, device=config.device, precision=config.precision)


def shared_classes(spec: ModelSpec, categories: Iterable[tuple[int, str]]) -> dict[int, int]:
    """Class id of the model -> category id of the ground truth, for the classes with the same name."""
    id_of_label = {label: category_id for category_id, label in categories}
    return {class_id: id_of_label[label] for class_id, label in spec.categories if label in id_of_label}


def describe(engine: Engine, config: JobConfig) -> dict[str, Any]:
    """Model, weights, device and precision, for JSON."""
    weights = None if config.weights is None else str(config.weights)
    return {
        "model": engine.spec.name,
        "weights": weights,
        "device": engine.device_name,
        "precision": engine.precision,
    }
