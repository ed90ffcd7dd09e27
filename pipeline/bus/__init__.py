"""The bus: everything that reads or writes Redis. docs/contract.md describes the keys and the rules."""

from pipeline.bus.bus import Bus
from pipeline.bus.connection import LOST_CONNECTION, StreamKeys
from pipeline.bus.embedded import EmbeddedRedis
from pipeline.bus.frame_queue import FrameQueue, QueuedFrame
from pipeline.bus.frame_writer import FrameWriter, Offer, Opened
from pipeline.bus.result_writer import ResultWriter, seq_range
from pipeline.bus.status import StreamStatus, WorkerStatus

__all__ = [
    "LOST_CONNECTION",
    "Bus",
    "EmbeddedRedis",
    "FrameQueue",
    "FrameWriter",
    "Offer",
    "Opened",
    "QueuedFrame",
    "ResultWriter",
    "StreamKeys",
    "StreamStatus",
    "WorkerStatus",
    "seq_range",
]
