"""Encoding of 28x28 mask logits as COCO RLE strings of the frame, beside torchvision's pasting and pycocotools.

    python -m benchmarks.masks [--runs N] [--threads N] [--case TEXT] [--json]

Both sides get the logits (N, 1, 28, 28) of the instance's class and boxes in frame pixels, and return one RLE string
per instance. Ours: sigmoid, then `ops.masks.paste_rle`. The peer: sigmoid, torchvision's `paste_masks_in_image` at the
size of the frame, `> 0.5`, and pycocotools' `encode` of each mask, in Fortran order. If its bitmaps would take many
gigabytes, it pastes the instances in parts, which does not slow it down.

A mask is a blob with an irregular outline near an ellipse and an edge two to three cells wide, as trained networks
give. Boxes have log-uniform sides from 16 to 600 pixels and may be cut by the frame.

Before a figure is printed, all strings are compared: there must be no difference.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks import report
from ops.masks import paste_rle

_MAX_PASTED_PX = 1 << 28
"""pixels of the bitmaps that the peer pastes at a time: 100 instances at 1080p, 32 at 4K"""


class Case(NamedTuple):
    num_instances: int
    frame_hw: tuple[int, int]


CASES = {
    "15 instances, 720p": Case(15, (720, 1280)),
    "100 instances, 1080p": Case(100, (1080, 1920)),
    "300 instances, 4K": Case(300, (2160, 3840)),
}


def blobs(num: int) -> torch.Tensor:
    """(N, 1, 28, 28) float32 logits."""
    random = np.random.default_rng(0)
    rows, columns = (np.indices((28, 28)) + 0.5) / 14 - 1
    angle, radius = np.arctan2(rows, columns), np.hypot(rows, columns)
    waves = np.arange(1, 6)
    heights = random.normal(0, 0.12, (num, 5)) / waves**0.5
    phases = random.uniform(0, 2 * np.pi, (num, 5))
    turned = waves * angle[..., None] + phases[:, None, None]
    outline = 0.85 + (heights[:, None, None] * np.cos(turned)).sum(axis=-1)
    logits = 16 * (outline - radius) + random.normal(0, 0.3, (num, 28, 28))
    return torch.from_numpy(logits.astype(np.float32))[:, None]


def boxes(num: int, frame_hw: tuple[int, int]) -> NDArray[np.float32]:
    """(N, 4) boxes that overlap the frame."""
    random = np.random.default_rng(1)
    height, width = frame_hw
    half = np.exp(random.uniform(np.log(16), np.log(600), (num, 2))) / 2
    centre = random.uniform(0, [width, height], (num, 2))
    inside: NDArray[np.float64] = np.clip(np.hstack([centre - half, centre + half]), 0, [width, height] * 2)
    return inside.astype(np.float32)


def ours(logits: torch.Tensor, boxes_xyxy: torch.Tensor, frame_hw: tuple[int, int]) -> list[bytes]:
    return paste_rle(torch.sigmoid(logits[:, 0]).numpy(), boxes_xyxy.numpy(), frame_hw)


def torchvisions(logits: torch.Tensor, boxes_xyxy: torch.Tensor, frame_hw: tuple[int, int]) -> list[bytes]:
    masks = torch.sigmoid(logits)
    part = max(_MAX_PASTED_PX // (frame_hw[0] * frame_hw[1]), 1)
    strings: list[bytes] = []
    for begin in range(0, len(masks), part):
        pasted = paste_masks_in_image(masks[begin : begin + part], boxes_xyxy[begin : begin + part], frame_hw)
        strings += encoded(pasted)
    return strings


def encoded(pasted: torch.Tensor) -> list[bytes]:
    """pycocotools' RLE strings of (N, 1, H, W) pasted probabilities."""
    bitmaps = (pasted[:, 0] > 0.5).numpy().view(np.uint8)
    return [coco.encode(np.asfortranarray(bitmap))["counts"] for bitmap in bitmaps]


def fault(found: list[bytes], expected: list[bytes], frame_hw: tuple[int, int]) -> str | None:
    """What differs, or None."""
    differing_px, strings = 0, 0
    for mine, wanted in zip(found, expected, strict=True):
        one, other = (coco.decode({"size": list(frame_hw), "counts": counts}) for counts in (mine, wanted))
        differing_px += int((one != other).sum())
        strings += mine != wanted
    return f"{differing_px} pixels and {strings} strings differ" if differing_px or strings else None


@torch.inference_mode()
def main() -> None:
    parser = report.arguments("benchmarks.masks", __doc__, num_runs=7)
    report.add_threads(parser)
    arguments = parser.parse_args()
    device = report.use_threads(arguments.threads)
    packages = ("torch", "torchvision", "pycocotools", "numba")
    table = report.Report(device, packages, "torchvision", as_json=arguments.json)
    for name in report.selected(list(CASES), arguments.case):
        num, frame_hw = CASES[name]
        inputs = blobs(num), torch.from_numpy(boxes(num, frame_hw)), frame_hw
        report.gate(name, fault(ours(*inputs), torchvisions(*inputs), frame_hw))
        calls = [partial(ours, *inputs), partial(torchvisions, *inputs)]
        table.add(name, *report.take_turns(calls, arguments.runs))


if __name__ == "__main__":
    main()
