"""The pictures of a camera, kept for a while: how the annotated video of a live stream gets at them.

    decoder                                    folder on this host                        video sink
    open_source(…, on_packet=writer.take) ──▶ 000001-00001.segment, …-00002.segment ──▶ reader.read()

The camera's compressed packets are kept as they are: nothing is encoded again, and the sink decodes the very pictures
that decode saw, each with the same pts_s. The format is our own, as no container keeps a stream as it is: Matroska
rounds times to 1 ms, MPEG-TS holds few codecs, and neither takes a packet without a time, as the first of a camera
often is.

- `SegmentWriter(folder)`: take (for every packet), begin (the epoch is known), end (the connection is over)
- `SegmentReader(folder)`: read -> StoredPicture | None; removes what it has read
- `segment_folders(output, stream_ids)`: makes the folders of a job, and removes them whatever happens
"""

from __future__ import annotations

from pipeline.segments.folder import segment_folders
from pipeline.segments.reader import SegmentReader, StoredPicture
from pipeline.segments.writer import SegmentWriter

__all__ = ["SegmentReader", "SegmentWriter", "StoredPicture", "segment_folders"]
