"""Pictures for tests of the engine, and comparison of results."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ops.mask_format import decode_rle
from ops.preprocess import rgb_to_i420
from pipeline.contract.arrays import ColourMatrix, Detections, I420Frame
from pipeline.engine import Engine
from pipeline.synthetic import Scene, SceneConfig

# torch chooses convolution kernels by batch size and does not fold batch norms, so sums are rounded differently: about
# 1e-6 of an activation, 1e-5 of a score and 1e-3 of a pixel.
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE_PX = 0.02
SHARE_OF_MASK_PIXELS = 0.002


def street_pictures() -> list[NDArray[np.uint8]]:
    """Return three frames of the synthetic street at the input size of the model."""
    scene = Scene(SceneConfig(width=682, height=384, num_frames=100))
    return [scene.render(index).image for index in (0, 40, 80)]


def frame_of(rgb: NDArray[np.uint8], source_wh: tuple[int, int] | None = None) -> I420Frame:
    height, width = rgb.shape[:2]
    return I420Frame(
        rgb_to_i420(rgb), width, height, *(source_wh or (width, height)), ColourMatrix.BT601, full_range=True
    )


def found_on(engine: Engine, *frames: I420Frame) -> list[Detections]:
    return engine.infer(frames, min_scores=[0.05] * len(frames), class_ids=[None] * len(frames))


def assert_same(found: Detections, expected: Detections) -> None:
    """Compare instances in order. Instances whose scores are equal within the tolerance may be in any order."""
    assert len(found) == len(expected)
    left = list(range(len(found)))
    for index in range(len(expected)):
        partner = next(
            (
                other
                for other in left
                if found.class_ids[other] == expected.class_ids[index]
                and abs(found.scores[other] - expected.scores[index]) <= SCORE_TOLERANCE
                and np.abs(found.boxes_xyxy[other] - expected.boxes_xyxy[index]).max() <= BOX_TOLERANCE_PX
            ),
            None,
        )
        assert partner is not None, f"no partner of {expected.class_ids[index]} at {expected.boxes_xyxy[index]}"
        left.remove(partner)
        hw = (expected.height, expected.width)
        masks = [decode_rle(d.rle_counts[i], hw) for d, i in ((found, partner), (expected, index))]
        assert (masks[0] != masks[1]).sum() <= max(2, SHARE_OF_MASK_PIXELS * masks[1].sum())
