"""Pictures from the outside world: files, folders of pictures, cameras, URLs.

    resolve_sources(["a.mp4", "photos/", "rtsp://…", "webcam:0"]) -> [ResolvedSource(source, kind, default_stream_id)]
    with open_source(source, kind, rtsp_transport="tcp", timeout_s=10.0) as reader:
        selection, converter = Selection(stride, max_fps, max_frames), Converter()
        for picture in reader:                                    # undamaged pictures only, in presentation order
            frame_seq = selection.number(picture.pts_s)           # None: left out; the n-th selected picture is n
            if frame_seq is not None:
                frame = converter.to_i420(picture, (width, height))
                bgr = converter.to_bgr(picture)                   # (height, width, 3) uint8, as a person sees it
            if selection.done:
                break

Whoever reads the same file with the same Selection gets the same numbers, converted or not: a picture costs a
conversion only when asked for. Errors: UsageError from resolve_sources, SourceError from everything else; one line,
credentials redacted.

- `reader`: width, height (of the first picture, as seen), fps (None: unknown), num_frames_expected (None: unknown),
  num_corrupt, has_audio, is_finite (False: a camera, whose end is a loss), sample_aspect_ratio. `open_source` decodes
  the first picture, so what it returns has at least one.
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
