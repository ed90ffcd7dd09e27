"""Sheets that compare ground truth (left) with detections (right), one picture per row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ops.mask_format import decode_rle
from pipeline.coco.annotations import Annotation
from pipeline.contract.arrays import Detections
from pipeline.evaluation.matching import Matching
from pipeline.exports.files import write_atomically

Rgb = tuple[int, int, int]

TILE_WH = (640, 480)
"""largest size of each of the two pictures of a row, in pixels"""
CAPTION_PX = 24
HEADING_PX = 48
GAP_PX = 4
MIN_LABEL_HEIGHT_PX = 14
"""objects that are lower than this on the sheet get no label"""
LABEL_PX = 11
MASK_OPACITY = 0.45

_BACKGROUND: Rgb = (24, 26, 30)
_TEXT: Rgb = (235, 235, 235)
_LEGEND_TEXT: Rgb = (165, 168, 175)
_WRONG: Rgb = (255, 45, 45)
_IGNORED: Rgb = (150, 150, 150)
_MATCH_COLOURS: tuple[Rgb, ...] = (
    (64, 156, 255),
    (70, 220, 120),
    (255, 205, 50),
    (190, 110, 255),
    (40, 215, 225),
    (255, 150, 215),
    (165, 225, 40),
    (120, 130, 255),
)
_LEGEND = (
    (_MATCH_COLOURS[0], "same colour left and right: a match"),
    (_WRONG, "left: missed; right: false positive"),
    (_IGNORED, "ignored"),
)


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One picture of a sheet.

    rgb        (H, W, 3) uint8
    matching   of `annotations` with `found`
    labels     name of each category
    caption    text above the picture
    """

    rgb: NDArray[np.uint8]
    annotations: Sequence[Annotation]
    found: Detections
    matching: Matching
    labels: dict[int, str]
    caption: str


@dataclass(frozen=True, slots=True)
class _Shape:
    """An object to draw, in pixels of the picture. mask (H, W) bool; None to draw the box."""

    mask: NDArray[np.bool_] | None
    box_xyxy: tuple[float, float, float, float]
    text: str
    colour: Rgb

    @property
    def text_colour(self) -> Rgb:
        """The colour, lightened so that it is readable on the black outline of the text."""
        red, green, blue = ((2 * part + 3 * 255) // 5 for part in self.colour)
        return red, green, blue


def write_sheet(path: Path, heading: str, rows: Sequence[SheetRow]) -> None:
    """Writes a sheet as PNG. Raises OutputError."""
    buffer = io.BytesIO()
    draw_sheet(heading, rows).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def draw_sheet(heading: str, rows: Sequence[SheetRow]) -> Image.Image:
    """A sheet with a heading, a legend and the rows below each other: a caption and two tiles of at most TILE_WH."""
    bands = [_band(row) for row in rows]
    sheet = Image.new("RGB", (2 * TILE_WH[0] + GAP_PX, HEADING_PX + sum(band.height for band in bands)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((8, 5), heading, _TEXT, ImageFont.load_default(15))
    x = 8.0
    for colour, text in _LEGEND:
        draw.rectangle((x, 31, x + 10, 41), colour)
        draw.text((x + 16, 28), text, _LEGEND_TEXT, ImageFont.load_default(12))
        x += 16 + draw.textlength(text, ImageFont.load_default(12)) + 24
    y = HEADING_PX
    for band in bands:
        sheet.paste(band, (0, y))
        y += band.height
    return sheet


def _band(row: SheetRow) -> Image.Image:
    height, width = row.rgb.shape[:2]
    scale = min(TILE_WH[0] / width, TILE_WH[1] / height)
    tile_wh = max(round(width * scale), 1), max(round(height * scale), 1)
    band = Image.new("RGB", (2 * TILE_WH[0] + GAP_PX, CAPTION_PX + tile_wh[1] + GAP_PX), _BACKGROUND)
    ImageDraw.Draw(band).text((8, 4), row.caption, _TEXT, ImageFont.load_default(13))
    small = cv2.resize(row.rgb, tile_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    for place, shapes in enumerate((_truth_shapes(row), _found_shapes(row))):
        tile = _tile(np.asarray(small, np.uint8), shapes, scale)
        band.paste(tile, (place * (TILE_WH[0] + GAP_PX) + (TILE_WH[0] - tile_wh[0]) // 2, CAPTION_PX))
    return band


def _truth_shapes(row: SheetRow) -> list[_Shape]:
    colours = {truth: _match_colour(number) for number, (truth, _) in enumerate(row.matching.matches)}
    colours |= dict.fromkeys(row.matching.missed, _WRONG)
    return [
        _Shape(
            mask=_decoded(entry.rle["counts"], row.rgb) if entry.rle and row.found.rle_counts is not None else None,
            box_xyxy=entry.box_xyxy,
            text="" if index not in colours else row.labels[entry.category_id],
            colour=colours.get(index, _IGNORED),
        )
        for index, entry in enumerate(row.annotations)
    ]


def _found_shapes(row: SheetRow) -> list[_Shape]:
    found, matching = row.found, row.matching
    colours = {index: _match_colour(number) for number, (_, index) in enumerate(matching.matches)}
    colours |= dict.fromkeys(matching.false_positives, _WRONG)
    shapes = []
    for index in range(len(found)):
        x1, y1, x2, y2 = found.boxes_xyxy[index].tolist()
        mask = None if found.rle_counts is None else _decoded(found.rle_counts[index], row.rgb)
        text = f"{row.labels[int(found.class_ids[index])]} {found.scores[index]:.2f}"
        shapes.append(_Shape(mask, (x1, y1, x2, y2), text, colours.get(index, _IGNORED)))
    return shapes


def _tile(rgb: NDArray[np.uint8], shapes: Sequence[_Shape], scale: float) -> Image.Image:
    """The picture with its shapes. Large shapes come first, so that smaller ones stay visible, and labels come last."""
    picture = rgb.copy()
    by_size = sorted(shapes, key=lambda shape: -_area(shape.box_xyxy))
    for shape in by_size:
        if shape.mask is None:
            left, top, right, bottom = (round(edge * scale) for edge in shape.box_xyxy)
            cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), shape.colour, 1, cv2.LINE_8)
            continue
        mask = np.asarray(shape.mask, np.uint8) * 255
        inside = cv2.resize(mask, (rgb.shape[1], rgb.shape[0]), interpolation=cv2.INTER_AREA) >= 128
        tint = np.asarray(shape.colour, np.float32)
        picture[inside] = np.rint(picture[inside] * (1 - MASK_OPACITY) + tint * MASK_OPACITY).astype(np.uint8)
        outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, outlines, -1, shape.colour, 1, cv2.LINE_AA)
    tile = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(LABEL_PX)
    placed: list[tuple[float, float, float]] = []
    """(y, x1, x2) of the labels so far: a label that would overlap one of them is left out"""
    for shape in by_size:
        x1, y1, _, y2 = (edge * scale for edge in shape.box_xyxy)
        if shape.text and y2 - y1 >= MIN_LABEL_HEIGHT_PX:
            width = draw.textlength(shape.text, font)
            x, y = max(min(x1, tile.width - width - 2), 1), max(y1 - LABEL_PX - 2, 0)
            same_row = [(left, right) for row, left, right in placed if abs(y - row) <= LABEL_PX]
            if not any(x < right and left < x + width for left, right in same_row):
                placed.append((y, x, x + width))
                draw.text((x, y), shape.text, shape.text_colour, font, stroke_width=2, stroke_fill=(0, 0, 0))
    return tile


def _decoded(counts: bytes, rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return decode_rle(counts, (rgb.shape[0], rgb.shape[1]))


def _match_colour(number: int) -> Rgb:
    return _MATCH_COLOURS[number % len(_MATCH_COLOURS)]


def _area(box_xyxy: tuple[float, float, float, float]) -> float:
    x1, y1, x2, y2 = box_xyxy
    return (x2 - x1) * (y2 - y1)
