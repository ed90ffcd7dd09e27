"""The table of exports: the files that a job can write for each stream, as `--save` names them.

The table holds names and texts only, so that the command line and the configuration read it without loading PyAV or
OpenCV. CONTRIBUTING.md, "Adding an export", lists what a further one needs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.contract.config import StreamConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One row of the table."""

    name: str
    """as given to `--save`"""
    module: str
    """import path of the module with `open_writer(path, stream, overwrite=…)`, which returns a `Writer` (see
    pipeline.exports.writer), or None where the file cannot be written for this stream"""
    description: str
    """one line for `--save`'s help"""
    suffix: str
    """the file is named STREAM_ID + suffix"""
    pictures_suffix: str | None = None
    """suffix for a stream of unrelated pictures, where it differs"""
    needs_pixels: bool = False
    """whether the writer reads the source's pictures; the decoder of a camera then keeps its packets for the writer"""
    is_default: bool = False
    """whether the file is written when `--save` is not given"""

    def path(self, folder: Path, stream: StreamConfig) -> Path:
        """The file, or the folder, that this export of `stream` writes in the output folder `folder`."""
        has_own_suffix = stream.separate_pictures and self.pictures_suffix is not None
        return folder / f"{stream.stream_id}{self.pictures_suffix if has_own_suffix else self.suffix}"

    def possible_paths(self, folder: Path, stream_id: str) -> list[Path]:
        """Every path that this export can have for a stream of any kind."""
        suffixes = [self.suffix] if self.pictures_suffix is None else [self.suffix, self.pictures_suffix]
        return [folder / f"{stream_id}{suffix}" for suffix in suffixes]


EXPORTS: dict[str, Export] = {
    export.name: export
    for export in [
        Export(
            name="jsonl",
            module="pipeline.exports.jsonl",
            description="result messages, one JSON object per line",
            suffix=".jsonl",
            is_default=True,
        ),
        Export(
            name="video",
            module="pipeline.exports.video",
            description="annotated video (annotated pictures for a source of pictures)",
            suffix=".mp4",
            pictures_suffix="-annotated",
            needs_pixels=True,
            is_default=True,
        ),
    ]
}
SUMMARY_NAME = "summary.json"
"""statistics of a job's streams, beside its exports"""
DEFAULT_EXPORTS = [export.name for export in EXPORTS.values() if export.is_default]


def has_content(path: Path) -> bool:
    """Whether `path` is a file that is not empty, or a folder that is not empty."""
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0


def check_source_safe(path: Path, streams: Iterable[StreamConfig]) -> None:
    """Raise ConfigError if `path` is the source of one of the streams, or a folder that contains one."""
    for stream in streams:
        source = Path(stream.source).resolve()
        if not stream.live and path.resolve() in (source, *source.parents):
            raise ConfigError(f"output: {path} is a source that a result would replace: give another --output")


def would_replace_error(path: Path) -> str:
    """The error line for a result that would replace the result of an earlier run."""
    return f"{path} holds results of an earlier run: add --overwrite to replace them, or give another --output"
