"""Throughput of frames over the bus, by reply parser and by allocator setting.

    python -m benchmarks.bus [--frames N] [--runs N] [--case TEXT] [--json]

One process writes I420 frames as a decoder does, another reads and delivers them as an infer worker does, through a
private server on a Unix socket. Each row is one combination: redis-py's own parser or hiredis, and glibc's malloc with
its defaults or keeping large blocks (`pipeline.bus.malloc`). The combinations take turns; the peer is the first one.
Checksums are compared before a figure is printed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib

import numpy as np

from benchmarks import report

SIZES_WH = {"street": (682, 384), "resnet50": (1332, 750), "1080p": (1920, 1080)}
"""(width, height) of the frames on the bus for a 16:9 source"""
CHOICES = [(parser, blocks) for parser in ("pure", "hiredis") for blocks in ("glibc", "large blocks")]
MAX_IN_FLIGHT = 16
PROBE_FRAMES = 4
"""number of different frames, so that a frame with the pixels of another one is noticed"""


def _picture(index: int, num_bytes: int) -> bytes:
    return bytes([index % PROBE_FRAMES + 1]) * num_bytes


def _write(url: str, size_wh: tuple[int, int], num_frames: int) -> None:
    from pipeline.bus import Bus, Offer
    from pipeline.contract.arrays import ColourMatrix
    from pipeline.contract.wire import FrameHeader

    bus = Bus(url)
    stream = bus.streams()["bench"]
    writer = bus.frame_writer(stream)
    writer.lease.try_take()
    writer.open()
    width, height = size_wh
    for index in range(num_frames):
        header = FrameHeader(
            stream_id="bench", session=writer.session, frame_seq=writer.next_seq, stream_epoch=1, pts_s=0.0,
            captured_at_ns=None, clock="file", arrived_at_ns=0, decode_ms=0.0, max_staleness_s=None, min_score=0.5,
            class_ids=None, width=width, height=height, source_width=width, source_height=height,
            matrix=ColourMatrix.BT709, full_range=False,
        )  # fmt: skip
        pixels = memoryview(_picture(index, width * height * 3 // 2))
        while writer.offer(header, pixels) is Offer.FULL:
            time.sleep(0.0005)


def _read(url: str, size_wh: tuple[int, int], num_frames: int) -> None:
    from pipeline.bus import Bus
    from pipeline.contract.arrays import Detections
    from pipeline.contract.wire import FrameDetections

    bus = Bus(url)
    queue = bus.frame_queue("bench")
    queue.set_streams(["bench"])
    num_bytes = size_wh[0] * size_wh[1] * 3 // 2
    expected = [zlib.crc32(_picture(index, num_bytes)) for index in range(PROBE_FRAMES)]
    num_read, start_s = 0, 0.0
    while num_read < num_frames:
        frames = queue.read(4)
        if not frames:
            queue.wait(0.5)
        for frame in frames:
            start_s = start_s or time.perf_counter()
            index = frame.header.frame_seq - 1
            if index < PROBE_FRAMES and zlib.crc32(frame.pixels or b"") != expected[index]:
                sys.exit(f"frame {index + 1} came back with other pixels")
            found = Detections.empty(*size_wh)
            queue.deliver(frame, FrameDetections.pack(frame.header, found, model="bench", queue_ms=0.0, infer_ms=0.0))
            num_read += 1
            # In place of the tracker, which advances the position.
            bus.client.hset("ms:{bench}:state", "seq", frame.header.frame_seq)
    print((num_read - 1) / (time.perf_counter() - start_s))


def _measure(size_wh: tuple[int, int], parser: str, blocks: str, num_frames: int) -> float:
    """Frames per second."""
    from pipeline.bus import Bus, EmbeddedRedis
    from pipeline.contract.config import StreamConfig

    stream = StreamConfig(
        stream_id="bench",
        source="bench",
        kind="file",
        policy="lossless",
        conf=0.5,
        class_ids=None,
        max_staleness_s=1.0,
        stride=1,
        max_fps=None,
        max_frames=None,
        rtsp_transport="tcp",
        model="street",
        max_in_flight=MAX_IN_FLIGHT,
        log_bytes=1 << 26,
    )
    with EmbeddedRedis(1 << 30) as server:
        Bus(server.url).begin_job(stream, [])
        arguments = [server.url, str(size_wh[0]), str(size_wh[1]), str(num_frames), parser, blocks]
        command = [sys.executable, "-m", "benchmarks.bus"]
        reader = subprocess.Popen([*command, "--role", "read", *arguments], stdout=subprocess.PIPE)
        writer = subprocess.Popen([*command, "--role", "write", *arguments])
        output = reader.communicate(timeout=300)[0]
        if reader.returncode or writer.wait(30):
            sys.exit("parity failed: no figures")
        return float(output)


def _play_role(role: str, url: str, width: str, height: str, num_frames: str, parser: str, blocks: str) -> None:
    if parser == "pure":
        sys.modules["hiredis"] = None  # type: ignore[assignment]
    else:
        import hiredis  # noqa: F401
    from pipeline.bus.malloc import keep_large_blocks

    if blocks != "glibc":
        keep_large_blocks()
    play = _write if role == "write" else _read
    play(url, (int(width), int(height)), int(num_frames))


def main() -> None:
    if sys.argv[1:2] == ["--role"]:
        _play_role(*sys.argv[2:])
        return
    parser = report.arguments("benchmarks.bus", __doc__, num_runs=3)
    parser.add_argument("--frames", type=int, default=400, help="frames per measurement (default 400)")
    arguments = parser.parse_args()
    names = report.selected(list(SIZES_WH), arguments.case)
    device = f"{report.cpu_name()}, {os.cpu_count()} cores"
    table = report.Report(device, ("redis", "hiredis"), " ".join(CHOICES[0]), as_json=arguments.json)
    for name in names:
        turns = [
            [_measure(SIZES_WH[name], *choice, arguments.frames) for choice in CHOICES] for _ in range(arguments.runs)
        ]
        by_choice = np.array(turns).T
        for (reply_parser, blocks), frames_per_s in zip(CHOICES, by_choice, strict=True):
            table.add(f"{name}: {reply_parser}, {blocks}", frames_per_s, by_choice[0], "frames/s")


if __name__ == "__main__":
    main()
