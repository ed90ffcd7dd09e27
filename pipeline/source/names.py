"""Resolves the SOURCE arguments of a user to the sources to open.

| argument | kind | streams |
|---|---|---|
| a video file, `demo` | file | one |
| a picture | pictures | one, of one picture (a multi-page TIFF: of its pages) |
| an animated picture (WebP, PNG) | animation | one |
| a folder or a glob of videos | file | one per video, in natural name order |
| a folder or a quoted glob of pictures | pictures | one: its pictures in natural name order |
| http(s) URL whose path ends in an extension of URL_FILE_EXTENSIONS | file | one |
| any other http(s) URL: HLS (.m3u8), MJPEG, no or unknown extension | live | one |
| rtsp://, rtsps://, `webcam:N`, N (if no file has this name), /dev/videoN | live | one |

Folders are not searched recursively. Hidden files, and files that are neither videos nor pictures, are ignored.
"""

from __future__ import annotations

import glob
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.contract.config import SourceKind
from pipeline.contract.source_kinds import SOURCE_KINDS, kind_of_extension, kind_of_scheme
from pipeline.errors import UsageError
from pipeline.redaction import redact_url
from pipeline.source.picture_files import is_animation

PICTURE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
URL_FILE_EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".ogv", ".3gp", ".mxf", ".gif"}
)
# Raw and streaming formats: finite on disk, usually endless over HTTP.
VIDEO_EXTENSIONS = URL_FILE_EXTENSIONS | {
    ".ts", ".mts", ".m2ts", ".flv", ".vob", ".asf", ".divx", ".f4v", ".ivf", ".y4m", ".mjpg", ".mjpeg",
    ".h264", ".264", ".h265", ".265", ".hevc", ".av1", ".obu",
}  # fmt: skip

STREAM_ID_LENGTH = 64

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_WEBCAM = re.compile(r"webcam:[0-9]+|/dev/video[0-9]+")


@dataclass(frozen=True, slots=True)
class ResolvedSource:
    """A source for `open_source`, and a stream id that is unique among the sources of the call."""

    source: str
    kind: SourceKind
    default_stream_id: str
    base_stream_id: str
    """name of the source; `default_stream_id` is this name, with a number appended if another source has it"""


def resolve_sources(arguments: Sequence[str]) -> list[ResolvedSource]:
    """Return the sources that the arguments name, in the order of the arguments.

    Raises UsageError for a file that does not exist, and for a folder or pattern without videos and pictures.
    """
    found = [pair for argument in arguments for pair in _resolve(argument)]
    taken: set[str] = set()
    resolved = []
    for source, kind in found:
        base = _base_id(source, kind)
        stream_id = _unique(base, taken)
        resolved.append(ResolvedSource(source, kind, stream_id, base or stream_id))
    return resolved


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Return the sort key for natural order: frame2 precedes frame10, and case is ignored."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts if part], name


def list_pictures(source: str) -> list[Path]:
    """Return the picture files of a source of kind `pictures` (a file, a folder or a glob), in natural name order."""
    path = Path(source)
    if path.is_dir():
        candidates: Iterable[Path] = path.iterdir()
    elif path.exists():
        candidates = [path]
    else:
        candidates = map(Path, glob.glob(source))
    return [file for file in _visible_files(candidates) if _is_picture(file)]


def _resolve(argument: str) -> list[tuple[str, SourceKind]]:
    if argument == "demo":
        return [("demo", "file")]
    if _WEBCAM.fullmatch(argument):
        return [(argument, "live")]
    scheme = _SCHEME.match(argument)
    if scheme and scheme[1].lower() != "file":
        return [(argument, _kind_of_url(argument, scheme[1].lower()))]
    name = unquote(urlsplit(argument).path) if scheme else argument
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return _resolve_many(str(path), list(path.iterdir()), f"the folder {name!r}")
    if path.exists():
        if not path.is_file():
            raise UsageError(f"source {name!r}: expected a file, a folder or a camera, got a special file")
        return [(str(path), _kind_of_file(path))]
    if argument.isascii() and argument.isdecimal():
        return [(f"webcam:{argument}", "live")]
    if glob.has_magic(name):
        return _resolve_many(str(path), [Path(match) for match in glob.glob(str(path))], f"the pattern {name!r}")
    raise UsageError(
        f"source {redact_url(name)!r} does not exist: give a file, a folder, a pattern, a URL, webcam:0 or demo"
    )


def _resolve_many(source: str, candidates: Iterable[Path], what: str) -> list[tuple[str, SourceKind]]:
    files = _visible_files(candidates)
    pictures = [file for file in files if _is_picture(file)]
    videos = [file for file in files if file.suffix.lower() in VIDEO_EXTENSIONS or kind_of_extension(file.suffix)]
    if pictures and videos:
        raise UsageError(
            f"{what} holds {len(pictures)} pictures and {len(videos)} videos: say which with a pattern such as "
            f"'*{pictures[0].suffix}' or '*{videos[0].suffix}'"
        )
    if pictures:
        return [(source, "pictures")]
    if videos:
        return [(str(file), _kind_of_file(file)) for file in videos]
    raise UsageError(f"{what} holds no video and no picture: check the name, or give the files themselves")


def _visible_files(candidates: Iterable[Path]) -> list[Path]:
    files = [file for file in candidates if file.is_file() and not file.name.startswith(".")]
    return sorted(files, key=lambda file: (natural_key(str(file.parent)), natural_key(file.name)))


def _kind_of_file(path: Path) -> SourceKind:
    if not _is_picture(path):
        return kind_of_extension(path.suffix) or "file"
    return "animation" if is_animation(path) else "pictures"


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_EXTENSIONS


def _kind_of_url(url: str, scheme: str) -> SourceKind:
    kind = kind_of_scheme(scheme)
    if kind is None and scheme not in {"http", "https"}:
        raise UsageError(f"source {redact_url(url)}: expected rtsp, rtsps, http or https, got {scheme}")
    try:
        parts = urlsplit(url)
        host = parts.hostname
        extension = os.path.splitext(parts.path)[1].lower()
    except ValueError:
        host = extension = ""
    if not host:
        raise UsageError(f"source {redact_url(url)}: expected {scheme}://HOST/…, found no host")
    return kind or ("file" if extension in URL_FILE_EXTENSIONS else "live")


def _base_id(source: str, kind: SourceKind) -> str | None:
    """Return a stream id made from the last component of the path, or None for a live source."""
    if SOURCE_KINDS[kind].is_live:
        return None
    path = Path(urlsplit(source).path if _SCHEME.match(source) else source)
    if glob.has_magic(path.name) and not path.exists():
        path = path.parent
    path = path if path.name else path.resolve()
    name = path.name if path.is_dir() else path.stem
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", ascii_name).strip("._-")[:STREAM_ID_LENGTH] or "video"


def _unique(base: str | None, taken: set[str]) -> str:
    """Return `base`, or its first numbered variant that is not in `taken`, ignoring case, and add it to `taken`."""
    number = 1
    while True:
        suffix = f"-{number}" if number > 1 else ""
        candidate = f"cam{number}" if base is None else base[: STREAM_ID_LENGTH - len(suffix)] + suffix
        if candidate.casefold() not in taken:
            taken.add(candidate.casefold())
            return candidate
        number += 1
