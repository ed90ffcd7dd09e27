"""`street` on real videos of a camera that stands still: what moves is known from the empty first second alone.

The truth of a frame is what differs from the median of the first frames and is no shadow, joined and without holes.
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
"""grey levels, in any channel, after the change of the whole frame's brightness is taken away"""
SMALLEST_PX = 3000


@dataclass
class Count:
    """Objects asked for and found, their IoUs, and instances that lie on nothing that moves."""

    asked: int = 0
    ious: list[float] = field(default_factory=list)
    elsewhere: int = 0
    frames: int = 0

    @property
    def found(self) -> float:
        return len(self.ious) / self.asked

    def __str__(self) -> str:
        return (
            f"{len(self.ious)} of {self.asked} found ({self.found:.1%}), median IoU {np.median(self.ious):.3f}; "
            f"{self.elsewhere} instances elsewhere on {self.frames} frames"
        )


def test_people_one_by_one(shared_data: Path, tmp_path: Path) -> None:
    """Everybody who is wholly in the picture is found with a good mask in 98 % of the frames."""
    video = shared_data / "videos" / "intel_one-by-one-person-detection.mp4"
    count = Count()
    for result, moving in results_and_truth(video, tmp_path):
        wanted = [mask for mask in moving if mask.sum() > 20_000 and not leaves_picture(mask)]
        add(count, result, wanted, moving, "person", least_iou=0.7)
    print(f"people: {count}")
    assert count.asked > 700
    assert count.found >= 0.98, str(count)
    assert count.elsewhere <= 0.05 * count.frames, str(count)


def test_cars_from_above(shared_data: Path, tmp_path: Path) -> None:
    """Every car of which a quarter or more is in the picture is found as a car in 75 % of the frames."""
    video = shared_data / "videos" / "intel_car-detection.mp4"
    count = Count()
    for result, moving in results_and_truth(video, tmp_path):
        wanted = [mask for mask in moving if mask.sum() > 10_000]
        add(count, result, wanted, moving, "car", least_iou=0.5)
    print(f"cars: {count}")
    assert count.asked > 150
    assert count.found >= 0.75, str(count)
    assert count.elsewhere <= 0.05 * count.frames, str(count)


def add(
    count: Count, result: FrameResult, wanted: list[Mask], moving: list[Mask], label: str, *, least_iou: float
) -> None:
    count.frames += 1
    count.asked += len(wanted)
    found = [(item.label, item.mask.to_array()) for item in result.instances if item.mask is not None]
    free = [mask for name, mask in found if name == label]
    for truth in wanted:
        best = max(range(len(free)), key=lambda index: iou(free[index], truth), default=None)
        if best is not None and iou(free[best], truth) >= least_iou:
            count.ious.append(iou(free.pop(best), truth))
    anything = np.logical_or.reduce(moving) if moving else None
    for _, mask in found:
        count.elsewhere += anything is None or bool((mask & anything).sum() < 0.5 * mask.sum())


def results_and_truth(video: Path, folder: Path) -> Iterator[tuple[FrameResult, list[Mask]]]:
    """The command line on the video, default options: each result with the masks (H, W) of what moves."""
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
    """Pixels that are darker than in the empty picture and still show what is behind (Jacques et al., SIBGRAPI 2005).

    Where that has a texture, it correlates with the one of the empty picture; where it has none, there is none in the
    shadow either and all colours are darker by one factor.
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
    """Over the 11 x 11 pixels around each."""
    means = cv2.blur(first * second, (11, 11)) - cv2.blur(first, (11, 11)) * cv2.blur(second, (11, 11))
    return np.asarray(means, np.float32)


def leaves_picture(mask: Mask) -> bool:
    """At a side or below; heads of people who stand just reach the upper border."""
    return bool(mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def iou(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())
