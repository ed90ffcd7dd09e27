"""The engine: frames in, detections out, on the CPU or on CUDA. Importing this package imports torch."""

import pipeline.engine.lean_torchvision  # noqa: F401 (before the modules that import torchvision)
from pipeline.engine.engine import Engine, Pending, load_engine
from pipeline.engine.segment import segment_pictures

__all__ = ["Engine", "Pending", "load_engine", "segment_pictures"]
