"""Keypoint decoding from 56x56 heatmaps, beside torchvision's heatmaps_to_keypoints.

    python -m benchmarks.keypoints [--runs N] [--threads N] [--case TEXT] [--json]

Both sides get heatmaps (N, 17, 56, 56) of people and their boxes in input pixels, and return x, y and score of each
joint. A heatmap is a peak on a slope with noise, at 28x28 and upsampled by two, as the network's last layer does; pure
noise is the worst case for the branch-and-bound search. Boxes have log-uniform heights from 40 to 600 pixels and are a
third to two thirds as wide. Ours runs on one thread, torchvision on the given number.

Before a figure is printed, every score is compared, and every position unless several pixels have the same value:
torchvision's score may exceed the value of its resized heatmap at our position by rounding only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from benchmarks import report
from ops.keypoints import decode_keypoints

# The values are up to 8, and float32 rounds a sum of 16 products about 20 times.
_SCORE_TOLERANCE = 8 * 40 * 2.0**-24

# Three roundings of positions of up to 2048 pixels.
_POSITION_TOLERANCE_PX = 1e-3


class Case(NamedTuple):
    num_people: int
    noise_only: bool


CASES = {
    "1 person": Case(1, noise_only=False),
    "15 people": Case(15, noise_only=False),
    "100 people": Case(100, noise_only=False),
    "15 people, nothing but noise": Case(15, noise_only=True),
}


def heatmaps(num: int, *, noise_only: bool) -> torch.Tensor:
    """(N, 17, 56, 56) float32 logits."""
    random = np.random.default_rng(0)
    if noise_only:
        return torch.from_numpy(random.standard_normal((num, 17, 56, 56), dtype=np.float32))
    rows, columns = np.indices((28, 28))
    at_row, at_column = random.uniform(2, 26, (2, num, 17, 1, 1))
    bumps = 12 * np.exp(-((rows - at_row) ** 2 + (columns - at_column) ** 2) / 5) - 6 + 0.02 * columns
    coarse = torch.from_numpy((bumps + random.normal(0, 0.3, bumps.shape)).astype(np.float32))
    return functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)


def boxes(num: int) -> NDArray[np.float32]:
    """(N, 4) boxes in input pixels."""
    random = np.random.default_rng(1)
    height = np.exp(random.uniform(np.log(40), np.log(600), num))
    sides = np.stack([height * random.uniform(1 / 3, 2 / 3, num), height], axis=1)
    corner = random.uniform(0, 700, (num, 2))
    return np.hstack([corner, corner + sides]).astype(np.float32)


def ours(maps: torch.Tensor, boxes_xyxy: torch.Tensor) -> NDArray[np.float32]:
    return decode_keypoints(maps.numpy(), boxes_xyxy.numpy())


def torchvisions(maps: torch.Tensor, boxes_xyxy: torch.Tensor) -> NDArray[np.float32]:
    positions, scores = heatmaps_to_keypoints(maps, boxes_xyxy)
    found: NDArray[np.float32] = torch.cat([positions[..., :2], scores[..., None]], dim=2).numpy()
    return found


def fault(maps: torch.Tensor, boxes_xyxy: torch.Tensor) -> str | None:
    """What differs by more than rounding, or None."""
    found, expected = ours(maps, boxes_xyxy), torchvisions(maps, boxes_xyxy)
    scores = int((np.abs(found[..., 2] - expected[..., 2]) > _SCORE_TOLERANCE).sum())
    away = (np.abs(found[..., :2] - expected[..., :2]) > _POSITION_TOLERANCE_PX).any(axis=2)
    positions = sum(
        float(expected[n, k, 2]) - height_at(maps[n, k], boxes_xyxy[n].numpy(), found[n, k]) > 2 * _SCORE_TOLERANCE
        for n, k in zip(*np.nonzero(away), strict=True)
    )
    return f"{scores} scores and {positions} positions differ" if scores or positions else None


def height_at(heatmap: torch.Tensor, box_xyxy: NDArray[np.float32], keypoint: NDArray[np.float32]) -> float:
    """Value of the heatmap, resized by torch, at the pixel of a keypoint."""
    sides = box_xyxy[2:] - box_xyxy[:2]
    columns, rows = np.ceil(sides).astype(int).tolist()
    resized = functional.interpolate(heatmap[None, None], (rows, columns), mode="bicubic", align_corners=False)[0, 0]
    column, row = np.rint((keypoint[:2] - box_xyxy[:2]) * [columns, rows] / sides - 0.5).astype(int).tolist()
    return float(resized[row, column])


@torch.inference_mode()
def main() -> None:
    parser = report.arguments("benchmarks.keypoints", __doc__, num_runs=7)
    report.add_threads(parser)
    arguments = parser.parse_args()
    device = report.use_threads(arguments.threads)
    table = report.Report(device, ("torch", "torchvision", "numba"), "torchvision", as_json=arguments.json)
    for name in report.selected(list(CASES), arguments.case):
        num, noise_only = CASES[name]
        inputs = heatmaps(num, noise_only=noise_only), torch.from_numpy(boxes(num))
        report.gate(name, fault(*inputs))
        times_ms = report.take_turns([lambda at=inputs: ours(*at), lambda at=inputs: torchvisions(*at)], arguments.runs)
        table.add(name, *times_ms)


if __name__ == "__main__":
    main()
