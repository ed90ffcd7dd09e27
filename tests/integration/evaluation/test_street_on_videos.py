"""`street` on real videos of a static camera. Background subtraction gives the ground truth.

The first second of each video is empty. The ground truth of a frame is the set of pixels that differ from the median of
the first frames and are not shadows, after morphological closing and with holes filled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support.pipeline_runs import frames_of, read_results, run

from pipeline.contract.results import FrameResult

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

Mask = NDArray[np.bool_]

NUM_EMPTY_FRAMES = 30
DIFFERENCE = 28
"""minimum difference in any channel, in grey levels, after subtraction of the change of brightness of the frame"""
SMALLEST_PX = 3000


@dataclass
class Count:
    """Counts of ground-truth objects, matches with their IoUs, and false positives on the static background."""

    num_objects: int = 0
    ious: list[float] = field(default_factory=list)
    num_false: int = 0
    frames: int = 0

    @property
    def recall(self) -> float:
        return len(self.ious) / self.num_objects

    def __str__(self) -> str:
        return (
            f"{len(self.ious)} of {self.num_objects} found ({self.recall:.1%}), median IoU {np.median(self.ious):.3f}; "
            f"{self.num_false} false positives on {self.frames} frames"
        )


def test_people_one_by_one(shared_data: Path, tmp_path: Path) -> None:
    """98 % of the people who are completely in the picture are found with a mask IoU of at least 0.7."""
    video = shared_data / "videos" / "intel_one-by-one-person-detection.mp4"
    count = Count()
    for result, moving in results_and_truth(video, tmp_path):
        expected = [mask for mask in moving if mask.sum() > 20_000 and not leaves_picture(mask)]
        add(count, result, expected, moving, "person", least_iou=0.7)
    print(f"people: {count}")
    assert count.num_objects > 700
    assert count.recall >= 0.98, str(count)
    assert count.num_false <= 0.05 * count.frames, str(count)


def test_cars_from_above(shared_data: Path, tmp_path: Path) -> None:
    """75 % of the cars with at least 10,000 pixels in the picture are found as cars with a mask IoU of at least 0.5."""
    video = shared_data / "videos" / "intel_car-detection.mp4"
    count = Count()
    for result, moving in results_and_truth(video, tmp_path):
        expected = [mask for mask in moving if mask.sum() > 10_000]
        add(count, result, expected, moving, "car", least_iou=0.5)
    print(f"cars: {count}")
    assert count.num_objects > 150
    assert count.recall >= 0.75, str(count)
    assert count.num_false <= 0.05 * count.frames, str(count)


def add(
    count: Count, result: FrameResult, expected: list[Mask], moving: list[Mask], label: str, *, least_iou: float
) -> None:
    count.frames += 1
    count.num_objects += len(expected)
    found = [(item.label, item.mask.to_array()) for item in result.instances if item.mask is not None]
    free = [mask for name, mask in found if name == label]
    for truth in expected:
        best = max(range(len(free)), key=lambda index: iou(free[index], truth), default=None)
        if best is not None and iou(free[best], truth) >= least_iou:
            count.ious.append(iou(free.pop(best), truth))
    anything = np.logical_or.reduce(moving) if moving else None
    for _, mask in found:
        count.num_false += anything is None or bool((mask & anything).sum() < 0.5 * mask.sum())


def results_and_truth(video: Path, folder: Path) -> Iterator[tuple[FrameResult, list[Mask]]]:
    """Run the command line on the video with default options, and yield each result with the masks (H, W) of motion."""
    ended = run(video, "--model", "street", "--save", "jsonl", "--output", "out", folder=folder, timeout_s=600)
    assert ended.code == 0
    with av.open(str(video)) as container:
        pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    empty = np.median(pictures[:NUM_EMPTY_FRAMES], axis=0).astype(np.float32)
    results = frames_of(read_results(folder / "out" / f"{video.stem}.jsonl"))
    for result, picture in zip(results, pictures, strict=True):
        yield result, moving_masks(picture, empty)


def moving_masks(picture: NDArray[np.uint8], empty: NDArray[np.float32]) -> list[Mask]:
    difference = picture - empty
    difference -= np.median(difference[::4, ::4], axis=(0, 1))
    changed = cv2.GaussianBlur(np.abs(difference).max(axis=2), (0, 0), 1.5) > DIFFERENCE
    shaded = cv2.blur((changed & is_shaded(picture, empty)).astype(np.float32), (9, 9))
    changed &= shaded <= 0.5 * cv2.blur(changed.astype(np.float32), (9, 9))
    cleaned = cv2.morphologyEx(changed.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    joined = cv2.morphologyEx(cleaned, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (21, 21)))
    outlines, _ = cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    masks = []
    for outline in outlines:
        mask = np.zeros(joined.shape, np.uint8)
        cv2.drawContours(mask, [outline], -1, 1, -1)
        if mask.sum() >= SMALLEST_PX:
            masks.append(mask > 0)
    return masks


def is_shaded(picture: NDArray[np.uint8], empty: NDArray[np.float32]) -> Mask:
    """Return the mask (H, W) of shadow pixels, by the method of Jacques et al., SIBGRAPI 2005.

    A shadow pixel is darker than in the empty picture. On a textured background, its neighbourhood correlates with that
    of the empty picture. On a background without texture, all channels are darker by the same factor.
    """
    ratio = (cv2.GaussianBlur(picture, (0, 0), 2).astype(np.float32) + 2) / (cv2.GaussianBlur(empty, (0, 0), 2) + 2)
    tint = np.ptp(ratio, axis=2) / ratio.max(axis=2)
    seen, ground = (
        cv2.cvtColor(rgb.astype(np.uint8), cv2.COLOR_RGB2GRAY).astype(np.float32) for rgb in (picture, empty)
    )
    spread_seen, spread_ground = covariance(seen, seen), covariance(ground, ground)
    correlation = covariance(seen, ground) / np.sqrt(np.maximum(spread_seen, 1) * np.maximum(spread_ground, 1))
    plain = (spread_seen < 16) & (spread_ground < 16)
    darker = (ratio.mean(axis=2) < 1) & (ratio.min(axis=2) > 0.35)
    return np.asarray(darker & np.where(plain, tint < 0.08, (tint < 0.4) & (correlation > 0.5)))


def covariance(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the covariance in the 11 x 11 neighbourhood of each pixel."""
    means = cv2.blur(first * second, (11, 11)) - cv2.blur(first, (11, 11)) * cv2.blur(second, (11, 11))
    return np.asarray(means, np.float32)


def leaves_picture(mask: Mask) -> bool:
    """Return whether the mask touches the left, right or lower edge. Heads of standing people touch the upper edge."""
    return bool(mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def iou(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())
