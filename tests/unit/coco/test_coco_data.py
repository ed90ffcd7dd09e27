"""Reading COCO data: accepted input, skipped annotations, and an error message of one line for invalid data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ops.mask_format import decode_rle
from pipeline.coco.data import read_coco
from pipeline.errors import UsageError
from pipeline.synthetic.coco_data import write_coco_data

Content = dict[str, Any]


def content() -> Content:
    """Return a data set of one picture of 40 x 30: a car as a polygon, a person and a crowd as RLE."""
    person = np.zeros((30, 40), np.uint8)
    person[5:20, 3:8] = 1
    rle = coco_mask.encode(np.asfortranarray(person))
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [10, 10, 20, 10],
                "segmentation": [[10, 10, 30, 10, 30, 20, 10, 20]],
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 1,
                "bbox": [3, 5, 5, 15],
                "iscrowd": 0,
                "segmentation": {"size": [30, 40], "counts": rle["counts"].decode()},
            },
            {
                "id": 3,
                "image_id": 7,
                "category_id": 1,
                "bbox": [0, 0, 4, 2],
                "iscrowd": 1,
                "segmentation": {"size": [30, 40], "counts": [0, 2, 28, 2, 1168]},
            },
        ],
    }


def write(folder: Path, data: Content) -> Path:
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    path = folder / "data.json"
    path.write_text(json.dumps(data))
    return path


def test_polygons_rle_and_crowds_are_read(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path, content()), need_masks=True)
    assert data.categories == ((1, "person"), (3, "car"))
    (picture,) = data.pictures
    assert (picture.image_id, picture.path, picture.width, picture.height) == (7, tmp_path / "a.png", 40, 30)
    assert picture.labelled == {1, 3}
    car, person, crowd = picture.annotations
    assert (car.category_id, car.box_xyxy, car.is_crowd) == (3, (10, 10, 30, 20), False)
    expected = np.zeros((30, 40), np.uint8)
    expected[10:20, 10:30] = 1
    assert car.rle is not None
    np.testing.assert_array_equal(decode_rle(car.rle["counts"], (30, 40)), expected)
    assert int(coco_mask.area(person.rle)) == 75
    assert crowd.is_crowd
    assert int(coco_mask.area(crowd.rle)) == 4


def test_labelled_categories_of_a_picture_are_read(tmp_path: Path) -> None:
    data = content()
    data["images"][0]["labelled_category_ids"] = [1]
    assert read_coco(write(tmp_path, data), need_masks=True).pictures[0].labelled == {1}


def test_a_model_of_boxes_needs_no_segmentation(tmp_path: Path) -> None:
    data = content()
    del data["annotations"][0]["segmentation"]
    assert read_coco(write(tmp_path, data), need_masks=False).pictures[0].annotations[0].rle is None
    with pytest.raises(UsageError, match="annotation 1: has no segmentation; this model learns masks"):
        read_coco(tmp_path / "data.json", need_masks=True)


def test_a_folder_must_hold_one_json_file(tmp_path: Path) -> None:
    path = write(tmp_path, content())
    assert read_coco(tmp_path, need_masks=True) == read_coco(path, need_masks=True)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UsageError, match=r"expected one JSON file in this folder, found data\.json, other\.json"):
        read_coco(tmp_path, need_masks=True)


def test_the_checksum_changes_with_the_file(tmp_path: Path) -> None:
    before = read_coco(write(tmp_path, content()), need_masks=True).sha256
    data = content()
    data["annotations"].pop()
    assert read_coco(write(tmp_path, data), need_masks=True).sha256 != before


def changed(part: str, index: int, **values: Any) -> Callable[[Content], None]:
    return lambda data: data[part][index].update(values)


def without(part: str, name: str) -> Callable[[Content], None]:
    return lambda data: data[part][0].pop(name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.pop("annotations"), "not COCO JSON"),
        (lambda data: data.update(images=[]), "at least one image"),
        (lambda data: data.update(categories=5), "not COCO JSON"),
        (changed("images", 0, file_name="b.png"), r"picture .*b\.png is missing"),
        (changed("images", 0, labelled_category_ids=[1, 9]), "image 7: unknown category 9"),
        (without("images", "width"), r"image 7: not in COCO's format \('width' is missing\)"),
        (lambda data: data["images"].append(data["images"][0]), "two images have the id 7"),
        (lambda data: data["categories"].append({"id": 1, "name": "man"}), "two categories have the same id"),
        (changed("annotations", 0, image_id=8), "annotation 1: there is no image 8"),
        (changed("annotations", 0, category_id=2), r"annotation 1: unknown category 2, expected one of \[1, 3\]"),
        (changed("annotations", 0, bbox=[1, 2, 3]), "annotation 1: not in COCO's format"),
        (changed("annotations", 0, bbox=[1, 2, 3, "wide"]), "annotation 1: not in COCO's format"),
        (changed("annotations", 0, bbox=[1, 2, 3, None]), "annotation 1: not in COCO's format"),
        (changed("annotations", 0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "annotation 1: .* x and y of each point"),
        (changed("annotations", 0, segmentation=5), "annotation 1: not in COCO's format"),
        (changed("annotations", 0, image_id=[7]), "annotation 1: not in COCO's format"),
        (lambda data: data["annotations"].append("car"), "annotation car: not in COCO's format"),
        (lambda data: data["images"].append(5), "image 5: not in COCO's format"),
        (without("images", "id"), r"image without id: not in COCO's format \('id' is missing\)"),
        (changed("images", 0, height=0), "image 7: .* height and width above 0, got 0 and 40"),
        (
            changed("annotations", 1, segmentation={"size": [40, 30], "counts": "0"}),
            r"annotation 2: .* of \[40, 30\] .* \[30, 40\]",
        ),
        (changed("annotations", 1, segmentation={"size": [30, 40], "counts": "5"}), "annotation 2: .* must add up"),
        (without("annotations", "bbox"), r"annotation 1: not in COCO's format \('bbox' is missing\)"),
        (without("annotations", "category_id"), "annotation 1: not in COCO's format"),
    ],
)
def test_invalid_data_give_one_error_line(tmp_path: Path, damage: Callable[[Content], object], message: str) -> None:
    data = content()
    damage(data)
    with pytest.raises(UsageError, match=message) as raised:
        read_coco(write(tmp_path, data), need_masks=True)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"bbox": [10, 10, 0, 10]}, "with an empty box"),
        ({"bbox": [10, 10, 10, 0.0]}, "with an empty box"),
        ({"bbox": [10, 10, -5, 10]}, "with an empty box"),
        ({"bbox": [40, 10, 5, 10]}, "outside its picture"),
        ({"bbox": [-20, 10, 20, 10]}, "outside its picture"),
        ({"bbox": [10, 300, 20, 10]}, "outside its picture"),
        ({"bbox": [NAN] * 4}, "with NaN or infinity in its box"),
        ({"bbox": [0, 0, INF, 5]}, "with NaN or infinity in its box"),
        ({"segmentation": []}, "with an empty mask"),
        ({"segmentation": [[]]}, "with fewer than 3 points in its polygon"),
        ({"segmentation": [[1, 2]]}, "with fewer than 3 points in its polygon"),
        ({"segmentation": [[1, 2, 3, 4], [5, 6]]}, "with fewer than 3 points in its polygon"),
        ({"segmentation": [[1, 2, NAN, 4, 5, 6]]}, "with NaN or infinity in its polygon"),
        ({"segmentation": [[50, 50, 60, 50, 60, 60]]}, "with an empty mask"),
        ({"segmentation": {"size": [30, 40], "counts": [1200]}}, "with an empty mask"),
    ],
    ids=str,
)
@pytest.mark.parametrize("need_masks", [True, False])
def test_an_annotation_without_area_is_skipped_and_counted(
    tmp_path: Path, damage: Content, reason: str, need_masks: bool
) -> None:
    data = content()
    data["annotations"].append({**data["annotations"][0], "id": 8, **damage})
    path = write(tmp_path, data)
    read = read_coco(path, need_masks=need_masks)
    assert read.pictures == read_coco(write(tmp_path, content()), need_masks=need_masks).pictures
    assert read.warnings == (f"data {path}: 1 annotation without area skipped: 1 {reason} (id 8)",)


def test_the_warning_for_skipped_annotations_names_the_first_ids(tmp_path: Path) -> None:
    data = content()
    empty = {**data["annotations"][0], "bbox": [1, 1, 0, 4]}
    data["annotations"] += [{**empty, "id": number} for number in range(10, 14)]
    data["annotations"].append({**empty, "id": 20, "bbox": [99, 1, 5, 5]})
    path = write(tmp_path, data)
    assert read_coco(path, need_masks=True).warnings == (
        f"data {path}: 5 annotations without area skipped: 4 with an empty box (ids 10, 11, 12, …); "
        "1 outside its picture (id 20)",
    )
    assert read_coco(write(tmp_path, content()), need_masks=True).warnings == ()


def test_an_invalid_polygon_beside_a_valid_one_is_ignored(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0]["segmentation"].append([1, 2, 3, 4])
    read = read_coco(write(tmp_path, data), need_masks=True)
    assert read.warnings == ()
    assert int(coco_mask.area(read.pictures[0].annotations[0].rle)) == 200


def test_a_box_that_reaches_beyond_the_picture_is_clipped(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [-3, 10, 20, 25]
    path = write(tmp_path, data)
    read = read_coco(path, need_masks=True)
    assert read.pictures[0].annotations[0].box_xyxy == (0, 10, 17, 30)
    assert read.warnings == (f"data {path}: 1 box that reaches beyond the picture clipped to it",)


def test_a_box_up_to_a_pixel_beyond_the_picture_is_not_clipped(tmp_path: Path) -> None:
    data = content()
    data["annotations"][0]["bbox"] = [-0.5, 10, 41, 10]
    read = read_coco(write(tmp_path, data), need_masks=True)
    assert (read.pictures[0].annotations[0].box_xyxy, read.warnings) == ((-0.5, 10, 40.5, 20), ())


def test_data_whose_segmentations_are_all_empty_are_data_of_boxes(tmp_path: Path) -> None:
    data = content()
    for entry in data["annotations"]:
        entry["segmentation"] = []
    path = write(tmp_path, data)
    read = read_coco(path, need_masks=False)
    assert [annotation.rle for annotation in read.pictures[0].annotations] == [None] * 3
    assert read.warnings == ()
    with pytest.raises(UsageError, match="no annotation has a segmentation; this model learns masks"):
        read_coco(path, need_masks=True)


def test_invalid_json_and_missing_files_raise(tmp_path: Path) -> None:
    path, empty = tmp_path / "data.json", tmp_path / "empty"
    path.write_text("{")
    empty.mkdir()
    with pytest.raises(UsageError, match="not COCO JSON"):
        read_coco(path, need_masks=True)
    with pytest.raises(UsageError, match="no such file or folder"):
        read_coco(tmp_path / "nothing.json", need_masks=True)
    with pytest.raises(UsageError, match="found none"):
        read_coco(empty, need_masks=True)


def test_synthetic_data_are_valid(tmp_path: Path) -> None:
    write_coco_data(tmp_path / "scene", (3, 2), (320, 192), seed=1)
    for name, num in (("train", 3), ("val", 2)):
        data = read_coco(tmp_path / "scene" / f"{name}.json", need_masks=True)
        assert data.categories == ((1, "person"), (2, "bicycle"), (3, "car"))
        assert len(data.pictures) == num
        for entry in (entry for picture in data.pictures for entry in picture.annotations):
            x1, y1, x2, y2 = entry.box_xyxy
            assert tuple(coco_mask.toBbox(entry.rle)) == (x1, y1, x2 - x1, y2 - y1)
    with pytest.raises(UsageError, match="is not empty"):
        write_coco_data(tmp_path / "scene", (1, 1), (320, 192), seed=1)
    with pytest.raises(UsageError, match="--size: width must be even"):
        write_coco_data(tmp_path / "odd", (1, 1), (321, 192), seed=1)
