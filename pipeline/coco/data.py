"""Data sets in COCO's format: reading and checking the JSON file."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.coco.annotations import Annotation, NoAreaError, coco_masks, parse_annotation
from pipeline.errors import UsageError

_MAX_LISTED_IDS = 3


@dataclass(frozen=True, slots=True)
class PictureRecord:
    """One entry of `images` with its annotations.

    labelled   ids of the categories that the annotators looked for on this picture; objects of other categories may
               be on it without an annotation
    """

    image_id: int
    path: Path
    width: int
    height: int
    labelled: frozenset[int]
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True, slots=True)
class CocoData:
    """A data set.

    categories   (id, name) in ascending order of the ids
    sha256       of the JSON file
    warnings     one line each about annotations that were skipped or clipped
    """

    path: Path
    categories: tuple[tuple[int, str], ...]
    pictures: tuple[PictureRecord, ...]
    sha256: str
    warnings: tuple[str, ...] = ()


def read_coco(data: str | Path, *, need_masks: bool, folder: Path | None = None) -> CocoData:
    """Reads a COCO JSON file, or the only JSON file of a folder.

    folder       where the pictures are; by default the folder of the JSON file, its subfolder `images` or its
                 subfolder of the same name
    need_masks   whether an annotation without a segmentation is an error

    An image may have the entry `labelled_category_ids`; without it, all categories are labelled on the image.
    Annotations that cover no pixel are skipped and counted in `warnings`: a box without width or height, a box outside
    the picture, an empty mask, a polygon of fewer than 3 points, NaN or infinite coordinates.
    Raises UsageError for anything that is missing, malformed or contradictory, and names the file and the entry.
    """
    path = _json_file(Path(os.path.expanduser(data)))
    content, digest = _content(path)
    return _Reader(path, content, need_masks=need_masks).data(folder, digest)


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


def _content(path: Path) -> tuple[dict[str, Any], str]:
    """The parsed file and its SHA-256."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise UsageError(f"data {path}: cannot be read: {str(error.strerror).lower()}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"data {path}: not COCO JSON ({error}); expected images, annotations and categories") from None
    return content, hashlib.sha256(raw).hexdigest()


class _Reader:
    """Checks the entries of one file and collects the annotations of each picture."""

    def __init__(self, path: Path, content: dict[str, Any], *, need_masks: bool) -> None:
        self._path, self._need_masks = path, need_masks
        try:
            categories = sorted((int(entry["id"]), str(entry["name"])) for entry in content["categories"])
            self._images, self._annotations = list(content["images"]), list(content["annotations"])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"data {path}: not COCO JSON ({error!r}); expected images, annotations and categories"
            ) from None
        if not self._images or not categories:
            raise UsageError(f"data {path}: expected at least one image and one category")
        self._categories = tuple(categories)
        self._category_ids = frozenset(category_id for category_id, _ in categories)
        if len(self._category_ids) != len(categories):
            raise UsageError(f"data {path}: two categories have the same id")
        coco_masks()
        self._sizes: dict[int, tuple[int, int]] = {}
        self._of_image: dict[int, list[tuple[Any, Annotation]]] = {}
        self._skipped: defaultdict[str, list[Any]] = defaultdict(list)
        """reason -> ids of the skipped annotations"""

    def data(self, folder: Path | None, digest: str) -> CocoData:
        for image in self._images:
            self._take_image(image)
        for entry in self._annotations:
            self._take_annotation(entry)
        self._drop_empty_segmentations()
        folder = folder or self._picture_folder()
        pictures = tuple(self._record(folder, image) for image in self._images)
        return CocoData(self._path, self._categories, pictures, digest, self._warnings(pictures))

    def _take_image(self, image: Any) -> None:
        try:
            image_id, hw = image["id"], (int(image["height"]), int(image["width"]))
            if min(hw) <= 0:
                raise ValueError(f"expected height and width above 0, got {hw[0]} and {hw[1]}")
            known = image_id in self._sizes
        except Exception as error:
            raise self._malformed("image", image, error) from None
        if known:
            raise UsageError(f"data {self._path}: two images have the id {image_id}")
        self._sizes[image_id], self._of_image[image_id] = hw, []

    def _take_annotation(self, entry: Any) -> None:
        where = f"data {self._path}: annotation {_id_of(entry)}"
        try:
            hw, known = self._sizes.get(entry["image_id"]), entry["category_id"] in self._category_ids
            if hw is None:
                raise UsageError(f"{where}: there is no image {entry['image_id']}")
            if not known:
                ids = sorted(self._category_ids)
                raise UsageError(f"{where}: unknown category {entry['category_id']}, expected one of {ids}")
            annotation = parse_annotation(entry, hw)
            if annotation.rle is None and self._need_masks and not _has_empty_segmentation(entry):
                raise UsageError(f"{where}: has no segmentation; this model learns masks, which polygons or RLE give")
        except UsageError:
            raise
        except NoAreaError as error:
            self._skipped[str(error)].append(_id_of(entry))
        except Exception as error:  # pycocotools raises the class Exception itself
            raise self._malformed("annotation", entry, error) from None
        else:
            self._of_image[entry["image_id"]].append((entry, annotation))

    def _drop_empty_segmentations(self) -> None:
        """Skips annotations with `"segmentation": []`, unless none of the others has a segmentation either.

        Data sets of boxes alone have this entry everywhere.
        """
        taken = [pair for pairs in self._of_image.values() for pair in pairs]
        if not any(annotation.rle is not None for _, annotation in taken):
            if taken and self._need_masks:
                raise UsageError(
                    f"data {self._path}: no annotation has a segmentation; this model learns masks, which polygons or "
                    "RLE give"
                )
            return
        for image_id, pairs in self._of_image.items():
            empty = [annotation.rle is None and _has_empty_segmentation(entry) for entry, annotation in pairs]
            self._skipped["with an empty mask"] += [_id_of(entry) for entry, _ in itertools.compress(pairs, empty)]
            self._of_image[image_id] = [pair for pair, drop in zip(pairs, empty, strict=True) if not drop]

    def _record(self, folder: Path, image: dict[str, Any]) -> PictureRecord:
        try:
            file = folder / image["file_name"]
            labelled = frozenset(image.get("labelled_category_ids", self._category_ids))
            unknown = sorted(labelled - self._category_ids)
        except Exception as error:
            raise self._malformed("image", image, error) from None
        if not file.is_file():
            raise UsageError(f"data {self._path}: picture {file} is missing")
        if unknown:
            raise UsageError(
                f"data {self._path}: image {image['id']}: unknown category {unknown[0]} in labelled_category_ids"
            )
        height, width = self._sizes[image["id"]]
        annotations = tuple(annotation for _, annotation in self._of_image[image["id"]])
        return PictureRecord(image["id"], file, width, height, labelled, annotations)

    def _picture_folder(self) -> Path:
        """The folder in which the first picture is found, else the folder of the JSON file."""
        first = str(self._images[0].get("file_name", ""))
        parent = self._path.parent
        candidates = [parent, parent / "images", parent / self._path.stem]
        return next((folder for folder in candidates if first and (folder / first).is_file()), parent)

    def _warnings(self, pictures: Sequence[PictureRecord]) -> tuple[str, ...]:
        lines = []
        num_skipped = sum(map(len, self._skipped.values()))
        if num_skipped:
            reasons = "; ".join(f"{len(ids)} {reason} ({_listed(ids)})" for reason, ids in self._skipped.items() if ids)
            lines.append(f"data {self._path}: {_counted(num_skipped, 'annotation')} without area skipped: {reasons}")
        num_clipped = sum(annotation.was_clipped for picture in pictures for annotation in picture.annotations)
        if num_clipped:
            boxes = "1 box that reaches" if num_clipped == 1 else f"{num_clipped} boxes that reach"
            lines.append(f"data {self._path}: {boxes} beyond the picture clipped to it")
        return tuple(lines)

    def _malformed(self, kind: str, entry: Any, error: Exception) -> UsageError:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__
        return UsageError(f"data {self._path}: {kind} {_id_of(entry)}: not in COCO's format ({reason})")


def _has_empty_segmentation(entry: dict[str, Any]) -> bool:
    return bool(entry.get("segmentation") == [])


def _id_of(entry: Any) -> Any:
    return entry.get("id", "without id") if isinstance(entry, dict) else entry


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(ids: Sequence[Any]) -> str:
    """`id 2` or `ids 2, 5, 9, …`."""
    shown = ", ".join(map(str, ids[:_MAX_LISTED_IDS])) + (", …" if len(ids) > _MAX_LISTED_IDS else "")
    return f"id {shown}" if len(ids) == 1 else f"ids {shown}"
