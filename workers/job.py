"""One job on this host, from its start to its end.

The command line calls `run_job`. The library starts `python -m workers job`, which reads the JSON of
`pipeline.job.build.encode_job` from standard input.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import msgspec

from ops.cache import set_cache_folders
from pipeline.bus import LOST_CONNECTION, Bus, EmbeddedRedis, StreamStatus, WorkerStatus
from pipeline.contract.exit_codes import EXIT_ABORTED, EXIT_INTERRUPTED, EXIT_USAGE, SUPERVISED
from pipeline.contract.exports import EXPORTS
from pipeline.errors import BusError, MaskStreamError, UsageError
from pipeline.job.build import MIB, Job, decode_job, demo_source
from pipeline.segments import segment_folders
from pipeline.synthetic import demo_video
from workers.report import JobObserver
from workers.supervisor import Supervisor


def run_job(job: Job, observer: JobObserver) -> int:
    """Run a job to its end and return the exit code of the command.

    0: every stream ran to its end. 1: a stream or an output failed, or a source file ended early. 130: SIGINT or
    SIGTERM ended the job.

    Raises UsageError or BusError if the job cannot start, and MaskStreamError if it cannot continue.
    """
    set_cache_folders()  # the workers inherit them
    with ExitStack() as stack:
        server = None
        if job.redis_url is None:
            server = stack.enter_context(EmbeddedRedis(job.redis_memory_mb * MIB))
        bus = Bus(server.url if server else str(job.redis_url))
        stack.callback(bus.close)
        bus.check()
        stack.enter_context(bus.explained_errors())
        job = with_segment_folders(_with_demo_rendered(job, observer), stack)
        return Supervisor(job, bus, server, observer).run()


def _with_demo_rendered(job: Job, observer: JobObserver) -> Job:
    """The job with the source `demo` replaced by a video file, rendered into the output folder."""
    streams = []
    for stream in job.streams:
        if stream.source == "demo":
            path = demo_source(job.output, stream.stream_id)
            observer.message("info", f"rendering the demo scene to {path}")
            demo_video(path)
            stream = msgspec.structs.replace(stream, source=str(path))
        streams.append(stream)
    return replace(job, streams=streams)


def with_segment_folders(job: Job, stack: ExitStack) -> Job:
    """The job with a segment folder for each camera whose video is saved; `stack` removes the folders."""
    needs_pixels = any(EXPORTS[name].needs_pixels for name in job.save)
    cameras = [stream.stream_id for stream in job.streams if stream.live and needs_pixels]
    folders = stack.enter_context(segment_folders(job.output, cameras))
    streams = [
        msgspec.structs.replace(stream, segment_folder=str(folders[stream.stream_id]))
        if stream.stream_id in folders
        else stream
        for stream in job.streams
    ]
    return replace(job, streams=streams)


class ErrorPrinter:
    """The observer of a job without a terminal: prints each error as one line to standard error."""

    def __init__(self) -> None:
        self.began = False
        """whether the job has reported the status of a stream"""

    def update(self, statuses: Sequence[StreamStatus], workers: Sequence[WorkerStatus]) -> None:
        """Take note of a status."""
        self.began = self.began or bool(statuses)

    def message(self, level: str, text: str) -> None:
        """Print an error; other levels are dropped."""
        if level == "error":
            print(f"maskstream: error: {text}", file=sys.stderr, flush=True)


def run_encoded_job(encoded: bytes) -> int:
    """Run the job whose JSON is `encoded`.

    Returns the exit code of `run_job`. After an error it prints one line and returns 2 if the job could not start, 5 if
    it could not continue.
    """
    observer = ErrorPrinter()
    if SUPERVISED in os.environ:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        return run_job(decode_job(encoded), observer)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except UsageError as error:
        observer.message("error", str(error))
        return EXIT_USAGE
    except (BusError, *LOST_CONNECTION) as error:
        observer.message("error", str(error))
        return EXIT_ABORTED if observer.began else EXIT_USAGE
    except (MaskStreamError, OSError) as error:
        observer.message("error", str(error))
        return EXIT_ABORTED


def _stop_with_parent() -> None:
    """Stop the job once the parent has closed the other end of standard input, which happens however it ends."""
    while os.read(0, 4096):
        pass
    for _ in range(2):  # the second signal skips draining: nobody reads the results any more
        os.kill(os.getpid(), signal.SIGTERM)
