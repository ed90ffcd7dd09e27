"""Overlapping boxes for the tests of NMS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def crowd(num_groups: int, num_boxes: int, seed: int, side_px: float = 60.0) -> NDArray[np.float32]:
    """Return (G, K, 4) boxes. Many overlap, some coincide, some have no area and some have negative sides."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0, 100, (num_groups, num_boxes, 2))
    half = random.uniform(0, side_px / 2, (num_groups, num_boxes, 2))
    boxes = np.concatenate([centre - half, centre + half], axis=2).astype(np.float32)
    odd = random.integers(0, 12, (num_groups, num_boxes))
    boxes[odd == 0] = np.round(boxes[odd == 0] / 20) * 20
    boxes[odd == 1, 2] = boxes[odd == 1, 0]
    boxes[odd == 2] = boxes[odd == 2][:, [2, 3, 0, 1]]
    for group, same in enumerate(odd == 3):
        boxes[group, same] = boxes[group, 0]
    return boxes


def pairs_near_threshold(num_pairs: int, threshold: float) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return (1, 2 P, 4) boxes and (1, 2 P) class IDs. The boxes come in pairs, and each pair has a class of its own.

    The IoU of a pair differs from the threshold by at most a few roundings: the second box is the first one with its
    height multiplied by about the threshold.
    """
    random = np.random.default_rng(0)
    width, height = random.uniform(50, 100, (2, num_pairs)).astype(np.float32)
    share = np.float32(threshold) + random.integers(-3, 4, num_pairs).astype(np.float32) * np.float32(2.0**-24)
    boxes = np.zeros((num_pairs, 2, 4), np.float32)
    boxes[:, :, 2] = width[:, None]
    boxes[:, 0, 3], boxes[:, 1, 3] = height, height * share
    return boxes.reshape(1, -1, 4), np.repeat(np.arange(num_pairs), 2)[None]
