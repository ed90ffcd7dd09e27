"""Reads pictures from video files, folders of pictures, cameras and URLs.

    resolve_sources(["a.mp4", "photos/", "rtsp://…", "webcam:0"]) -> [ResolvedSource(source, kind, default_stream_id)]
    with open_source(source, kind, rtsp_transport="tcp", timeout_s=10.0) as reader:
        selection, converter = Selection(stride, max_fps, max_frames), Converter()
        for picture in reader:                                    # undamaged pictures, in presentation order
            frame_seq = selection.number(picture.pts_s)           # None: not selected; else 1, 2, 3, …
            if frame_seq is not None:
                frame = converter.to_i420(picture, (width, height))
                bgr = converter.to_bgr(picture)                   # (height, width, 3) uint8, upright
            if selection.done:
                break

Every reading of a file with the same Selection gives the same numbers, whether the pictures are converted or not.
`resolve_sources` raises UsageError, and the other functions raise SourceError; a message is one line with credentials
redacted.

- `reader`: width, height (of the upright first picture), fps (None: unknown), num_frames_expected (None: unknown),
  num_corrupt, has_audio, is_finite (False: a camera, where an end means that the connection was lost),
  sample_aspect_ratio. `open_source` decodes the first picture, so a reader yields at least one picture.
- `picture`: ordinal (from 1, of undamaged pictures), pts_s, width, height, arrived_monotonic_s, captured_at_ns, clock.
- Boxes refer to the picture as stored, rotation applied. Where pixels are not square, `picture.display_hw` is the size
  at which the model sees the picture; `picture.width` and `height` stay those of the stored pixels.
"""

from __future__ import annotations

from pipeline.source.colour import Converter
from pipeline.source.names import ResolvedSource, resolve_sources
from pipeline.source.opening import open_source
from pipeline.source.picture import Picture
from pipeline.source.reader import Reader
from pipeline.source.selection import Selection

__all__ = [
    "Converter",
    "Picture",
    "Reader",
    "ResolvedSource",
    "Selection",
    "open_source",
    "resolve_sources",
]
