"""Camera streams and video files as tracked instance masks.

    import maskstream

    for result in maskstream.run("video.mp4", model="street"):
        print(result.frame_seq, [(instance.track_id, instance.label) for instance in result.instances])

`run` processes videos and streams in worker processes, `segment` single pictures in this process, and `subscribe` reads
the results of a job that runs elsewhere. Importing this module does not import torch; calling `segment` does.
"""

from __future__ import annotations

from pipeline import __version__
from pipeline.api import run, segment
from pipeline.client import subscribe, subscribe_async
from pipeline.contract.results import (
    AnyResult,
    EndResult,
    EpochResult,
    EventResult,
    FrameResult,
    GapResult,
    Instance,
    Mask,
)
from pipeline.errors import (
    BusError,
    ConfigError,
    MaskStreamError,
    ModelError,
    OutputError,
    SourceError,
    UsageError,
)
from pipeline.frames import Frame, PictureDetections

__all__ = [
    "AnyResult",
    "BusError",
    "ConfigError",
    "EndResult",
    "EpochResult",
    "EventResult",
    "Frame",
    "FrameResult",
    "GapResult",
    "Instance",
    "Mask",
    "MaskStreamError",
    "ModelError",
    "OutputError",
    "PictureDetections",
    "SourceError",
    "UsageError",
    "__version__",
    "run",
    "segment",
    "subscribe",
    "subscribe_async",
]
