"""Random textures."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def cloud_noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Fractal noise, (height, width) float32 from 0 to 1: octaves of smooth noise, each 0.55 times as strong."""
    total = np.zeros((height, width), np.float32)
    cells, weight = 3, 1.0
    while cells <= height:
        field = rng.uniform(-1, 1, (cells, 2 * cells)).astype(np.float32)
        total += weight * cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * 0.55
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def grain(rng: np.random.Generator, height: int, width: int, sigma: float) -> NDArray[np.int16]:
    """Gaussian noise, (height, width) int16, with standard deviation `sigma`.

    Neighbouring pixels are slightly correlated, as in a picture interpolated from a Bayer colour filter.
    """
    raw = rng.standard_normal((height, width), np.float32)
    # The blur reduces the standard deviation by about a third.
    soft = cv2.GaussianBlur(raw, (3, 3), 0.5) * (sigma * 1.5)
    noise: NDArray[np.int16] = np.rint(soft).astype(np.int16)
    return noise
