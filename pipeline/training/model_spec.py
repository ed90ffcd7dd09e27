"""The model that a training run produces, and the metadata of its weights file."""

from __future__ import annotations

import json
from dataclasses import replace

from pipeline.coco.data import CocoData
from pipeline.models.registry import ModelSpec


def spec_for_data(base: ModelSpec, data: CocoData) -> ModelSpec:
    """`base` if the data has exactly its categories, else `base` with the categories of the data."""
    if set(data.categories) == set(base.categories):
        return base
    ids = tuple(category_id for category_id, _ in data.categories)
    return replace(base, categories=data.categories, head_class_ids=ids)


def weights_metadata(spec: ModelSpec) -> dict[str, str]:
    """The metadata of a weights file, which `pipeline.models.weights_table` reads."""
    return {
        "format": "pt",
        "architecture": spec.architecture,
        "categories": json.dumps({str(class_id): label for class_id, label in spec.categories}),
        "head_class_ids": json.dumps(list(spec.head_class_ids)),
        "min_size": str(spec.min_size),
        "max_size": str(spec.max_size),
    }
