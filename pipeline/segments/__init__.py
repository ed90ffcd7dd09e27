"""The segment store: a camera's compressed packets on disk, from which the sink decodes the annotated video.

    decoder                                    folder on this host                        video sink
    open_source(…, on_packet=writer.take) ──▶ 000001-00001.segment, …-00002.segment ──▶ reader.read()

The packets are stored without re-encoding, so the sink decodes the same pictures as decode did, with the same pts_s.
The format is our own because no container stores a stream unchanged: Matroska rounds times to 1 ms, MPEG-TS supports
few codecs, and neither stores a packet without a time, which the first packet of a camera often lacks.

- `SegmentWriter(folder)`: `take` stores a packet, `begin` sets the epoch of a connection, `end` closes its last segment
- `SegmentReader(folder)`: `read` returns the next StoredPicture, or None while there is none; what it reads is deleted
- `segment_folders(output, stream_ids)`: creates the folders of a job and removes them at its end
"""

from __future__ import annotations

from pipeline.segments.folder import segment_folders
from pipeline.segments.reader import SegmentReader, StoredPicture
from pipeline.segments.writer import SegmentWriter

__all__ = ["SegmentReader", "SegmentWriter", "StoredPicture", "segment_folders"]
