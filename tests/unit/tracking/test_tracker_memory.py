"""Memory of a tracker that runs for a long time."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from support.tracker_cases import CONFIG, detections

from ops.mask_format import MASK_BYTES
from pipeline.tracking.mask_tracker import MaskTracker

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(300)]

NUM_FRAMES, FPS = 10_000, 25
NUM_OBJECTS, LIFE_FRAMES = 200, 100
SETTLED_FRAME = 2_000

MOST_GROWTH_BYTES = 2**20
"""maximum growth of the process after SETTLED_FRAME

16,000 tracks end in that time, and a leak of one mask (98 bytes) per track would take 2 MiB. The growth by the
allocators was measured at 16 KiB.
"""


@pytest.mark.parametrize("with_masks", [False, True], ids=["boxes", "masks"])
def test_memory_stays_constant_over_ten_thousand_frames(with_masks: bool) -> None:
    """200 objects that cross each other; in each frame, two of them leave and are replaced."""
    rng = np.random.default_rng(1)
    velocity = rng.normal(0, 60, (NUM_OBJECTS, 2))
    start = rng.uniform(0, (1900, 1000), (NUM_OBJECTS, 2))
    size = rng.uniform((20, 40), (50, 120), (NUM_OBJECTS, 2))
    born = rng.permutation(NUM_OBJECTS) * LIFE_FRAMES // NUM_OBJECTS
    cells = rng.integers(0, 256, (NUM_OBJECTS, MASK_BYTES), np.uint8)
    tracker = MaskTracker(CONFIG)
    process = psutil.Process()
    sizes, resident = [], []
    for frame in range(NUM_FRAMES):
        # a replacement appears elsewhere: the positions are permuted with each generation
        age, generation = (frame - born) % LIFE_FRAMES, (frame - born) // LIFE_FRAMES
        corner = (start + generation[:, None] * (701, 389)) % (1900, 1000) + velocity * (age / FPS)[:, None]
        given = detections(np.hstack([corner, corner + size]))
        given.mask_bits = cells if with_masks else None
        tracker.update(given, frame + 1, frame / FPS)
        if frame >= SETTLED_FRAME and frame % 50 == 0:
            sizes.append(len(tracker.checkpoint()))
            resident.append(process.memory_info().rss)
    assert tracker.num_confirmed > 15_000
    half = len(sizes) // 2
    assert max(sizes[half:]) <= 1.05 * max(sizes[:half]), "the number of lost tracks varies by a few percent"
    assert max(resident) - resident[0] <= MOST_GROWTH_BYTES
