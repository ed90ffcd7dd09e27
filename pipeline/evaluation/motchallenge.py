"""MOTChallenge's text files: sequences, detections, ground truth and results. Each row is one object on one frame.

    boxes  frame,id,left,top,width,height,score, ...        comma-separated; further columns are ignored
    masks  frame id class height width counts               space-separated (MOTS); counts are COCO's compressed RLE

Frames and pixels are numbered from 1: left = 1 is the left edge of the first column, which is x = 0 in the rest of
MaskStream. Ids are whole numbers of 0 or more. The tables of this module keep the numbers of the files; `to_xyxy` and
`from_xyxy` convert pixels.
"""

from __future__ import annotations

import configparser
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ops.mask_format import rle_num_pixels
from pipeline.errors import UsageError
from pipeline.exports.files import write_atomically

PEDESTRIAN, IGNORED = 2, 10
"""class ids of MOTS: objects to evaluate, and regions that are ignored"""

_MAX_SHOWN_CHARS = 60
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class BoxRows:
    """The boxes of a sequence: N rows in the order of the file.

    frames, ids  (N,) int64
    boxes_ltwh   (N, 4) float64 [left, top, width, height], pixels numbered from 1
    values       (N,) float64, the seventh column: the score of a detection or result; in ground truth, 0 marks an
                 ignored row
    """

    frames: NDArray[np.int64]
    ids: NDArray[np.int64]
    boxes_ltwh: NDArray[np.float64]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.frames)

    def only(self, keep: NDArray[Any]) -> BoxRows:
        """The selected rows. keep: (N,) bool, or row indices."""
        return BoxRows(self.frames[keep], self.ids[keep], self.boxes_ltwh[keep], self.values[keep])


@dataclass(frozen=True, slots=True)
class MaskRows:
    """The masks of a sequence: N rows in the order of the file.

    frames, ids, class_ids  (N,) int64
    rles                    N masks as pycocotools has them: {"size": [height, width], "counts": bytes}
    """

    frames: NDArray[np.int64]
    ids: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    rles: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.frames)

    def only(self, keep: NDArray[np.bool_]) -> MaskRows:
        """The selected rows. keep: (N,) bool."""
        rles = [self.rles[row] for row in np.flatnonzero(keep).tolist()]
        return MaskRows(self.frames[keep], self.ids[keep], self.class_ids[keep], rles)


@dataclass(frozen=True, slots=True)
class MotSequence:
    """The folder of a sequence, with frame rate and number of frames from its seqinfo.ini."""

    folder: Path
    fps: float
    num_frames: int

    @property
    def name(self) -> str:
        """The name of the folder, which is the name of the sequence in MOTChallenge."""
        return self.folder.resolve().name

    @property
    def truth(self) -> Path:
        """The file of its ground truth."""
        return self.folder / "gt" / "gt.txt"


def find_sequences(folder: Path) -> list[MotSequence]:
    """The folder as a sequence if it is one, else the sequences in it, sorted by name. Raises UsageError."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    if (folder / "gt" / "gt.txt").is_file():
        return [read_sequence(folder)]
    found = sorted(path.parent.parent for path in folder.glob("*/gt/gt.txt"))
    if not found:
        raise UsageError(f"{folder}: expected MOTChallenge sequences, as SEQUENCE/gt/gt.txt, found none")
    return [read_sequence(path) for path in found]


def read_sequence(folder: Path) -> MotSequence:
    """Reads seqinfo.ini. Raises UsageError if it is missing, or lacks frameRate or seqLength."""
    path = folder / "seqinfo.ini"
    content = configparser.ConfigParser()
    try:
        if not content.read(path):
            raise UsageError(f"{path}: there is no such file; it must state frameRate and seqLength")
        fps = content.getfloat("Sequence", "frameRate")
        num_frames = content.getint("Sequence", "seqLength")
    except (configparser.Error, ValueError) as error:
        raise UsageError(f"{path}: expected [Sequence] with frameRate and seqLength: {error}") from None
    if not (math.isfinite(fps) and fps > 0 and num_frames > 0):
        raise UsageError(f"{path}: expected frameRate and seqLength above 0, got {fps:g} and {num_frames}")
    return MotSequence(folder, fps, num_frames)


def holds_masks(path: Path) -> bool:
    """Whether a file has masks: its rows contain no commas. Raises UsageError."""
    return any("," not in text for _, text in itertools.islice(_lines(path), 1))


def read_boxes(path: Path, num_frames: int | None = None, *, with_ids: bool = True) -> BoxRows:
    """The rows of a file of boxes. The file may be empty.

    num_frames   number of frames of the sequence; None: unknown
    with_ids     False for detections, whose id column is ignored

    Raises UsageError, which names the line, for a row in another format, a frame beyond the sequence, or an id that
    occurs twice on a frame.
    """
    check = _RowChecker(num_frames)

    def row(text: str) -> tuple[int, int, list[float]]:
        fields = text.split(",")
        numbers = [float(field) for field in fields[:7]]
        if len(numbers) < 7 or not all(map(math.isfinite, numbers)):
            raise ValueError
        frame, track_id = check(numbers[0], numbers[1]) if with_ids else (check.frame(numbers[0]), 0)
        if min(numbers[4:6]) < 0:
            raise UsageError(f"expected width and height of 0 or more, got {fields[4]} and {fields[5]}")
        return frame, track_id, numbers[2:]

    rows = _parsed(path, "frame,id,left,top,width,height,score", row)
    frames, ids = (_column([entry[column] for entry in rows]) for column in range(2))
    table = np.array([numbers for _, _, numbers in rows], np.float64).reshape(-1, 5)
    return BoxRows(frames, ids, table[:, :4], table[:, 4])


def read_masks(path: Path, num_frames: int | None = None) -> MaskRows:
    """The rows of a file of masks, checked as by `read_boxes`. Ids of IGNORED regions may repeat."""
    check = _RowChecker(num_frames)

    def row(text: str) -> tuple[int, int, int, dict[str, Any]]:
        fields = text.split()
        if len(fields) != 6:
            raise ValueError
        class_id, height, width = (int(field) for field in fields[2:5])
        if not (0 <= class_id < 2**31 and 0 < height < 2**31 and 0 < width < 2**31):
            raise ValueError
        frame, track_id = check(float(fields[0]), float(fields[1]), unique=class_id != IGNORED)
        return frame, track_id, class_id, checked_rle(fields[5], (height, width))

    rows = _parsed(path, "frame id class height width counts", row)
    frames, ids, class_ids = (_column([entry[column] for entry in rows]) for column in range(3))
    return MaskRows(frames, ids, class_ids, [entry[3] for entry in rows])


def checked_rle(counts: str, hw: tuple[int, int]) -> dict[str, Any]:
    """A mask in pycocotools' form. Raises UsageError for damaged counts, on which pycocotools would hang or crash."""
    try:
        num_pixels = rle_num_pixels(counts.encode())
    except ValueError as error:
        raise UsageError(str(error)) from None
    if num_pixels != hw[0] * hw[1]:
        raise UsageError(f"RLE counts must add up to {hw[0]} * {hw[1]} pixels, got {num_pixels}")
    return {"size": list(hw), "counts": counts.encode()}


def write_boxes(path: Path, rows: BoxRows) -> None:
    """Writes results in MOTChallenge's format, sorted by frame and id, without rounding. Raises OutputError."""
    lines = [
        ",".join([str(frame), str(track_id), *map(_text, box), _text(value), "-1,-1,-1\n"])
        for frame, track_id, box, value in sorted(
            zip(rows.frames.tolist(), rows.ids.tolist(), rows.boxes_ltwh.tolist(), rows.values.tolist(), strict=True)
        )
    ]
    write_atomically(path, "".join(lines).encode())


def write_masks(path: Path, rows: MaskRows) -> None:
    """Writes results in the format of MOTS, sorted by frame and id. Raises OutputError."""
    order = np.lexsort((rows.ids, rows.frames)).tolist()
    table = np.stack((rows.frames, rows.ids, rows.class_ids), axis=1).tolist()
    lines = [
        " ".join([*map(str, table[row] + rows.rles[row]["size"]), rows.rles[row]["counts"].decode()]) + "\n"
        for row in order
    ]
    write_atomically(path, "".join(lines).encode())


def by_frame(frames: NDArray[np.int64], num_frames: int) -> list[NDArray[np.int64]]:
    """The row indices of each frame 1 … num_frames, in file order."""
    order = np.argsort(frames, kind="stable")
    return np.split(order, np.searchsorted(frames[order], np.arange(2, num_frames + 1)))


def to_xyxy(boxes_ltwh: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4) [left, top, width, height] with pixels numbered from 1 -> (N, 4) [x1, y1, x2, y2] with pixels from 0."""
    corner = boxes_ltwh[:, :2] - 1
    return np.concatenate((corner, corner + boxes_ltwh[:, 2:]), axis=1)


def from_xyxy(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `to_xyxy`."""
    return np.concatenate((boxes_xyxy[:, :2] + 1, boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]), axis=1)


class _RowChecker:
    """Checks the frame numbers and ids of a file. Raises UsageError."""

    def __init__(self, num_frames: int | None) -> None:
        self._num_frames = num_frames
        self._seen: set[tuple[int, int]] = set()

    def __call__(self, frame: float, track_id: float, *, unique: bool = True) -> tuple[int, int]:
        number = self.frame(frame)
        if not (0 <= track_id < 2**53 and track_id.is_integer()):
            raise UsageError(f"expected a whole number of 0 or more as id, got {track_id:g}")
        pair = number, int(track_id)
        if unique and pair in self._seen:
            raise UsageError(f"id {pair[1]} occurs twice on frame {number}")
        self._seen.add(pair)
        return pair

    def frame(self, frame: float) -> int:
        if not (frame >= 1 and frame.is_integer()):
            raise UsageError(f"expected a frame of 1 or more, got {frame:g}")
        if self._num_frames is not None and frame > self._num_frames:
            raise UsageError(f"frame {frame:.0f} in a sequence of {self._num_frames} (seqLength in its seqinfo.ini)")
        return int(frame)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number and the text of each line that is not blank. Raises UsageError."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {str(error.strerror).lower()}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: expected a text file in MOTChallenge's format") from None
    return ((number, line.strip()) for number, line in enumerate(content.splitlines(), 1) if line.strip())


def _parsed(path: Path, form: str, row: Callable[[str], _Row]) -> list[_Row]:
    """row(text) of each line.

    `row` raises ValueError for a line in another format and UsageError for an invalid number. `form` is the expected
    format, for the error. Raises UsageError with the line number.
    """
    rows = []
    for number, text in _lines(path):
        try:
            rows.append(row(text))
        except UsageError as error:
            raise UsageError(f"{path}, line {number}: {error}") from None
        except ValueError:
            raise UsageError(f"{path}, line {number}: expected {form}, got {text[:_MAX_SHOWN_CHARS]!r}") from None
    return rows


def _column(numbers: list[Any]) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _text(number: float) -> str:
    return repr(number).removesuffix(".0")
