"""The `video` export: an annotated MP4 of a file or a camera, annotated pictures of a folder of pictures."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.contract.config import StreamConfig
from pipeline.errors import OutputError
from pipeline.exports.annotated_pictures import AnnotatedPicturesWriter
from pipeline.exports.file_video import FileVideoWriter
from pipeline.exports.live_video import LiveVideoWriter
from pipeline.exports.writer import Writer
from pipeline.segments import SegmentReader

_log = logging.getLogger(__name__)


def open_writer(path: Path, stream: StreamConfig, *, overwrite: bool) -> Writer | None:
    """The writer for the stream's kind of source; None, with a warning, where a camera's pictures cannot be reached."""
    if stream.separate_pictures:
        return AnnotatedPicturesWriter(path, stream)
    if not stream.live:
        return FileVideoWriter(path, stream)
    reason = "its decoder stores no pictures"
    if stream.segment_folder is not None:
        try:
            return LiveVideoWriter(path, SegmentReader(Path(stream.segment_folder)))
        except OutputError as error:
            reason = str(error)
    _log.warning(
        "no video of %s: %s; the video of a camera is written where decoder and sink belong to one job on one host",
        stream.stream_id,
        reason,
    )
    return None
