"""Reference implementations: slow, plainly correct forms of the kernels. Only tests and benchmarks import it.

A kernel without a form here, such as the tracker's step (track_*), is checked by its own tests alone.

Legend of the letters in shapes, for all docstrings of the project:

B    images in a batch
C    channels of a feature map; capacity of a table
D    detections per image, including padding
G    groups of equal size, for example the images of a batch
H, W height and width in pixels (of feature maps: in cells)
K    boxes per group; keypoints per object; selected items of N
L    levels of a feature pyramid
M    instances of all images, concatenated; columns of a matrix; second set of boxes
N    boxes or detections; rows of a matrix; first set of boxes
P    pairs; proposals per image
PH, PW rows and columns of pooled bins
S    cells along each side of a square map
T    tracks
"""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ops import kalman


def box_iou(boxes_a_xyxy: NDArray[np.float64], boxes_b_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, M) float64: intersection over union of each pair; 0 where the union has no area."""
    out = np.zeros((len(boxes_a_xyxy), len(boxes_b_xyxy)))
    for i, (ax1, ay1, ax2, ay2) in enumerate(boxes_a_xyxy):
        for j, (bx1, by1, bx2, by2) in enumerate(boxes_b_xyxy):
            shared = max(0.0, min(ax2, bx2) - max(ax1, bx1)) * max(0.0, min(ay2, by2) - max(ay1, by1))
            union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared
            if union > 0.0:
                out[i, j] = shared / union
    return out


def nms(
    boxes_xyxy: NDArray[np.float32],
    is_candidate: NDArray[np.bool_],
    iou_threshold: float,
    max_kept: int,
    classes: NDArray[np.int64] | None = None,
) -> list[int]:
    """Indices of the first max_kept survivors of one group of boxes (N, 4), sorted by descending score.

    Each survivor suppresses the later candidates, of its own class if classes are given, whose IoU with it, computed in
    float32, is above the threshold.
    """
    zero = np.float32(0.0)
    kept: list[int] = []
    left = [n for n in range(len(boxes_xyxy)) if is_candidate[n]]
    while left and len(kept) < max_kept:
        survivor, rest = left[0], left[1:]
        kept.append(survivor)
        ax1, ay1, ax2, ay2 = boxes_xyxy[survivor]
        left = []
        for n in rest:
            bx1, by1, bx2, by2 = boxes_xyxy[n]
            shared = max(zero, min(ax2, bx2) - max(ax1, bx1)) * max(zero, min(ay2, by2) - max(ay1, by1))
            with np.errstate(invalid="ignore"):  # 0 / 0 is NaN and suppresses nothing
                iou = shared / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - shared)
            if float(iou) > iou_threshold and (classes is None or classes[survivor] == classes[n]):
                continue
            left.append(n)
    return kept


def solve_assignment(cost: NDArray[np.float64]) -> float:
    """Minimum total cost of an assignment of an (N, M) cost matrix, found by trying every permutation."""
    matrix = cost if cost.shape[0] <= cost.shape[1] else cost.T
    num_rows, num_cols = matrix.shape
    return min(
        float(sum(matrix[row, col] for row, col in enumerate(cols))) for cols in permutations(range(num_cols), num_rows)
    )


class KalmanBox:
    """Kalman filter of a box with 8x8 matrices. State: centre x, centre y, width, height and their velocities per
    second.
    """

    def __init__(self, box_xyxy: NDArray[np.float64]) -> None:
        observed = self._observed(box_xyxy)
        scale = self._scale(observed[2], observed[3])
        self.mean = np.concatenate((observed, np.zeros(4)))
        velocity = np.repeat([kalman.START_VELOCITY, kalman.START_SIZE_VELOCITY], 2)
        self.covariance = np.diag(np.concatenate((np.full(4, kalman.POSITION_NOISE), velocity)) * scale) ** 2

    def predict(self, dt_s: float) -> None:
        """x <- F x, P <- F P F' + Q."""
        acceleration = np.repeat([kalman.ACCELERATION, kalman.SIZE_ACCELERATION], 2)
        density = np.diag(acceleration * self._scale(self.mean[2], self.mean[3])) ** 2
        identity = np.eye(4)
        transition = np.block([[identity, dt_s * identity], [np.zeros((4, 4)), identity]])
        noise = np.block([[dt_s**3 / 3 * density, dt_s**2 / 2 * density], [dt_s**2 / 2 * density, dt_s * density]])
        self.mean = transition @ self.mean
        self.covariance = transition @ self.covariance @ transition.T + noise

    def correct(self, box_xyxy: NDArray[np.float64], step_s: float) -> None:
        """K = P H' (H P H' + R)^-1, x <- x + K (z - H x), P <- (I - K H) P; z and R are adapted for truncated boxes as
        `ops.kalman` describes.
        """
        scale = self._scale(self.mean[2], self.mean[3])
        length = np.maximum(self.mean[2:4], 0.0)
        low, high = box_xyxy[:2], box_xyxy[2:]
        lost = np.maximum([low - (self.mean[:2] - length / 2), self.mean[:2] + length / 2 - high], 0.0)
        lack = np.maximum((1 - kalman.CUT_TOLERANCE) * length - (high - low), 0.0)
        given_back = lack * lost / np.where(lack > 0, lost.sum(axis=0), 1.0)
        centre = (low - given_back[0] + high + given_back[1]) / 2
        variances = np.full(4, (kalman.POSITION_NOISE * scale) ** 2)
        variances[2:][lack > 0] += (kalman.CUT_NOISE * scale) ** 2 / step_s
        growth = np.maximum(high - low - length, 0.0)
        self.covariance[[2, 3], [2, 3]] += growth**2

        observed = np.concatenate((centre, high - low))
        observation = np.hstack([np.eye(4), np.zeros((4, 4))])
        innovation = observation @ self.covariance @ observation.T + np.diag(variances)
        gain = self.covariance @ observation.T @ np.linalg.inv(innovation)
        self.mean = self.mean + gain @ (observed - observation @ self.mean)
        self.covariance = (np.eye(8) - gain @ observation) @ self.covariance

    @staticmethod
    def _observed(box_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
        x1, y1, x2, y2 = box_xyxy
        return np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])

    @staticmethod
    def _scale(width: float, height: float) -> float:
        return max(1.0, (abs(width) + abs(height)) / 2)


def i420_to_rgb(
    y: NDArray[np.uint8], u: NDArray[np.uint8], v: NDArray[np.uint8], kr: float, kb: float, *, full_range: bool
) -> NDArray[np.float64]:
    """(H, W, 3) float64 RGB in [0, 1] from Y (H, W), U and V (H // 2, W // 2).

    The equations of ITU-R BT.601 for Y, Cb and Cr, solved for R, G and B. A chroma sample lies between the pixels 2i
    and 2i + 1; samples are interpolated linearly and replicated at the border.
    """
    height, width = y.shape
    half_h, half_w = u.shape
    out = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            cb = cr = 0.0
            for i in range(half_h):
                for j in range(half_w):
                    at_row = min(max((row - 0.5) / 2, 0.0), half_h - 1.0)
                    at_column = min(max((column - 0.5) / 2, 0.0), half_w - 1.0)
                    weight = max(0.0, 1 - abs(at_row - i)) * max(0.0, 1 - abs(at_column - j))
                    cb += weight * (float(u[i, j]) - 128)
                    cr += weight * (float(v[i, j]) - 128)
            luma = float(y[row, column]) / 255 if full_range else (float(y[row, column]) - 16) / 219
            chroma_span = 255 if full_range else 224
            red = luma + 2 * (1 - kr) * cr / chroma_span
            blue = luma + 2 * (1 - kb) * cb / chroma_span
            green = (luma - kr * red - kb * blue) / (1 - kr - kb)
            out[row, column] = [min(max(value, 0.0), 1.0) for value in (red, green, blue)]
    return out


def resize_bilinear(image: NDArray[np.float64], out_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Bilinear resize of (H, W, C) to (*out_hw, C): pixel centres at +0.5, border replicated, no antialiasing."""
    height, width, channels = image.shape
    out = np.zeros((*out_hw, channels))
    for row in range(out_hw[0]):
        for column in range(out_hw[1]):
            at_row = min(max((row + 0.5) * height / out_hw[0] - 0.5, 0.0), height - 1.0)
            at_column = min(max((column + 0.5) * width / out_hw[1] - 0.5, 0.0), width - 1.0)
            for i in {int(at_row), min(int(at_row) + 1, height - 1)}:
                for j in {int(at_column), min(int(at_column) + 1, width - 1)}:
                    out[row, column] += max(0.0, 1 - abs(at_row - i)) * max(0.0, 1 - abs(at_column - j)) * image[i, j]
    return out


def paste_mask(
    mask: NDArray[np.float64], box_xyxy: NDArray[np.float32], frame_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """(H, W) float64 probabilities on the frame of one square box-local mask.

    The mask is padded by one cell on each side, the box is widened in proportion and its edges are truncated to whole
    pixels, and the mask is resized to the box; the pixels of both edges belong to it.
    """
    side = len(mask)
    padded = np.pad(mask, 1)[:, :, None]
    share = np.float32((side + 2) / side)
    x1, y1, x2, y2 = (np.float32(value) for value in box_xyxy)
    half_w, half_h = (x2 - x1) * np.float32(0.5) * share, (y2 - y1) * np.float32(0.5) * share
    centre_x, centre_y = (x2 + x1) * np.float32(0.5), (y2 + y1) * np.float32(0.5)
    left, top, right, bottom = (
        int(edge) for edge in (centre_x - half_w, centre_y - half_h, centre_x + half_w, centre_y + half_h)
    )
    resized = resize_bilinear(padded, (max(bottom - top + 1, 1), max(right - left + 1, 1)))[:, :, 0]
    frame = np.zeros(frame_hw)
    for row in range(max(top, 0), min(bottom + 1, frame_hw[0])):
        for column in range(max(left, 0), min(right + 1, frame_hw[1])):
            frame[row, column] = resized[row - top, column - left]
    return frame


def keypoint(heatmap: NDArray[np.float64], box_xyxy: NDArray[np.float32]) -> tuple[float, float, float]:
    """x, y and value of the maximum of an (S, S) heatmap resized to its box, whose size is rounded up to whole pixels.

    Of several equal maxima, the first in row-major order. The resize is Keys' cubic convolution with a = -0.75, cell
    centres at +0.5 and the border replicated.
    """
    x1, y1, x2, y2 = (np.float32(value) for value in box_xyxy)
    width, height = max(float(x2 - x1), 1.0), max(float(y2 - y1), 1.0)
    num_rows, num_columns = math.ceil(height), math.ceil(width)
    across_rows = [_cubic_weights((row + 0.5) * len(heatmap) / num_rows - 0.5, len(heatmap)) for row in range(num_rows)]
    across_columns = [
        _cubic_weights((column + 0.5) * len(heatmap) / num_columns - 0.5, len(heatmap)) for column in range(num_columns)
    ]
    resized = np.zeros((num_rows, num_columns))
    for row, of_rows in enumerate(across_rows):
        for column, of_columns in enumerate(across_columns):
            resized[row, column] = of_rows @ heatmap @ of_columns
    row, column = divmod(int(np.argmax(resized)), num_columns)
    x, y = (column + 0.5) * width / num_columns, (row + 0.5) * height / num_rows
    return float(x1) + x, float(y1) + y, float(resized[row, column])


def _cubic_weights(at: float, num_cells: int) -> NDArray[np.float64]:
    """(num_cells,) weights of the cells at a position between their centres; the border cell gets the weights of the
    cells outside.
    """
    a = -0.75
    weights = np.zeros(num_cells)
    for cell in range(math.floor(at) - 1, math.floor(at) + 3):
        d = abs(at - cell)
        inner, outer = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
        weights[min(max(cell, 0), num_cells - 1)] += inner if d <= 1 else outer if d < 2 else 0.0
    return weights


def encode_rle(mask: NDArray[np.bool_]) -> bytes:
    """COCO compressed RLE of an (H, W) bool mask.

    The runs are counted in column-major order, beginning with zeros. From the fourth count on, the difference to the
    count before the previous one is stored. Each number is written in groups of five bits, lowest group first, until
    only its sign remains; bit 5 of a character says that more groups follow.
    """
    counts = [0]
    value = False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    text = bytearray()
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        done = False
        while not done:
            group, rest = rest & 31, rest >> 5
            done = rest == (-1 if group & 16 else 0)
            text.append(48 + group + (0 if done else 32))
    return bytes(text)


def fpn_level(box_xyxy: NDArray[np.float64], num_levels: int, finest_stride: float) -> int:
    """Pyramid level of a box by equation 1 of the FPN paper, counted from the finest and clamped to the existing
    levels.
    """
    x1, y1, x2, y2 = box_xyxy
    side_px = math.sqrt((x2 - x1) * (y2 - y1))
    level = math.floor(4 + math.log2(side_px / 224) + 1e-6) if side_px > 0 else 0
    return int(min(max(level - round(math.log2(finest_stride)), 0), num_levels - 1))


def roi_align(
    feature_map: NDArray[np.float64],
    box_xyxy: NDArray[np.float64],
    output_hw: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    *,
    aligned: bool,
) -> NDArray[np.float64]:
    """RoIAlign of (H, W, C): (PH, PW, C), the mean of the bilinear samples of each bin.

    Cell i has its centre at i. A sample up to one cell outside the map takes the value at the border; a sample further
    outside is 0. A bin has sampling_ratio^2 samples; with sampling_ratio 0, as many along each axis as its size in
    cells, rounded up (torchvision's rule).
    """
    x1, y1, x2, y2 = np.asarray(box_xyxy, np.float64) * scale - (0.5 if aligned else 0.0)
    roi_h, roi_w = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    num_y = sampling_ratio or math.ceil(roi_h / output_hw[0])
    num_x = sampling_ratio or math.ceil(roi_w / output_hw[1])
    out = np.zeros((*output_hw, feature_map.shape[2]))
    for i in range(output_hw[0]):
        for j in range(output_hw[1]):
            for sample_i in range(num_y):
                for sample_j in range(num_x):
                    y = y1 + (i + (sample_i + 0.5) / num_y) * roi_h / output_hw[0]
                    x = x1 + (j + (sample_j + 0.5) / num_x) * roi_w / output_hw[1]
                    out[i, j] += _sample(feature_map, y, x) / (num_y * num_x)
    return out


def _sample(feature_map: NDArray[np.float64], y: float, x: float) -> NDArray[np.float64]:
    height, width, channels = feature_map.shape
    total = np.zeros(channels)
    if -1 <= y <= height and -1 <= x <= width:
        y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
        for row in {int(y), min(int(y) + 1, height - 1)}:
            for column in {int(x), min(int(x) + 1, width - 1)}:
                total += max(0.0, 1 - abs(y - row)) * max(0.0, 1 - abs(x - column)) * feature_map[row, column]
    return total


def roi_pool(
    feature_map: NDArray[np.float64],
    box_xyxy: NDArray[np.float64],
    output_hw: tuple[int, int],
    scale: float,
    *,
    truncated: bool = False,
) -> NDArray[np.float64]:
    """RoIPool (Girshick 2015) of (H, W, C): (PH, PW, C), the maximum of the cells of each bin, 0 for a bin without
    cells.

    Box and bins are quantised to whole cells. By default the corners are rounded and the last cell is included, as in
    Fast R-CNN and torchvision. truncated: the corners are rounded down and the last cell is excluded, as in textbooks.
    """
    height, width, channels = feature_map.shape
    corners = [value * scale for value in box_xyxy]
    if truncated:
        left, top, right, bottom = (math.floor(value) for value in corners)
    else:
        left, top, right, bottom = (int(value + math.copysign(0.5, value)) for value in corners)
        right, bottom = right + 1, bottom + 1
    roi_h, roi_w = max(bottom - top, 1), max(right - left, 1)
    out = np.zeros((*output_hw, channels))
    for i in range(output_hw[0]):
        for j in range(output_hw[1]):
            rows = range(top + i * roi_h // output_hw[0], top - -(i + 1) * roi_h // output_hw[0])
            columns = range(left + j * roi_w // output_hw[1], left - -(j + 1) * roi_w // output_hw[1])
            cells = [feature_map[y, x] for y in rows for x in columns if 0 <= y < height and 0 <= x < width]
            if cells:
                out[i, j] = np.max(cells, axis=0)
    return out
