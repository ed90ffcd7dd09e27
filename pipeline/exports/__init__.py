"""Writers of a job's outputs: the result messages as JSON lines, the annotated video, the summary."""

from __future__ import annotations

from pipeline.exports.jsonl import JsonlTail, JsonlWriter, read_jsonl
from pipeline.exports.live_video import LiveVideoWriter
from pipeline.exports.summary import StreamSummary, Summary, write_summary
from pipeline.exports.video import VideoWriter

__all__ = [
    "JsonlTail",
    "JsonlWriter",
    "LiveVideoWriter",
    "StreamSummary",
    "Summary",
    "VideoWriter",
    "read_jsonl",
    "write_summary",
]
