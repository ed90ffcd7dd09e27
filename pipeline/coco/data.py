"""Data in COCO's format, read and checked once: what is on each picture, as run lengths."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ops.masks import decode_rle
from pipeline.errors import UsageError

Rle = dict[str, Any]
"""pycocotools' compressed run lengths: {"size": [height, width], "counts": bytes}"""

# Boxes of published data sets end up to a pixel outside of the picture, from rounding.
_BORDER_PX = 1.0


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object, or a region of many.

    category_id   of the data's own table
    box_xyxy      pixels of the picture, edges continuous
    rle           its pixels; None where the data gives the box alone
    is_crowd      a region with objects that are not told apart: neither truth nor background
    """

    category_id: int
    box_xyxy: tuple[float, float, float, float]
    rle: Rle | None
    is_crowd: bool


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """One picture and what is on it. `labelled` are the category ids that were looked for on it."""

    image_id: int
    path: Path
    width: int
    height: int
    labelled: frozenset[int]
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, slots=True)
class CocoData:
    """A data set. `categories` (id, name) by rising id; `sha256` of the JSON file."""

    path: Path
    categories: tuple[tuple[int, str], ...]
    pictures: tuple[PictureRecord, ...]
    sha256: str


def read_coco(data: str | Path, *, need_masks: bool, folder: Path | None = None) -> CocoData:
    """The data of a COCO JSON file, or of the one JSON file in a folder.

    Pictures lie in `folder`; without it beside the file or in a folder beside it. An image may carry
    `labelled_category_ids`; without that entry all categories are labelled on it. need_masks: an annotation without a
    segmentation is an error.
    Raises UsageError for whatever is missing or contradicts itself, naming the file and the entry.
    """
    path = _json_file(Path(os.path.expanduser(data)))
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        categories = tuple(sorted((int(entry["id"]), str(entry["name"])) for entry in content["categories"]))
        images, annotations = list(content["images"]), list(content["annotations"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"data {path}: not COCO JSON ({error!r}); expected images, annotations and categories"
        ) from None
    if not images or not categories:
        raise UsageError(f"data {path}: expected at least one image and one category")
    folder = folder or _folder_of(path, images)
    pictures = _pictures(path, folder, images, annotations, categories, need_masks)
    return CocoData(path, categories, pictures, hashlib.sha256(raw).hexdigest())


def coco_masks() -> Any:
    """pycocotools.mask. Raises UsageError where the extra is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise UsageError("COCO data need pycocotools: pip install 'maskstream[train]'") from None
    return mask


def _json_file(path: Path) -> Path:
    if not path.is_dir():
        if not path.is_file():
            raise UsageError(f"data {path}: there is no such file or folder")
        return path
    found = sorted(path.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise UsageError(f"data {path}: expected one JSON file in this folder, found {names}; name the file")
    return found[0]


def _pictures(
    path: Path,
    folder: Path,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: tuple[tuple[int, str], ...],
    need_masks: bool,
) -> tuple[PictureRecord, ...]:
    ids = frozenset(category_id for category_id, _ in categories)
    if len(ids) != len(categories):
        raise UsageError(f"data {path}: a category id is given twice")
    encode = coco_masks()
    sizes: dict[int, tuple[int, int]] = {}
    found: dict[int, list[Annotation]] = {}
    for image in images:
        size = _checked(path, "image", image, lambda entry: (int(entry["height"]), int(entry["width"])))
        if image.get("id") in found:
            raise UsageError(f"data {path}: image id {image['id']} is given twice")
        sizes[image["id"]], found[image["id"]] = size, []
    for entry in annotations:
        where = f"data {path}: annotation {entry.get('id', '?')}"
        image_id, category_id = entry.get("image_id"), entry.get("category_id")
        if image_id not in found:
            raise UsageError(f"{where}: there is no image {image_id}")
        if category_id not in ids:
            raise UsageError(f"{where}: unknown category {category_id}, expected one of {sorted(ids)}")
        hw = sizes[image_id]
        annotation = _checked(path, "annotation", entry, partial(_annotation, hw=hw, encode=encode))
        _check_box(where, annotation.box_xyxy, hw)
        if annotation.rle is None and need_masks:
            raise UsageError(f"{where}: has no segmentation; this model learns masks, give polygons or run lengths")
        found[image_id].append(annotation)
    return tuple(
        _checked(path, "image", image, lambda image: _record(path, folder, image, sizes, found, ids))
        for image in images
    )


def _record(
    path: Path,
    folder: Path,
    image: dict[str, Any],
    sizes: dict[int, tuple[int, int]],
    found: dict[int, list[Annotation]],
    ids: frozenset[int],
) -> PictureRecord:
    file = folder / image["file_name"]
    if not file.is_file():
        raise UsageError(f"data {path}: picture {file} is missing")
    labelled = frozenset(image.get("labelled_category_ids", ids))
    if not labelled <= ids:
        raise UsageError(
            f"data {path}: image {image['id']}: unknown category {min(labelled - ids)} in labelled_category_ids"
        )
    height, width = sizes[image["id"]]
    return PictureRecord(image["id"], file, width, height, labelled, tuple(found[image["id"]]))


def _folder_of(path: Path, images: list[dict[str, Any]]) -> Path:
    """Where the first picture is found, else beside the file."""
    first = str(images[0].get("file_name", ""))
    candidates = [path.parent, path.parent / "images", path.parent / path.stem]
    return next((folder for folder in candidates if first and (folder / first).is_file()), path.parent)


def _checked(path: Path, kind: str, entry: dict[str, Any], read: Callable[[dict[str, Any]], Any]) -> Any:
    """read(entry), with one line for an entry that lacks something or has it in another form."""
    try:
        return read(entry)
    except UsageError:
        raise
    except Exception as error:  # pycocotools raises Exception itself for what it cannot read
        name = entry.get("id", "?") if isinstance(entry, dict) else entry
        raise UsageError(f"data {path}: {kind} {name}: not as COCO has it ({error!r})") from None


def _annotation(entry: dict[str, Any], hw: tuple[int, int], encode: Any) -> Annotation:
    x, y, width, height = (float(value) for value in entry["bbox"])
    segmentation = entry.get("segmentation")
    rle: Rle | None = None
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        if list(segmentation["size"]) != list(hw):
            raise ValueError(f"run lengths of {segmentation['size']} (height, width) on a picture of {list(hw)}")
        if isinstance(counts, list):
            rle = encode.frPyObjects(segmentation, *hw)
        else:
            rle = {"size": list(hw), "counts": counts.encode() if isinstance(counts, str) else counts}
        decode_rle(rle["counts"], hw)  # raises where they do not add up
    elif segmentation:
        rle = encode.merge(encode.frPyObjects(segmentation, *hw))
    return Annotation(int(entry["category_id"]), (x, y, x + width, y + height), rle, bool(entry.get("iscrowd", 0)))


def _check_box(where: str, box_xyxy: tuple[float, float, float, float], hw: tuple[int, int]) -> None:
    x1, y1, x2, y2 = box_xyxy
    height, width = hw
    inside = x1 >= -_BORDER_PX and y1 >= -_BORDER_PX and x2 <= width + _BORDER_PX and y2 <= height + _BORDER_PX
    if not (x2 > x1 and y2 > y1 and inside):
        raise UsageError(
            f"{where}: box {x1:g}, {y1:g}, {x2:g}, {y2:g} (x1, y1, x2, y2) is empty or out of the picture "
            f"of {width} x {height}"
        )
