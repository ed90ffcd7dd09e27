"""Loss of mask IoU by rounding boxes to whole cells: RoIAlign against RoIPool on objects of the synthetic street.

    python -m benchmarks.alignment [--num N] [--json]

The operation is measured on its own, without a network. The feature map of an object is its exact mask, averaged over
the cells of one pyramid level; the level is that of its box (FPN paper, equation 1). The true box is pooled at 14x14 or
28x28, pasted back into the frame with `ops.masks.paste_rle`, and compared with the exact mask. The losses by the
resolution of the map and by the pasting are the same for all operations.

ours      mean IoU with `ops.roi_align`, two samples per bin along each axis
rounded   the same operation on the box rounded to whole cells: the loss by the rounding alone
peer      torchvision's RoIPool, as in Fast R-CNN: the box and its bins are rounded, and each bin is the maximum of its
          cells. Part of its loss is that a maximum thickens the mask, for which a network could learn to compensate; it
          cannot learn how a box was rounded

Every operation reads a suitable map. With aligned=False, with which torchvision's models are trained, cell i averages
the pixels around i * stride; RoIPool, which includes the cells of both rounded corners, reads the same map. With
aligned=True, cell i averages the pixels from i * stride to (i + 1) * stride. 14x14 is interpolated bilinearly to 28x28.

Objects are small below 32 * 32 visible pixels and large from 96 * 96 pixels on, as in COCO. Objects with a side of less
than 8 pixels are left out, because they are slivers of occluded objects.

With trained networks, the Mask R-CNN paper (He et al. 2017, section 4.2 and table 2c) reports for RoIAlign about 3
points more mask AP than for RoIPool at stride 16, 5 points at an IoU of 0.75, and 1.5 points with a pyramid. Those are
AP of a network, not IoU of an operation, so the figures are not comparable.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch.nn import functional
from torchvision.ops import roi_pool

from benchmarks.report import Row, cpu_name
from ops.mask_format import MASK_SIDE
from ops.masks import encode_rle, paste_rle
from ops.reference import fpn_level
from ops.roi_align import roi_align
from pipeline.synthetic import Scene, SceneConfig, SceneFrame

STRIDES = (4, 8, 16, 32)
SIDES = (14, 28)
OPERATIONS = ("ours", "rounded", "peer")
SIZES = ("small", "medium", "large")


_SIZE_ENDS_PX2 = (32**2, 96**2)
_MIN_SIDE_PX = 8
_FRAMES_PER_PICTURE = 25
"""one second, so that the pictures differ"""


def pooled_probabilities(
    mask: NDArray[np.bool_], box_xyxy: NDArray[np.float32], side: int, *, aligned: bool
) -> dict[str, NDArray[np.float32]]:
    """The (28, 28) result of each operation that pools the box at (side, side) from the map of an (H, W) mask."""
    stride = STRIDES[fpn_level(box_xyxy.astype(np.float64), len(STRIDES), STRIDES[0])]
    about_corners = cell_means(mask, stride, stride // 2)
    cells = cell_means(mask, stride, 0) if aligned else about_corners
    rounded_xyxy = np.floor(box_xyxy / stride + np.float32(0.5)) * np.float32(stride)
    rois = torch.from_numpy(np.concatenate([[0], box_xyxy]).astype(np.float32))[None]

    def by_roi_align(box: NDArray[np.float32]) -> torch.Tensor:
        level, image_idx = cells[None, :, :, None], np.zeros(1, np.int64)
        found = roi_align([level], [1 / stride], box[None], image_idx, (side, side), aligned=aligned)
        return torch.from_numpy(found).permute(0, 3, 1, 2)

    pooled = {
        "ours": by_roi_align(box_xyxy),
        "rounded": by_roi_align(rounded_xyxy),
        "peer": roi_pool(torch.from_numpy(about_corners)[None, None], rois, side, 1 / stride),
    }
    return {
        name: functional.interpolate(cut, size=(MASK_SIDE, MASK_SIDE), mode="bilinear", align_corners=False)[0, 0]
        .clamp_(0, 1)
        .numpy()
        for name, cut in pooled.items()
    }


def cell_means(mask: NDArray[np.bool_], stride: int, shift_px: int) -> NDArray[np.float32]:
    """Mean of the mask over squares of stride x stride pixels; the first square begins at (-shift_px, -shift_px)."""
    pads = [(shift_px, -(length + shift_px) % stride) for length in mask.shape]
    padded = np.pad(mask, pads)
    height, width = padded.shape
    squares = padded.reshape(height // stride, stride, width // stride, stride)
    means: NDArray[np.float32] = squares.mean(axis=(1, 3), dtype=np.float32)
    return means


def size_of(area_px2: int) -> str:
    """COCO's name of the size of an object: small, medium or large."""
    return SIZES[int(np.searchsorted(_SIZE_ENDS_PX2, area_px2, side="right"))]


def frame_ious(frame: SceneFrame, side: int, *, aligned: bool) -> list[tuple[str, NDArray[np.float64]]]:
    """For each object: its size, and (3,) its IoU by each of OPERATIONS."""
    found = []
    for item in frame.objects:
        x1, y1, x2, y2 = item.box_xyxy
        if min(x2 - x1, y2 - y1) < _MIN_SIDE_PX:
            continue
        exact, box = frame.mask(item.object_id), np.array(item.box_xyxy, np.float32)
        cuts = pooled_probabilities(exact, box, side, aligned=aligned)
        masks = np.stack([cuts[name] for name in OPERATIONS])
        strings = paste_rle(masks, np.repeat(box[None], len(masks), axis=0), exact.shape)
        pasted = [{"size": list(exact.shape), "counts": counts} for counts in strings]
        truth = {"size": list(exact.shape), "counts": encode_rle(exact)}
        found.append((size_of(item.area_px), coco.iou(pasted, [truth], [0])[:, 0]))
    return found


def measure(frames: Iterable[SceneFrame]) -> list[Row]:
    """One row for each value of aligned, resolution and object size that occurs."""
    cases = [(aligned, side) for aligned in (False, True) for side in SIDES]
    ious: dict[tuple[bool, int, str], list[NDArray[np.float64]]] = {}
    for frame in frames:
        for aligned, side in cases:
            for size, of_object in frame_ious(frame, side, aligned=aligned):
                ious.setdefault((aligned, side, size), []).append(of_object)
    rows = []
    for aligned, side in cases:
        for size in SIZES:
            if (aligned, side, size) not in ious:
                continue
            of_objects = ious[aligned, side, size]
            means = dict(zip(OPERATIONS, np.mean(of_objects, axis=0).tolist(), strict=True))
            row: Row = {"case": f"{size}, {side}x{side}, aligned={aligned}", "ours": round(means["ours"], 4)}
            row |= {"peer": round(means["peer"], 4), "ratio": round(means["ours"] / means["peer"], 4)}
            rows.append(row | {"unit": "IoU", "rounded": round(means["rounded"], 4), "objects": len(of_objects)})
    return rows


def street(num_frames: int) -> Iterable[SceneFrame]:
    """720p pictures of a busy street."""
    config = SceneConfig(
        width=1280, height=720, num_frames=_FRAMES_PER_PICTURE * num_frames, num_people=16, num_cars=8, num_bicycles=3
    )
    scene = Scene(config)
    return (scene.render(_FRAMES_PER_PICTURE * index) for index in range(num_frames))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alignment", description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=40, help="pictures of the street (default 40)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = parser.parse_args()
    if arguments.num < 1:
        parser.error(f"--num must be at least 1, got {arguments.num}")
    packages = ("torch", "torchvision", "numba", "pycocotools")
    versions = {name: version(name) for name in packages} | {"python": platform.python_version()}
    rows = measure(street(arguments.num))
    if arguments.json:
        for row in rows:
            print(json.dumps(row | {"device": cpu_name(), "versions": versions}))
        return
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    print(f"{'mean IoU':>30} {'objects':>8} {'RoIAlign':>9} {'rounded':>17} {'RoIPool':>17} {'ratio':>7}")
    for row in rows:
        behind = [f"{row[name]:9.4f} {row[name] - row['ours']:+7.4f}" for name in ("rounded", "peer")]
        print(f"{row['case']:>30} {row['objects']:8} {row['ours']:9.4f} {' '.join(behind)} {row['ratio']:7.3f}")


if __name__ == "__main__":
    main()
