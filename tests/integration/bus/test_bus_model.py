"""Random sequences of work, crashes and lost replies: the result log always covers every frame number once."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import result_samples
from support.bus_parts import Clock, Job
from support.redis_server import RedisServer

from pipeline.bus import Bus, FrameQueue, FrameWriter, Offer, QueuedFrame, ResultWriter, seq_range
from pipeline.bus.frame_queue import INFER_LEASE_S
from pipeline.bus.lease import LEASE_S
from pipeline.contract.results import AnyResult
from pipeline.contract.wire import BusMessage, FrameDetections, SourceEnd
from pipeline.errors import FencedError, PositionMovedError

NUM_STEPS = 1000


class World:
    """A decoder, two infer workers and a tracker of one job. Each of them may be killed at any step.

    zombies   writes of replaced processes that are still to come
    """

    def __init__(self, bus: Bus, clock: Clock, *, live: bool, seed: int) -> None:
        self.random = random.Random(seed)
        self.clock = clock
        self.live = live
        self.job = Job(bus, live=live, sinks=["jsonl"], max_in_flight=6, log_bytes=1 << 30)
        self.zombies: list[Callable[[], object]] = []
        self.held: dict[str, list[QueuedFrame]] = {}
        self.inferred: list[int] = []
        self.start_decoder()
        self.start_tracker()
        self.queues: dict[str, FrameQueue] = {}
        for name in ("w1", "w2"):
            self.start_worker(name)

    # -- starts and kills ----------------------------------------------------------------------------------------------

    def take(self, end: FrameWriter | ResultWriter) -> None:
        while not end.lease.try_take():
            self.clock.now_s += LEASE_S

    def start_decoder(self) -> None:
        self.writer = self.job.bus.frame_writer(self.job.stream)
        self.take(self.writer)
        self.writer.open()

    def kill_decoder(self) -> None:
        old, header = self.writer, self.job.header(self.writer)
        self.zombies.append(lambda: old.offer(header, memoryview(b"x" * 768)))
        self.start_decoder()

    def start_tracker(self) -> None:
        self.tracker = self.job.bus.result_writer(self.job.stream)
        self.take(self.tracker)
        self.load()

    def load(self) -> None:
        position = self.tracker.load()
        assert position is not None
        self.seq, self.waiting = position.seq, {}

    def kill_tracker(self) -> None:
        old, seq = self.tracker, self.seq
        self.zombies.append(lambda: self.job.commit(old, seq + 1))
        self.start_tracker()

    def start_worker(self, name: str) -> None:
        self.queues[name] = self.job.bus.frame_queue(name)
        self.queues[name].set_streams(["cam1"])
        self.held[name] = []

    def kill_worker(self) -> None:
        name = self.random.choice(list(self.queues))
        old, held = self.queues[name], self.held[name]
        if self.random.random() < 0.5:
            self.zombies.append(lambda: self.job.answer(old, held))
        self.start_worker(name)

    def lose_worker(self) -> None:
        """Replace a worker by one with another name, so that its pending frames must be claimed."""
        name = self.random.choice(list(self.queues))
        self.queues.pop(name)
        self.start_worker(f"w{self.random.randrange(1000)}")
        self.clock.now_s += INFER_LEASE_S

    def wake_zombie(self) -> None:
        """Execute a write of a paused process that wakes up after another process has replaced it."""
        if self.zombies:
            zombie = self.zombies.pop(self.random.randrange(len(self.zombies)))
            try:
                zombie()
            except (FencedError, PositionMovedError):
                return

    # -- work ---------------------------------------------------------------------------------------------------------

    def offer(self) -> None:
        for _ in range(self.random.randint(1, 4)):
            if self.job.offer(self.writer) == [Offer.FULL] and self.live:
                self.writer.skip("overflow", "the bus was full")

    def offer_to_full_log(self) -> None:
        """Offer while the log is full, so that a live decoder skips frames."""
        self.job.bus.client.hincrby(self.job.keys.state, "results_bytes", 1 << 40)
        self.offer()
        self.job.bus.client.hincrby(self.job.keys.state, "results_bytes", -(1 << 40))

    def read(self) -> None:
        name = self.random.choice(list(self.queues))
        if not self.held[name]:
            pending = self.queues[name].read_pending()
            self.held[name] = [pending] if pending else self.queues[name].read(self.random.randint(1, 4))

    def answer(self) -> None:
        name = self.random.choice(list(self.queues))
        held = self.held[name]
        self.random.shuffle(held)
        while held:
            self.job.answer(self.queues[name], [held.pop()])
            if self.random.random() < 0.2:
                return

    def track(self) -> None:
        try:
            for entry_id, message in self.tracker.read():
                self.store(entry_id, message)
            while (found := self.waiting.pop(self.seq + 1, None)) is not None:
                self.commit(*found)
                if self.random.random() < 0.1:
                    return
        except PositionMovedError:
            self.load()

    def store(self, entry_id: bytes, message: BusMessage) -> None:
        first, last = seq_range(message)
        if last <= self.seq or isinstance(message, SourceEnd):
            self.tracker.discard([entry_id])
        else:
            self.waiting[max(first, self.seq + 1)] = (entry_id, message)

    def commit(self, entry_id: bytes, message: BusMessage) -> None:
        _, last = seq_range(message)
        result: AnyResult = self.job.result(last)
        if not isinstance(message, FrameDetections):
            result = result_samples.gap(self.seq + 1, last, message.cause)
        times = 2 if self.random.random() < 0.1 else 1  # if a reply is lost, the commit is repeated
        for _ in range(times):
            self.tracker.commit(
                seq_before=self.seq,
                seq_after=last,
                session=message.session if not isinstance(message, FrameDetections) else message.header.session,
                results=[(f"{last}-0", result)],
                consumed=[entry_id],
                checkpoint=b"",
            )
        self.seq = last

    def steps(self) -> list[Callable[[], None]]:
        rare = [self.kill_decoder, self.kill_tracker, self.kill_worker, self.lose_worker, self.offer_to_full_log]
        return [*[self.offer, self.read, self.answer, self.track] * 12, *rare, self.wake_zombie]

    def finish(self) -> None:
        """Process all frames in flight without further kills."""
        for _ in range(200):
            self.clock.now_s += INFER_LEASE_S
            for name in self.queues:
                self.held[name] = []
                self.queues[name].reread_pending()
                while (pending := self.queues[name].read_pending()) is not None:
                    self.job.answer(self.queues[name], [pending])
                self.job.answer(self.queues[name], self.queues[name].read(16))
            self.track()
            if self.seq == self.tracker.refresh_last_assigned():
                return
        raise AssertionError(f"no progress at frame {self.seq} of {self.tracker.refresh_last_assigned()}")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("live", [False, True], ids=["file", "live"])
def test_frames_and_gaps_cover_every_number_once_and_in_order(bus: Bus, clock: Clock, live: bool, seed: int) -> None:
    world = World(bus, clock, live=live, seed=seed)
    for step in range(NUM_STEPS):
        world.random.choice(world.steps())()
        if step % 10:
            continue
        covered = world.job.covered()
        assert covered == list(range(1, len(covered) + 1)), f"after step {step}"
    world.finish()
    covered = world.job.covered()
    assert covered == list(range(1, int(world.job.state("last") or 0) + 1))
    assert len(covered) > 50
    assert world.job.frames() == []
    assert len(world.job.pixel_keys()) <= 1  # of a frame that the bus has not accepted
    bus.finish_job("cam1", 60)
    assert world.job.pixel_keys() == []


def test_no_number_is_lost_if_the_server_loses_its_latest_writes(
    own_redis: Callable[..., RedisServer], clock: Clock
) -> None:
    """The server is killed repeatedly, and the AOF is truncated each time as after a power cut."""
    server = own_redis(aof="always")
    bus = Bus(server.url)
    world = World(bus, clock, live=False, seed=7)
    kept_bytes = newest_aof(server).stat().st_size
    for _ in range(6):
        for _ in range(60):
            world.random.choice([world.offer, world.read, world.answer, world.track])()
        server.kill()
        with newest_aof(server).open("r+b") as file:
            size = file.seek(0, 2)
            file.truncate(max(kept_bytes, size - world.random.randint(1, 4000)))
        server.start()
        rewrite_aof(bus)
        kept_bytes = newest_aof(server).stat().st_size
        world.writer.open()
        world.load()
        for name in world.queues:
            world.start_worker(name)
    world.finish()
    covered = world.job.covered()
    assert covered == list(range(1, len(covered) + 1))
    assert len(covered) > 30
    bus.close()


def newest_aof(server: RedisServer) -> Path:
    """Return the AOF to which the server appends."""
    return max(server.folder.rglob("*.aof"), key=lambda path: path.stat().st_mtime_ns)


def rewrite_aof(bus: Bus) -> None:
    """Rewrite the AOF, because new writes must not follow a truncated command."""
    bus.client.bgrewriteaof()
    while True:
        info = bus.client.info("persistence")
        if not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
            return
        time.sleep(0.01)
