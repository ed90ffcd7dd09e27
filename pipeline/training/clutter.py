"""Synthetic distractors: unlabelled panels, boards, screens, tables, posts, boxes and walls, drawn into pictures.

A network that was trained with synthetic vehicles on empty ground detects dark shapes with straight edges as vehicles.
These distractors are negative examples. Their colours, sizes and positions are random.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.training.picture import Rgb, TrainingObject, TrainingPicture, cropped_to_mask, visible_part

_MAX_THINGS = 5
_SHARE_AT_BORDER = 0.45

Points = NDArray[np.float64]
Mask = NDArray[np.uint8]


def with_clutter(rng: Generator, picture: TrainingPicture) -> TrainingPicture:
    """Draw one to five distractors over the picture, and remove from the masks of objects what they occlude."""
    rgb = picture.rgb.copy()
    hidden = np.zeros(picture.hw, np.uint8)
    for _ in range(int(rng.integers(1, _MAX_THINGS + 1))):
        draw = _THINGS[int(rng.integers(len(_THINGS)))]
        hidden |= draw(rng, rgb)
    thing = cropped_to_mask(TrainingObject(0, 0, 0, hidden, ignored=False))
    if thing is None:
        return TrainingPicture(rgb, picture.objects, picture.labelled)
    left = (visible_part(item, thing) for item in picture.objects)
    return TrainingPicture(rgb, tuple(item for item in left if item is not None), picture.labelled)


def draw_room(rng: Generator, rgb: Rgb) -> None:
    """Draw a room over the background: floor boards, a wall above a slanted line, and a skirting between them."""
    height, width = rgb.shape[:2]
    if rng.random() < 0.6:
        _boards(rng, rgb)
    level, slant = float(rng.uniform(-0.1, 0.8)) * height, float(rng.uniform(-0.3, 0.3)) * height
    wall = np.array([(-1, -1), (width, -1), (width, level + slant), (-1, level - slant)], np.float64)
    _fill(rng, rgb, _polygon(rgb, wall), _tone(rng))
    edge = wall[2:].round().astype(np.int32)
    cv2.polylines(rgb, [edge], False, _tone(rng), int(rng.integers(1, 14)), cv2.LINE_AA)


def _panel(rng: Generator, rgb: Rgb) -> Mask:
    """Draw a window, screen, board or sign: a framed quadrilateral with a highlight, panes or lines."""
    outer = _quadrilateral(rng, rgb)
    mask = _polygon(rgb, outer)
    _fill(rng, rgb, mask, _tone(rng))
    inner = _towards_middle(outer, float(rng.uniform(0.78, 1.0)))
    pane = mask & _polygon(rgb, inner)
    _fill(rng, rgb, pane, _tone(rng))
    detail = float(rng.random())
    if detail < 0.35:  # panes
        for _ in range(int(rng.integers(1, 4))):
            along = float(rng.uniform(0.2, 0.8))
            side = int(rng.integers(2))
            start = inner[side] * along + inner[side + 1] * (1 - along)
            end = inner[(side + 3) % 4] * along + inner[(side + 2) % 4] * (1 - along)
            _fill(rng, rgb, pane & _bar(rgb, start, end, int(rng.integers(1, 6))), _tone(rng))
    elif detail < 0.6:  # a reflection in glass, or the content of a screen
        _fill(rng, rgb, pane & _polygon(rgb, _quadrilateral(rng, rgb)), _tone(rng))
    elif detail < 0.75:  # writing
        tone = _tone(rng)
        for along in np.linspace(0.15, 0.85, int(rng.integers(3, 9))):
            start, end = inner[0] * (1 - along) + inner[3] * along, inner[1] * (1 - along) + inner[2] * along
            line = _bar(rgb, start * 0.88 + end * 0.12, start * 0.2 + end * 0.8, 1)
            _fill(rng, rgb, pane & line, tone)
    return mask


def _table(rng: Generator, rgb: Rgb) -> Mask:
    """Draw a round object: a table with one leg, a bin, a manhole or a parasol."""
    height, width = rgb.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    centre = _place(rng, rgb)
    across = float(rng.uniform(10, 0.25 * width))
    axes = (round(across), max(round(across * rng.uniform(0.25, 1.0)), 2))
    if rng.random() < 0.5:
        foot = np.array([centre[0], centre[1] + rng.uniform(0.5, 2.5) * across])
        part = _bar(rgb, centre, foot, max(round(across * rng.uniform(0.05, 0.3)), 1))
        cv2.ellipse(part, foot.astype(int).tolist(), (axes[0] // 2, axes[1] // 3), 0, 0, 360, 255, -1)
        _fill(rng, rgb, part, _tone(rng))
        mask |= part
    part = np.zeros_like(mask)
    cv2.ellipse(part, centre.astype(int).tolist(), axes, float(rng.uniform(-20, 20)), 0, 360, 255, -1)
    _fill(rng, rgb, part, _tone(rng))
    return np.asarray(mask | part, np.uint8)


def _post(rng: Generator, rgb: Rgb) -> Mask:
    """Draw a bar across the picture, or to a point inside it: a pillar, a pole, a kerb or a barrier."""
    height, width = rgb.shape[:2]
    start = _place(rng, rgb)
    angle = float(rng.normal(np.pi / 2, 0.15) if rng.random() < 0.6 else rng.uniform(0, np.pi))
    end = start + float(rng.uniform(0.2, 1.5)) * height * np.array([np.cos(angle), np.sin(angle)])
    mask = _bar(rgb, start, end, round(float(np.exp(rng.uniform(np.log(3), np.log(0.15 * width))))))
    _fill(rng, rgb, mask, _tone(rng))
    return mask


def _box(rng: Generator, rgb: Rgb) -> Mask:
    """Draw a crate, a cabinet or a container: front, side and top in three shades of one colour."""
    front = _quadrilateral(rng, rgb)
    back = front + rng.uniform(-0.5, 0.5, 2) * np.ptp(front, axis=0)
    tone = np.array(_tone(rng))
    mask = np.zeros(rgb.shape[:2], np.uint8)
    for side, light in ((0, 1.15), (1, 0.7), (2, 0.6), (3, 0.8)):
        other = (side + 1) % 4
        face = _polygon(rgb, np.stack([front[side], front[other], back[other], back[side]]))
        _fill(rng, rgb, face, tone * light)
        mask |= face
    face = _polygon(rgb, front)
    _fill(rng, rgb, face, tone)
    return np.asarray(mask | face, np.uint8)


_THINGS = (_panel, _panel, _panel, _table, _post, _box)


def _boards(rng: Generator, rgb: Rgb) -> None:
    """Draw a floor of boards or tiles: lines towards a vanishing point, and a shade for each strip."""
    height, width = rgb.shape[:2]
    far = np.array([rng.uniform(0, width), -rng.uniform(0.2, 4.0) * height])
    colour, step = np.array(_tone(rng)), float(rng.uniform(10, 80))
    feet = np.arange(-2 * width, 3 * width, step)
    for start, end in pairwise(feet):
        strip = np.array([far, (end, height * 1.2), (start, height * 1.2)]).round().astype(np.int32)
        tone = np.clip(colour + rng.normal(0, 12), 0, 255).tolist()
        cv2.fillConvexPoly(rgb, strip, tone, cv2.LINE_AA)
        cv2.line(rgb, strip[0].tolist(), strip[1].tolist(), (colour * 0.6).tolist(), 1, cv2.LINE_AA)


def _place(rng: Generator, rgb: Rgb) -> Points:
    """A random position (2,) as x, y in pixels: anywhere in the picture, or near its border."""
    height, width = rgb.shape[:2]
    place = rng.uniform((0, 0), (width, height))
    if rng.random() < _SHARE_AT_BORDER:
        axis = int(rng.integers(2))
        place[axis] = (width, height)[axis] * float(rng.choice([0, 1]) + rng.uniform(-0.1, 0.1))
    return place


def _quadrilateral(rng: Generator, rgb: Rgb) -> Points:
    """Corners (4, 2) in pixels of a rectangle in perspective, clockwise from the upper left."""
    height, width = rgb.shape[:2]
    half = np.exp(rng.uniform(np.log(6), np.log((0.35 * width, 0.4 * height))))
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], np.float64) * half
    corners *= 1 + rng.uniform(-0.15, 0.15, (4, 2)) * (rng.random() < 0.7)
    angle = float(rng.normal(0, 0.15) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi))
    shear = float(rng.normal(0, 0.2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ [[1, shear], [0, 1]]
    return np.asarray(corners @ turn.T + _place(rng, rgb), np.float64)


def _towards_middle(corners: Points, share: float) -> Points:
    middle = corners.mean(axis=0)
    return np.asarray(middle + (corners - middle) * share, np.float64)


def _polygon(rgb: Rgb, corners: Points) -> Mask:
    mask = np.zeros(rgb.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, corners.round().astype(np.int32), 255)
    return mask


def _bar(rgb: Rgb, start: Points, end: Points, thickness: int) -> Mask:
    mask = np.zeros(rgb.shape[:2], np.uint8)
    cv2.polylines(mask, [np.stack([start, end]).round().astype(np.int32)], False, 255, thickness)
    return mask


def _fill(rng: Generator, rgb: Rgb, mask: Mask, tone: Sequence[float] | Points) -> None:
    """Fill the mask with a colour gradient and a little grain, and soften its edge."""
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return
    slope = rng.normal(0, float(rng.uniform(0, 30)), (2, 2)).astype(np.float32)
    light = cv2.resize(slope, (width, height), interpolation=cv2.INTER_LINEAR)
    light += rng.normal(0, float(rng.uniform(0, 5)), (height, width)).astype(np.float32)
    part = rgb[y : y + height, x : x + width]
    alpha = cv2.GaussianBlur(mask[y : y + height, x : x + width], (3, 3), 0.8)[..., None] / np.float32(255)
    painted = np.clip(np.asarray(tone, np.float32) + light[..., None], 0, 255)
    part[:] = (painted * alpha + part * (1 - alpha)).astype(np.uint8)


def _tone(rng: Generator) -> tuple[float, float, float]:
    """A random colour: mostly grey, black or white, as of furniture and buildings; sometimes any colour."""
    if rng.random() < 0.25:
        red, green, blue = rng.uniform(10, 245, 3).tolist()
        return red, green, blue
    level = float(rng.beta(0.6, 0.6)) * 235 + 10
    red, green, blue = (level + rng.normal(0, 8, 3)).clip(0, 255).tolist()
    return red, green, blue
