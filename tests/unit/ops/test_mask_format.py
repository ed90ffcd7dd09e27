"""COCO's compressed run-length encoding: both directions against pycocotools, malformed strings."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco
from support.paths import ROOT

from ops import reference
from ops.mask_format import decode_rle, rle_area, rle_num_pixels
from ops.masks import encode_rle


def test_run_length_encoding_by_hand() -> None:
    # column by column: 0 1 | 1 1 | 0 0, so the runs are one zero, three ones, two zeros
    mask = np.array([[0, 1, 0], [1, 1, 0]], np.bool_)
    assert encode_rle(mask) == b"132"
    np.testing.assert_array_equal(decode_rle(b"132", (2, 3)), mask)
    assert rle_area(b"132") == 3


@pytest.mark.parametrize("hw", [(1, 1), (1, 40), (40, 1), (7, 5), (300, 200)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_run_length_encoding_equals_pycocotools(hw: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(11).random(hw) < share
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert encode_rle(mask) == expected == reference.encode_rle(mask)
    np.testing.assert_array_equal(decode_rle(expected, hw), mask)
    assert (rle_area(expected), rle_num_pixels(expected)) == (mask.sum(), mask.size)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"13", "add up"),
        (b"1320", "add up"),
        (b"13 2", "character"),
        (b"13\xff", "character"),
        (b"13R", "inside a number"),
        (b"1" + b"P" * 20, "inside a number"),
        (b"1O2", "negative"),
        (b"", "add up"),
    ],
    ids=["short", "long", "blank", "high_bit", "cut", "endless", "negative", "empty"],
)
def test_malformed_rle_raises(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_rle(counts, (2, 3))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=24))
def test_any_bytes_decode_or_raise(counts: bytes) -> None:
    try:
        mask = decode_rle(counts, (4, 6))
    except ValueError:
        return
    assert mask.sum() == rle_area(counts)


def test_reading_and_drawing_results_does_not_import_numba() -> None:
    code = "import sys, pipeline.client, pipeline.exports.render, workers.sink; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
