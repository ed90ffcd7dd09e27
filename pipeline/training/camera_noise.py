"""Photometric augmentation: colour, blur, sensor noise and compression artefacts of cameras."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.random import Generator

from pipeline.training.picture import Rgb


def with_camera_noise(rng: Generator, rgb: Rgb) -> Rgb:
    """Change the picture (H, W, 3) as if another camera had taken it, in other light and over another connection."""
    rgb = _coloured(rng, rgb)
    if rng.random() < 0.12:
        rgb = _few_pixels(rng, rgb)
    if rng.random() < 0.2:
        rgb = _blurred(rng, rgb)
    if rng.random() < 0.25:
        rgb = _noisy(rng, rgb)
    if rng.random() < 0.3:
        rgb = _compressed(rgb, int(rng.integers(25, 90)))
    return rgb


def _coloured(rng: Generator, rgb: Rgb) -> Rgb:
    """Change brightness, contrast, gamma and white balance by one lookup table per channel, then the saturation."""
    levels = np.arange(256, dtype=np.float64) / 255
    gamma = float(np.exp(rng.uniform(-0.25, 0.25)))
    contrast, brightness = float(np.exp(rng.uniform(-0.3, 0.3))), float(rng.uniform(-0.08, 0.08))
    balance = np.exp(rng.uniform(-0.08, 0.08, 3))
    if rng.random() < 0.06:  # night: dark, flat and of one colour
        gamma, contrast, balance = gamma * 1.6, contrast * 0.6, balance * (1.05, 0.95, 0.85)
    curve = levels**gamma
    middle = float(curve[rgb[::4, ::4, 1]].mean())  # contrast around the mean: dark pictures stay visible
    curve = (curve - middle) * contrast + middle + brightness
    table = (np.clip(curve[:, None] * balance, 0, 1) * 255).round().astype(np.uint8)
    rgb = np.asarray(cv2.LUT(rgb, table[None]), np.uint8)
    saturation = 0.0 if rng.random() < 0.08 else float(rng.uniform(0.5, 1.4))
    grey = cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(rgb, saturation, grey, 1 - saturation, 0), np.uint8)


def _few_pixels(rng: Generator, rgb: Rgb) -> Rgb:
    """Scale the picture down and up again, and compress it strongly."""
    height, width = rgb.shape[:2]
    scale = float(rng.uniform(0.4, 0.8))
    small = cv2.resize(rgb, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        small = _compressed(np.asarray(small, np.uint8), int(rng.integers(30, 80)))
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


def _blurred(rng: Generator, rgb: Rgb) -> Rgb:
    """Blur the picture as if out of focus, or by linear motion during the exposure."""
    if rng.random() < 0.6:
        return np.asarray(cv2.GaussianBlur(rgb, (0, 0), float(rng.uniform(0.4, 1.6))), np.uint8)
    length = int(rng.integers(3, 10))
    angle = float(rng.uniform(0, np.pi))
    kernel = np.zeros((length, length), np.float32)
    middle = (length - 1) / 2
    for along in np.linspace(-middle, middle, 2 * length):
        kernel[round(middle + along * np.sin(angle)), round(middle + along * np.cos(angle))] = 1
    return np.asarray(cv2.filter2D(rgb, -1, kernel / kernel.sum()), np.uint8)


def _noisy(rng: Generator, rgb: Rgb) -> Rgb:
    """Add sensor noise: mostly luma noise, a little chroma noise."""
    height, width = rgb.shape[:2]
    sigma = float(rng.uniform(1, 12))
    noise = rng.standard_normal((height, width, 1), np.float32) * sigma
    half = rng.standard_normal(((height + 1) // 2, (width + 1) // 2, 3), np.float32) * (sigma / 2)
    colour = cv2.resize(half, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.clip(rgb + noise + colour, 0, 255).astype(np.uint8)


def _compressed(rgb: Rgb, quality: int) -> Rgb:
    _, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
