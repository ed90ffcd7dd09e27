"""The network: from frames to detections, on the CPU or on CUDA. Importing this package imports torch."""

from pipeline.engine.engine import Engine, Pending, load_engine
from pipeline.engine.segment import segment_pictures

__all__ = ["Engine", "Pending", "load_engine", "segment_pictures"]
