"""The table of trackers."""

from __future__ import annotations

from pipeline.tracking.mask_tracker import MaskTracker
from pipeline.tracking.tracker import Tracker, TrackerConfig

TRACKERS: dict[str, type[Tracker]] = {"mask": MaskTracker}
"""name -> class"""

DEFAULT_TRACKER = "mask"
"""the tracker that the pipeline and the evaluation use"""


def make_tracker(config: TrackerConfig, name: str = DEFAULT_TRACKER) -> Tracker:
    """Create a tracker without tracks. Raises KeyError for a name that is not in `TRACKERS`."""
    return TRACKERS[name](config)


def restore_tracker(config: TrackerConfig, payload: bytes, name: str = DEFAULT_TRACKER) -> Tracker:
    """Create the tracker that returned payload from `checkpoint`. Raises ValueError for other bytes."""
    return TRACKERS[name].restore(config, payload)
