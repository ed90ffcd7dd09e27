"""The drawn street as data in COCO's format: for a first training without data of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2

from ops.masks import encode_rle
from pipeline.errors import OutputError, UsageError
from pipeline.synthetic import LABELS, Scene, SceneConfig
from pipeline.synthetic.scene import SceneFrame

_PICTURES_PER_STREET = 20
_FRAMES_BETWEEN = 12
_JPEG_QUALITY = 92


def write_coco_data(folder: Path, num_pictures: tuple[int, int], size_wh: tuple[int, int], seed: int) -> None:
    """Writes images/, train.json and val.json, with so many pictures each; the two show other streets.

    Raises UsageError for a folder that holds something or a size that cannot be drawn, OutputError where it cannot
    be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty: give a folder that is not there yet")
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        streets = 0
        for name, number in zip(("train", "val"), num_pictures, strict=True):
            streets = _write_part(folder, name, number, size_wh, (seed, streets))
    except ValueError as error:
        raise UsageError(f"--size: {error}") from None
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {str(error.strerror).lower()}") from None


def _write_part(folder: Path, name: str, num: int, size_wh: tuple[int, int], seed: tuple[int, int]) -> int:
    """seed is that of the run and the first street; returns the street after the last."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    base, street = seed
    while len(images) < num:
        count = min(_PICTURES_PER_STREET, num - len(images))
        config = SceneConfig(
            width=size_wh[0],
            height=size_wh[1],
            num_frames=count * _FRAMES_BETWEEN,
            num_people=4 + street % 5,
            num_cars=2 + street % 3,
            num_bicycles=1 + street % 2,
            seed=1000 * base + street,
        )
        scene = Scene(config)
        for index in range(count):
            frame = scene.render(index * _FRAMES_BETWEEN)
            image_id = len(images) + 1
            file_name = f"images/{name}_{image_id:05}.jpg"
            encoded = cv2.imencode(".jpg", frame.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
            (folder / file_name).write_bytes(encoded.tobytes())
            images.append({"id": image_id, "file_name": file_name, "width": config.width, "height": config.height})
            annotations += _annotations(frame, image_id, len(annotations))
        street += 1
    categories = [{"id": class_id, "name": label} for class_id, label in LABELS.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return street


def _annotations(frame: SceneFrame, image_id: int, num_before: int) -> list[dict[str, Any]]:
    height, width = frame.instance_map.shape
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": item.class_id,
            "iscrowd": 0,
            "area": item.area_px,
            "bbox": _xywh(item.box_xyxy),
            "segmentation": {"size": [height, width], "counts": encode_rle(frame.mask(item.object_id)).decode()},
        }
        for number, item in enumerate(frame.objects, num_before + 1)
    ]


def _xywh(box_xyxy: tuple[float, float, float, float]) -> list[float]:
    x1, y1, x2, y2 = box_xyxy
    return [x1, y1, x2 - x1, y2 - y1]
