"""One tracker of `benchmarks.tracker`, run as a script in an environment with few other packages.

    python tracker_child.py TRACKER

Each line of stdin is a command in JSON and is answered by one line of JSON:

    {"open": "scene.npz"}    begin the scene with a new tracker: {}
    {"run": 10}              process up to 10 more frames: {"update_s": [seconds inside each update]}
    {"save": "tracks.npz"}   write the tracks of all frames so far: {}

A scene contains starts (F + 1,) int64, the first row of each frame; boxes_xyxy (N, 4) float32; scores (N,) float32;
and, if it has masks, mask_bits (N, 98) uint8. Tracks contain starts (frames + 1,), ids (N,) int64 and boxes_xyxy (N,
4). Inputs are converted to the tracker's own types before the clock starts, and results are read after it has stopped.
The clock is the CPU time of the process, because wall time would include other work on the machine. The time of reading
the clock is subtracted.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FPS = 30.0

_USUAL_SCORE = 0.5
"""score below which detections are dropped for norfair and motpy, which ignore scores"""


class Adapter(NamedTuple):
    """Adapter of a tracker.

    given    function of boxes_xyxy, scores, mask_bits or None and frame index; returns the arguments of `update`
    update   the tracker's own update
    tracks   function of the arguments and the result of the update; returns IDs and boxes_xyxy of the reported tracks
    """

    given: Callable[[Any, Any, Any, int], tuple[Any, ...]]
    update: Callable[..., Any]
    tracks: Callable[[tuple[Any, ...], Any], tuple[Any, Any]]


def maskstream(*, masks: bool) -> Adapter:
    from pipeline.contract.arrays import Detections
    from pipeline.tracking.mask_tracker import MaskTracker
    from pipeline.tracking.tracker import TrackerConfig

    tracker = MaskTracker(TrackerConfig.for_conf(0.5, 0.1))  # as in the pipeline

    def given(boxes_xyxy: Any, scores: Any, mask_bits: Any, index: int) -> tuple[Any, ...]:
        class_ids = np.ones(len(scores), np.int32)
        # the tracker does not read width and height
        detections = Detections(boxes_xyxy, scores, class_ids, mask_bits if masks else None, None, 1, 1)
        return detections, index + 1, index / FPS

    def tracks(given: tuple[Any, ...], result: Any) -> tuple[Any, Any]:
        confirmed = result.track_ids > 0
        return result.track_ids[confirmed], given[0].boxes_xyxy[result.detection_idx[confirmed]]

    return Adapter(given, tracker.update, tracks)


def trackers(name: str) -> Adapter:
    """The update gets no pictures, so BoT-SORT skips its camera motion compensation, as documented."""
    import trackers

    tracker = getattr(trackers, name)()
    return Adapter(_supervision_detections, tracker.update, _supervision_tracks)


def supervision_bytetrack() -> Adapter:
    from supervision import ByteTrack

    return Adapter(_supervision_detections, ByteTrack().update_with_detections, _supervision_tracks)


def norfair() -> Adapter:
    """norfair has no default distance and threshold; its own examples require an IoU above 0.3 for boxes."""
    from norfair import Detection, Tracker

    tracker = Tracker(distance_function="iou", distance_threshold=0.7)

    def given(boxes_xyxy: Any, scores: Any, mask_bits: Any, index: int) -> tuple[Any, ...]:
        sure = scores >= _USUAL_SCORE
        corners = boxes_xyxy[sure].reshape(-1, 2, 2)
        return ([Detection(pair, np.full(2, score)) for pair, score in zip(corners, scores[sure], strict=True)],)

    def tracks(given: tuple[Any, ...], result: Any) -> tuple[Any, Any]:
        seen = [item for item in result if item.live_points.any()]
        return [item.id for item in seen], [item.estimate.ravel() for item in seen]

    return Adapter(given, tracker.update, tracks)


def motpy() -> Adapter:
    from motpy import Detection, MultiObjectTracker

    tracker = MultiObjectTracker(dt=1 / FPS)
    number_of: dict[str, int] = {}

    def given(boxes_xyxy: Any, scores: Any, mask_bits: Any, index: int) -> tuple[Any, ...]:
        sure = scores >= _USUAL_SCORE
        return ([Detection(box=box, score=score) for box, score in zip(boxes_xyxy[sure], scores[sure], strict=True)],)

    def tracks(given: tuple[Any, ...], result: Any) -> tuple[Any, Any]:
        numbers = [number_of.setdefault(track.id, len(number_of) + 1) for track in result]
        return numbers, [track.box for track in result]

    return Adapter(given, tracker.step, tracks)


def _supervision_detections(boxes_xyxy: Any, scores: Any, mask_bits: Any, index: int) -> tuple[Any, ...]:
    from supervision import Detections

    return (Detections(xyxy=boxes_xyxy, confidence=scores),)


def _supervision_tracks(given: tuple[Any, ...], result: Any) -> tuple[Any, Any]:
    """Drop tracks that are not confirmed, which have the ID -1."""
    confirmed = result.tracker_id >= 0
    return result.tracker_id[confirmed], result.xyxy[confirmed]


TRACKERS: dict[str, Callable[[], Adapter]] = {
    "ours": lambda: maskstream(masks=False),
    "ours, masks": lambda: maskstream(masks=True),
    "trackers SORT": lambda: trackers("SORTTracker"),
    "trackers ByteTrack": lambda: trackers("ByteTrackTracker"),
    "trackers OC-SORT": lambda: trackers("OCSORTTracker"),
    "trackers BoT-SORT": lambda: trackers("BoTSORTTracker"),
    "supervision ByteTrack": supervision_bytetrack,
    "norfair": norfair,
    "motpy": motpy,
}


def _clock_s() -> float:
    """Minimum time between two reads of the clock, of a hundred."""
    looks = [(time.process_time(), time.process_time()) for _ in range(100)]
    return min(second - first for first, second in looks)


class Session:
    """A tracker and its progress in a scene."""

    def __init__(self, make: Callable[[], Adapter], scene: str) -> None:
        self._adapter = make()
        with np.load(scene) as content:
            self._scene = dict(content)
        # Two growing arrays: thousands of small arrays would fragment the memory that the next updates allocate.
        self._num_shown: list[int] = []
        self._ids, self._boxes = bytearray(), bytearray()

    def run(self, num_frames: int) -> list[float]:
        """Process up to that many frames. Returns the seconds inside each update."""
        adapter, starts = self._adapter, self._scene["starts"]
        begin = len(self._num_shown)
        indices = range(begin, min(begin + num_frames, len(starts) - 1))
        inputs = [adapter.given(*self._frame(index), index) for index in indices]
        clock_s = _clock_s()
        update_s = []
        for given in inputs:
            begin_s = time.process_time()
            result = adapter.update(*given)
            update_s.append(time.process_time() - begin_s - clock_s)
            # Copied at once, because some trackers modify returned objects in the next update.
            ids, boxes_xyxy = adapter.tracks(given, result)
            self._num_shown.append(len(ids))
            self._ids += np.asarray(ids, np.int64).tobytes()
            self._boxes += np.asarray(boxes_xyxy, np.float64).tobytes()
        return update_s

    def save(self, path: str) -> None:
        starts = np.cumsum([0, *self._num_shown])
        boxes_xyxy = np.frombuffer(self._boxes, np.float64).reshape(-1, 4)
        np.savez(path, starts=starts, ids=np.frombuffer(self._ids, np.int64), boxes_xyxy=boxes_xyxy)

    def _frame(self, index: int) -> tuple[Any, Any, Any]:
        scene = self._scene
        own = slice(*scene["starts"][index : index + 2])
        bits = scene["mask_bits"][own] if "mask_bits" in scene else None
        return scene["boxes_xyxy"][own].copy(), scene["scores"][own].copy(), bits


def serve(tracker: str) -> None:
    """Answer commands until stdin ends."""
    # Output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session: Any = None
    for line in sys.stdin:
        ((command, value),) = json.loads(line).items()
        answer: dict[str, Any] = {}
        if command == "open":
            session = Session(TRACKERS[tracker], value)
        elif command == "run":
            answer["update_s"] = session.run(value)
        else:
            session.save(value)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
