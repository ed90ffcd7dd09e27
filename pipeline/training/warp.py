"""Homographies of pictures and their objects.

Matrices act on continuous pixel coordinates: the centre of the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.training.picture import Rgb, TrainingObject, TrainingPicture, cropped_to_mask, ignored_if_small

Matrix = NDArray[np.float64]


def warp(picture: TrainingPicture, matrix: Matrix, hw: tuple[int, int], fill: tuple[int, int, int]) -> TrainingPicture:
    """The picture under a homography, cropped to (height, width). Objects outside the crop are dropped.

    matrix   (3, 3): coordinates in the picture -> coordinates in the result
    fill     RGB colour of the result where it lies outside the picture
    """
    rgb, source_matrix = _shrunk(picture.rgb, matrix)
    warped = cv2.warpPerspective(
        rgb,
        _for_opencv(source_matrix),
        (hw[1], hw[0]),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
    objects = (warp_object(item, matrix, hw) for item in picture.objects)
    return TrainingPicture(
        np.asarray(warped, np.uint8),
        tuple(item for item in objects if item is not None),
        picture.labelled,
    )


def warp_object(item: TrainingObject, matrix: Matrix, hw: tuple[int, int]) -> TrainingObject | None:
    """The object under a homography, cropped to (height, width); None outside. It is ignored if little is visible."""
    height, width = item.mask.shape
    corners = np.array([[[x, y]] for x in (0, width) for y in (0, height)], np.float64)
    placed = matrix @ shift(item.left, item.top)
    points = cv2.perspectiveTransform(corners, placed)[:, 0]
    x1, y1 = np.floor(points.min(axis=0)).clip(0, (hw[1], hw[0])).astype(int).tolist()
    x2, y2 = np.ceil(points.max(axis=0)).clip(0, (hw[1], hw[0])).astype(int).tolist()
    if x2 <= x1 or y2 <= y1:
        return None
    local = _for_opencv(shift(-x1, -y1) @ placed)
    soft = cv2.warpPerspective(item.mask, local, (x2 - x1, y2 - y1), flags=cv2.INTER_LINEAR)
    mask = cv2.threshold(soft, 127, 255, cv2.THRESH_BINARY)[1]
    cropped = cropped_to_mask(replace(item, left=x1, top=y1, mask=np.asarray(mask, np.uint8)))
    if cropped is None:
        return None
    whole_px = item.area_px * abs(float(np.linalg.det(_jacobian(placed, width / 2, height / 2))))
    return ignored_if_small(cropped, whole_px)


def shift(x: float, y: float) -> Matrix:
    """The homography that translates by (x, y) pixels."""
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def scaling(x: float, y: float) -> Matrix:
    """The homography that scales about the origin."""
    return np.diag([x, y, 1.0])


def _for_opencv(matrix: Matrix) -> Matrix:
    """The same homography in OpenCV's coordinates, in which the centre of the first pixel is (0, 0)."""
    moved: Matrix = shift(-0.5, -0.5) @ matrix @ shift(0.5, 0.5)
    return moved


def _shrunk(rgb: Rgb, matrix: Matrix) -> tuple[Rgb, Matrix]:
    """The picture and the homography to apply to it, after averaging pixels if the homography scales down.

    Bilinear interpolation alone would skip pixels and cause aliasing.
    """
    height, width = rgb.shape[:2]
    scale = abs(float(np.linalg.det(_jacobian(matrix, width / 2, height / 2)))) ** 0.5
    if scale > 0.8:
        return rgb, matrix
    small_wh = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = np.asarray(cv2.resize(rgb, small_wh, interpolation=cv2.INTER_AREA), np.uint8)
    return small, matrix @ scaling(width / small_wh[0], height / small_wh[1])


def _jacobian(matrix: Matrix, x: float, y: float) -> Matrix:
    """(2, 2): the derivative of the homography at a point."""
    u, v, w = matrix @ (x, y, 1.0)
    rows: Matrix = (matrix[:2, :2] - np.outer((u / w, v / w), matrix[2, :2])) / w
    return rows
