"""The readers of picture files: a set of pictures (a folder, a glob or one file), and an animation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av

from pipeline.errors import SourceError
from pipeline.source.names import list_pictures
from pipeline.source.picture import UPRIGHT
from pipeline.source.picture_files import UNREADABLE, frame_numbers, open_picture, reason_of, to_rgb
from pipeline.source.reader import Decoded, OpenOptions, Reader

PICTURES_PER_S = 25.0
DEFAULT_FRAME_S = 0.1
"""duration of an animation frame that states none; browsers use the same value"""
MAX_NAMED_FILES = 5


class PicturesReader(Reader):
    """Reads every picture of a set in natural order of the file names, each in its own size.

    The n-th picture (from 0) is shown at n / 25 seconds. A file of several pages yields each page. A file that cannot
    be read counts as corrupt and is named in `unreadable`; the other pictures keep their times.
    """

    fps = PICTURES_PER_S

    def __init__(self, source: str) -> None:
        self._paths = list_pictures(source)
        if not self._paths:
            raise SourceError(f"{source} holds no pictures any more: expected .jpg, .png, .webp, .bmp or .tif files")
        self._base = Path(os.path.commonpath([path.parent for path in self._paths]))
        self._unreadable: list[str] = []
        self.num_frames_expected = len(self._paths)
        super().__init__(source)

    def close(self) -> None:
        """Do nothing: no file stays open between pictures."""

    @property
    def unreadable(self) -> str:
        """Message that names the files that could not be read so far, with Pillow's reason; empty if there are none."""
        if not self._unreadable:
            return ""
        names = self._unreadable[:MAX_NAMED_FILES]
        num_more = len(self._unreadable) - len(names)
        names += [f"and {num_more} more"] if num_more else []
        return f"{len(self._unreadable)} of {len(self._paths)} picture files cannot be read: {', '.join(names)}"

    def _no_picture_reason(self) -> str:
        return f": {self.unreadable}"

    def _decode(self) -> Iterator[Decoded]:
        index = 0
        for path in self._paths:
            name = _name_of(path.relative_to(self._base))
            try:
                with open_picture(path) as image:
                    pages = frame_numbers(image)
                    for number in pages:
                        yield self._decoded(image, number, index, name if len(pages) == 1 else _page_name(name, number))
                        index += 1
            except UNREADABLE as error:
                self.num_corrupt += 1
                self._unreadable.append(f"{name} ({reason_of(error)})")
                index += 1

    def _decoded(self, image: Any, number: int, index: int, name: str) -> Decoded:
        image.seek(number)
        frame = av.VideoFrame.from_ndarray(to_rgb(image), format="rgb24")
        return Decoded(frame, index / PICTURES_PER_S, UPRIGHT, source_name=name)


class AnimationReader(Reader):
    """Reads the frames of an animated WebP or PNG file, each shown for its own duration."""

    def __init__(self, source: str) -> None:
        with ExitStack() as resources:
            try:
                self._image: Any = resources.enter_context(open_picture(Path(source)))
                self._numbers = frame_numbers(self._image)
            except UNREADABLE as error:
                raise SourceError(f"{source} cannot be read: {reason_of(error)}; expected an animation") from None
            self._resources = resources.pop_all()
        self.num_frames_expected = len(self._numbers)
        super().__init__(source)

    def close(self) -> None:
        """Close the file; may be called more than once."""
        self._resources.close()

    def _decode(self) -> Iterator[Decoded]:
        pts_s = 0.0
        for number in self._numbers:
            try:
                self._image.seek(number)
                rgb = to_rgb(self._image)
            except UNREADABLE:  # each frame is drawn over the previous frame, so no later frame can be decoded
                self.num_corrupt += 1
                return
            duration_s = (self._image.info.get("duration") or 0.0) / 1000 or DEFAULT_FRAME_S
            if self.fps is None:
                self.fps = 1 / duration_s
            yield Decoded(av.VideoFrame.from_ndarray(rgb, format="rgb24"), pts_s, UPRIGHT)
            pts_s += duration_s


def open_pictures(source: str, options: OpenOptions) -> Reader:
    """Open a set of pictures. Raises SourceError."""
    return PicturesReader(source)


def open_animation(source: str, options: OpenOptions) -> Reader:
    """Open an animation. Raises SourceError."""
    return AnimationReader(source)


def _page_name(name: str, number: int) -> str:
    """Return the name of a page: `scan.tif`, 1 -> `scan#2.tif`."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}#{number + 1}{suffix}"


def _name_of(path: Path) -> str:
    """Return the path as text; bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(path).decode(errors="replace")
