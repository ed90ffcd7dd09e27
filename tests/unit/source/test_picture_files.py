"""`read_rgb`: EXIF orientation, and whether annotations refer to the upright or to the stored picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import SourceError
from pipeline.source.picture_files import EXIF_ORIENTATION_TAG, read_rgb

HEIGHT, WIDTH = 32, 48
TO_STORED = {
    1: None,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""EXIF orientation -> the transformation from the upright picture to the stored picture"""


def upright_rgb() -> NDArray[np.uint8]:
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rgb[:8, :12] = 255
    return rgb


def store(path: Path, orientation: int) -> NDArray[np.uint8]:
    """Write the picture with an EXIF orientation, and return the stored pixels."""
    turn = TO_STORED[orientation]
    picture = Image.fromarray(upright_rgb())
    stored = picture if turn is None else picture.transpose(turn)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION_TAG] = orientation
    stored.save(path, exif=exif.tobytes())
    return np.asarray(stored)


@pytest.mark.parametrize("orientation", TO_STORED)
@pytest.mark.parametrize("annotated_hw", [None, (HEIGHT, WIDTH)], ids=["no size", "upright size"])
def test_a_picture_is_read_upright(tmp_path: Path, orientation: int, annotated_hw: tuple[int, int] | None) -> None:
    store(tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png", annotated_hw), upright_rgb())


@pytest.mark.parametrize("orientation", [6, 8])
def test_a_picture_whose_annotations_have_the_stored_size_is_read_as_stored(tmp_path: Path, orientation: int) -> None:
    stored = store(tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png", (WIDTH, HEIGHT)), stored)


def test_a_square_picture_is_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION_TAG] = 6
    Image.fromarray(upright_rgb()[:, :HEIGHT]).transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "a.png", exif=exif.tobytes()
    )
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png", (HEIGHT, HEIGHT)), upright_rgb()[:, :HEIGHT])


def test_a_size_that_differs_from_the_annotations_raises(tmp_path: Path) -> None:
    store(tmp_path / "a.png", 6)
    with pytest.raises(SourceError, match=r"a\.png: is 48 x 32 pixels, its annotations say 50 x 32"):
        read_rgb(tmp_path / "a.png", (32, 50))


def test_an_unreadable_file_raises(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(SourceError, match=r"a\.png: cannot be read: not in a known picture format"):
        read_rgb(tmp_path / "a.png")
    with pytest.raises(SourceError, match=r"b\.png: cannot be read: .*No such file"):
        read_rgb(tmp_path / "b.png")
