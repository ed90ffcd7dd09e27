"""The track worker: for each stream whose lease it holds, it tracks the detections in order and commits the results."""

from __future__ import annotations

import time

from pipeline.bus import LOST_CONNECTION, Bus
from pipeline.bus.stream_wait import wait_for_entries
from pipeline.contract.arrays import Detections
from pipeline.errors import FencedError, JobLostError
from pipeline.tracking.tracker import TrackerConfig
from pipeline.tracking.trackers import make_tracker
from workers.base import Life, Reconnecting, log, log_outage
from workers.roles.track import TrackTask
from workers.stream_tracker import StreamTracker

IDLE_WAIT_S = 0.25
REFRESH_INTERVAL_S = 1.0


def run(task: TrackTask, life: Life) -> None:
    """Run the worker until it is asked to stop."""
    bus = Bus(task.redis_url)
    bus.beat("track", task.name, "starting")
    # The first update compiles the tracker, or loads it from the cache of compiled code.
    make_tracker(TrackerConfig()).update(Detections.empty(2, 2), 1, 0.0)
    try:
        TrackWorker(task, bus, life).run()
    finally:
        bus.forget_worker("track", task.name)


class TrackWorker:
    """Tracks every stream of the bus whose lease no other track worker holds."""

    def __init__(self, task: TrackTask, bus: Bus, life: Life) -> None:
        self._task = task
        self._bus = bus
        self._life = life
        self._reconnecting = Reconnecting(life)
        self._trackers: dict[str, StreamTracker] = {}
        self._refresh_at_s = 0.0

    def run(self) -> None:
        """Work until asked to stop, then give the leases back."""
        log.info("ready")
        while not self._life.stopping:
            try:
                self._step()
            except LOST_CONNECTION as error:
                self._reconnecting.failed(error)
                for tracker in self._trackers.values():
                    tracker.forget()
            else:
                self._reconnecting.succeeded()
        for tracker in self._trackers.values():
            tracker.release()

    def _step(self) -> None:
        if time.monotonic() >= self._refresh_at_s:
            self._refresh()
        for stream_id, tracker in list(self._trackers.items()):
            try:
                tracker.step()
            except FencedError as error:
                log.warning("%s", error)
                self._drop(stream_id)
            except JobLostError as error:
                log_outage("%s", error)
                self._drop(stream_id)
        positions = dict(tracker.result_writer.wait_position for tracker in self._trackers.values() if tracker.active)
        wait_for_entries(self._bus.client, positions, IDLE_WAIT_S)

    def _drop(self, stream_id: str) -> None:
        """Stop tracking the stream, and look at once for a job that took its place."""
        del self._trackers[stream_id]
        self._refresh_at_s = 0.0

    def _refresh(self) -> None:
        """Follow the streams of the bus. A stream whose configuration or log changed gets another StreamTracker."""
        streams = self._bus.streams()
        for stream_id, tracker in list(self._trackers.items()):
            if streams.get(stream_id) != tracker.stream or self._bus.log_id(stream_id) != tracker.log_id:
                del self._trackers[stream_id]
        added = streams.keys() - self._trackers.keys()
        for stream_id in sorted(added):
            self._trackers[stream_id] = StreamTracker(self._bus, streams[stream_id])
        if denied := self._bus.denied_channels(sorted(added)):
            log.warning(
                "the Redis user may not publish on %s: the log is complete, the channel stays silent; "
                "ACL SETUSER name '&ms:results:*' gives the right",
                ", ".join(denied),
            )
        self._bus.beat("track", self._task.name, "running", counters={"streams": float(len(self._trackers))})
        self._refresh_at_s = time.monotonic() + REFRESH_INTERVAL_S
