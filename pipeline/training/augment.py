"""Augmentation of training pictures: viewpoint, scale, pasted objects and synthetic backgrounds.

All random numbers come from the generator that is passed in. Probabilities and ranges are constants of this file, each
with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.random import Generator

from pipeline.training.clutter import draw_room
from pipeline.training.picture import Rgb, TrainingObject, TrainingPicture, visible_part
from pipeline.training.warp import Matrix, scaling, shift, warp, warp_object

# Range of scales, relative to the size at which the engine processes the picture: simulates near and far cameras.
SCALE_RANGE = (0.55, 1.6)
# Share of crops that are centred on an object; they contain more objects than crops at random positions.
_SHARE_AROUND_OBJECT = 0.7
# Simulates a camera above the road: stretched vehicles, large and cut by the border, sometimes rotated.
_SHARE_FROM_ABOVE = 0.1
_SHARE_TURNED = 0.3
_SHARE_TILTED = 0.3
_MAX_TILT_DEGREES = 6.0
_SHARE_WITH_PASTED = 0.35
_MAX_PASTED = 3
_SHARE_ROOMS = 0.25

Donor = Callable[[Generator, frozenset[int]], "tuple[TrainingPicture, TrainingObject, float] | None"]
"""A picture, one of its objects whose class is in the given outputs, and the scale of the engine for that picture."""


def random_view(rng: Generator, picture: TrainingPicture, scale: float, crop_hw: tuple[int, int]) -> TrainingPicture:
    """Crop the picture at a random scale around `scale`; flip it, sometimes tilt it or warp it to a view from above."""
    jitter = float(np.exp(rng.uniform(*np.log(SCALE_RANGE))))
    from_above = rng.random() < _SHARE_FROM_ABOVE
    matrix = scaling(-1 if rng.random() < 0.5 else 1, 1)
    if from_above:
        matrix = _from_above(rng, picture.hw) @ matrix
        jitter = min(jitter * 1.5, 2.5)
    elif rng.random() < _SHARE_TILTED:
        matrix = _turned(float(rng.uniform(-_MAX_TILT_DEGREES, _MAX_TILT_DEGREES))) @ matrix
    matrix = scaling(scale * jitter, scale * jitter * float(np.exp(rng.uniform(-0.15, 0.15)))) @ matrix
    matrix = _cropped(rng, picture, matrix, crop_hw)
    return warp(picture, matrix, crop_hw, _fill(rng))


def with_pasted_objects(
    rng: Generator, picture: TrainingPicture, donor: Donor, *, share: float = _SHARE_WITH_PASTED
) -> TrainingPicture:
    """Paste, with some probability, a few objects of other pictures, of classes that this picture labels."""
    if rng.random() >= share:
        return picture
    for _ in range(int(rng.integers(1, _MAX_PASTED + 1))):
        found = donor(rng, picture.labelled)
        if found is not None:
            picture = _pasted(rng, picture, *found)
    return picture


def plain_ground(rng: Generator, crop_hw: tuple[int, int], labelled: frozenset[int]) -> TrainingPicture:
    """Draw an empty background: a road or floor seen from above (uneven grey, grain, markings), or a room."""
    height, width = crop_hw
    colour = rng.uniform(40, 170) + rng.uniform(-8, 8, 3)
    coarse = rng.normal(0, rng.uniform(2, 14), (5, 8)).astype(np.float32)
    spread = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((height, width), np.float32) * float(rng.uniform(2, 9))
    softened = cv2.GaussianBlur(grain, (0, 0), float(rng.uniform(0.5, 1.5)))
    rgb = np.clip(colour + (spread + softened)[..., None], 0, 255).astype(np.uint8)
    if rng.random() < _SHARE_ROOMS:
        draw_room(rng, rgb)
    for _ in range(int(rng.integers(0, 30))):
        spot = rng.integers(0, (width, height)).tolist()
        cv2.circle(rgb, spot, int(rng.integers(0, 3)), (float(rng.uniform(20, 220)),) * 3, -1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 14))):
        _mark(rng, rgb)
    return TrainingPicture(rgb, (), labelled)


def _mark(rng: Generator, rgb: Rgb) -> None:
    """Draw one road marking, white or yellow, often cut by the border: stripes, arrows, corners or letters."""
    height, width = rgb.shape[:2]
    bright = float(rng.uniform(140, 255))
    paint = (bright, bright, bright * (0.3 if rng.random() < 0.2 else 1.0))
    thickness = int(rng.integers(1, 16))
    start = rng.uniform((-0.05 * width, -0.05 * height), (1.05 * width, 1.05 * height))
    if rng.random() < 0.4:  # an arrow that the border cuts looks like legs
        axis = int(rng.integers(2))
        start[axis] = (width, height)[axis] * float(rng.choice([0, 1]) + rng.uniform(-0.08, 0.08))
    kind = float(rng.random())
    if kind < 0.15:
        text = "".join(rng.choice(list("ABCEFHKLMNOPRSTUVXYZ0123456789"), int(rng.integers(1, 5))).tolist())
        size, at = float(rng.uniform(0.5, 4.0)), start.astype(int).tolist()
        cv2.putText(rgb, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, paint, max(thickness // 2, 1), cv2.LINE_AA)
        return
    angle, length = float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(10, 140))
    end = start + length * np.array([np.cos(angle), np.sin(angle)])
    if kind < 0.3:
        tip = float(rng.uniform(0.15, 0.5))
        cv2.arrowedLine(
            rgb, start.astype(int).tolist(), end.astype(int).tolist(), paint, thickness, cv2.LINE_AA, 0, tip
        )
        return
    points = [start, end]
    if kind > 0.6:  # with one or two corners
        for _ in range(int(rng.integers(1, 3))):
            angle += float(rng.uniform(0.5, 3.0)) * (1 if rng.random() < 0.5 else -1)
            points.append(points[-1] + length * rng.uniform(0.3, 1.2) * np.array([np.cos(angle), np.sin(angle)]))
    cv2.polylines(rgb, [np.array(points).round().astype(np.int32)], False, paint, thickness, cv2.LINE_AA)


def _pasted(
    rng: Generator, picture: TrainingPicture, source: TrainingPicture, item: TrainingObject, scale: float
) -> TrainingPicture:
    height, width = picture.hw
    jitter = scale * float(np.exp(rng.uniform(*np.log(SCALE_RANGE))))
    matrix = scaling(-1 if rng.random() < 0.5 else 1, 1)
    if rng.random() < _SHARE_FROM_ABOVE:
        matrix = _from_above(rng, source.hw) @ matrix
        jitter *= 1.5
    box_h, box_w = item.mask.shape
    # shrink an object that would fill the picture, enlarge one that would be too small to see
    largest = max(box_h / height, box_w / width) * jitter
    jitter *= min(1.0, 0.9 / largest) * max(1.0, 0.05 / largest)
    matrix = scaling(jitter, jitter) @ matrix
    centre = matrix @ (item.left + box_w / 2, item.top + box_h / 2, 1.0)
    target = rng.uniform((0, 0), (width, height))
    matrix = shift(*(target - centre[:2] / centre[2])) @ matrix
    placed = warp_object(replace(item, ignored=False), matrix, picture.hw)
    if placed is None or placed.ignored:
        return picture
    rgb = _blended(picture.rgb, source.rgb, matrix, placed)
    below = (visible_part(other, placed) for other in picture.objects)
    return TrainingPicture(rgb, (*(other for other in below if other is not None), placed), picture.labelled)


def _blended(rgb: Rgb, source: Rgb, matrix: Matrix, placed: TrainingObject) -> Rgb:
    """Blend the source over the picture inside the mask, with an edge that is softened over one or two pixels."""
    mask_h, mask_w = placed.mask.shape
    local = TrainingPicture(source, (), frozenset())
    above = warp(local, shift(-placed.left, -placed.top) @ matrix, (mask_h, mask_w), (0, 0, 0)).rgb
    padded = cv2.copyMakeBorder(placed.mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    alpha = cv2.GaussianBlur(padded, (3, 3), 0.8)[1:-1, 1:-1, None].astype(np.uint16)
    rows, columns = slice(placed.top, placed.top + mask_h), slice(placed.left, placed.left + mask_w)
    result = rgb.copy()
    under = result[rows, columns]
    result[rows, columns] = ((above * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)
    return result


def _cropped(rng: Generator, picture: TrainingPicture, matrix: Matrix, crop_hw: tuple[int, int]) -> Matrix:
    """Translate the homography so that the crop lies around one of the objects, or at a random place of the picture."""
    height, width = picture.hw
    corners = np.array([[[x, y]] for x in (0, width) for y in (0, height)], np.float64)
    points = cv2.perspectiveTransform(corners, matrix)[:, 0]
    low, high = points.min(axis=0), points.max(axis=0)
    crop_wh = np.array([crop_hw[1], crop_hw[0]], np.float64)
    wanted = [item for item in picture.objects if not item.ignored]
    if wanted and rng.random() < _SHARE_AROUND_OBJECT:
        item = wanted[int(rng.integers(len(wanted)))]
        box_h, box_w = item.mask.shape
        point = matrix @ (item.left + rng.uniform(0, box_w), item.top + rng.uniform(0, box_h), 1.0)
        corner = point[:2] / point[2] - rng.uniform(0, 1, 2) * crop_wh
        # if the picture is larger than the crop, the crop stays inside it
        slack = high - low - crop_wh
        corner = np.where(
            slack > 0, corner.clip(low, low + slack.clip(min=0)), corner.clip(low + slack.clip(max=0), low)
        )
    else:
        corner = low + rng.uniform(0, 1, 2) * (high - low - crop_wh)
    moved: Matrix = shift(-corner[0], -corner[1]) @ matrix
    return moved


def _from_above(rng: Generator, hw: tuple[int, int]) -> Matrix:
    """A homography that stretches vertically, widens the top or the bottom, and sometimes rotates by any angle."""
    height, width = hw
    matrix = scaling(1, float(rng.uniform(1.0, 1.6)))
    slant = float(rng.uniform(-0.25, 0.25)) / height
    matrix = np.array([[1, 0, 0], [0, 1, 0], [0, slant, 1]], np.float64) @ shift(-width / 2, -height / 2) @ matrix
    if rng.random() < _SHARE_TURNED:
        matrix = _turned(float(rng.choice([90, 180, 270]) + rng.uniform(-45, 45))) @ matrix
    else:
        matrix = _turned(float(rng.uniform(-20, 20))) @ matrix
    return matrix


def _turned(degrees: float) -> Matrix:
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]], np.float64)


def _fill(rng: Generator) -> tuple[int, int, int]:
    """A colour for the padding: the grey that the engine pads with (0 after normalisation), or a random colour."""
    if rng.random() < 0.5:
        return 127, 127, 127
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue
