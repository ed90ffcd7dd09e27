"""The result messages of a stream, assembled from detections without Redis."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from support.bus_parts import stream_config

from ops.mask_format import MASK_BYTES
from ops.masks import encode_rle
from pipeline.contract.arrays import ColourMatrix, Detections
from pipeline.contract.config import StreamConfig
from pipeline.contract.results import EndResult, EpochResult, EventResult, FrameResult, GapResult
from pipeline.contract.wire import FrameDetections, FrameHeader, SourceEnd
from pipeline.tracking.results import Commit, ResultAssembler, tracker_config
from pipeline.tracking.tracker import TrackerConfig

WIDTH, HEIGHT = 64, 48
LABELS = {1: "person", 3: "car"}
ARRIVED_AT_NS = 1_000_000_000_000
FRAME_NS = 40_000_000
BOX_XYXY = (4.004, 2.006, 20.0, 14.0)


def assembler(stream: StreamConfig | None = None, seq: int = 0, checkpoint: bytes = b"") -> ResultAssembler:
    return ResultAssembler(stream or stream_config(), LABELS, "a1", lambda: 7, seq=seq, checkpoint=checkpoint)


def detections(*scores: float, class_id: int = 1, x_px: float = 0.0) -> Detections:
    """One box for each score, 22 px apart, with masks that fill them."""
    num = len(scores)
    boxes_xyxy = np.array([BOX_XYXY] * num, np.float32).reshape(num, 4)
    boxes_xyxy[:, [0, 2]] += x_px + 22.0 * np.arange(num, dtype=np.float32)[:, None]
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[2:14, 4:20] = True
    return Detections(
        boxes_xyxy=boxes_xyxy,
        scores=np.array(scores, np.float32),
        class_ids=np.full(num, class_id, np.int32),
        mask_bits=np.full((num, MASK_BYTES), 255, np.uint8),
        rle_counts=[encode_rle(mask)] * num,
        width=WIDTH,
        height=HEIGHT,
    )


def message(seq: int, found: Detections, *, epoch: int = 1, pts_s: float | None = None) -> FrameDetections:
    header = FrameHeader(
        stream_id="cam1",
        session="s",
        frame_seq=seq,
        stream_epoch=epoch,
        pts_s=(seq - 1) * FRAME_NS / 1e9 if pts_s is None else pts_s,
        captured_at_ns=None,
        clock="file",
        arrived_at_ns=ARRIVED_AT_NS + seq * FRAME_NS,
        decode_ms=1.23456,
        max_staleness_s=None,
        min_score=0.25,
        class_ids=None,
        width=WIDTH,
        height=HEIGHT,
        source_width=WIDTH,
        source_height=HEIGHT,
        matrix=ColourMatrix.BT709,
        full_range=False,
        source_name=f"{seq}.jpg",
    )
    return FrameDetections.pack(header, found, model="street", queue_ms=2.0, infer_ms=3.0)


def end_of_source(last_seq: int) -> SourceEnd:
    return SourceEnd(session="s", stream_epoch=1, last_seq=last_seq, reason="finished", detail="", num_corrupt=2)


def ids_and_types(commit: Commit) -> list[tuple[str, str]]:
    return [(entry_id, type(result).__name__) for entry_id, result in commit.results]


def run(subject: ResultAssembler, num_frames: int, first_seq: int = 1) -> list[Commit]:
    return [subject.frame(message(seq, detections(0.9, 0.95))) for seq in range(first_seq, first_seq + num_frames)]


def untimed(commits: list[Commit]) -> list[Commit]:
    """The commits with the duration of the tracker's step set to 0."""

    def plain(result: Any) -> Any:
        if not isinstance(result, FrameResult):
            return result
        return msgspec.structs.replace(result, timing_ms=msgspec.structs.replace(result.timing_ms, track=0.0))

    return [
        commit._replace(results=[(entry_id, plain(result)) for entry_id, result in commit.results])
        for commit in commits
    ]


def test_a_frame_message_carries_the_header_and_the_rounded_detections() -> None:
    commit = assembler().frame(message(1, detections(0.91239)))
    assert (commit.seq_before, commit.seq_after, commit.end_reason) == (0, 1, "")
    ((entry_id, result),) = commit.results
    assert isinstance(result, FrameResult)
    assert entry_id == "1-0"
    assert (result.stream_id, result.log_id, result.frame_seq, result.published_at_ns) == ("cam1", "a1", 1, 7)
    assert (result.source_name, result.width, result.height, result.model) == ("1.jpg", WIDTH, HEIGHT, "street")
    assert (result.timing_ms.decode, result.timing_ms.queue, result.timing_ms.infer) == (1.235, 2.0, 3.0)
    (instance,) = result.instances
    assert (instance.state, instance.track_id, instance.track_uid) == ("tentative", None, None)
    assert (instance.label, instance.score, instance.age_frames) == ("person", 0.9124, 1)
    assert instance.box_xyxy == (4.0, 2.01, 20.0, 14.0)
    assert instance.mask is not None
    assert instance.mask.to_array().sum() == 12 * 16


def test_a_confirmed_track_is_announced_after_its_frame_and_ended_before_the_end() -> None:
    subject = assembler()
    commits = run(subject, 8)
    starts = [commit for commit in commits if any(isinstance(result, EventResult) for _, result in commit.results)]
    (start,) = starts
    seq = start.seq_after
    assert ids_and_types(start) == [
        (f"{seq}-0", "FrameResult"),
        (f"{seq}-1", "EventResult"),
        (f"{seq}-2", "EventResult"),
    ]
    events = [result for _, result in start.results if isinstance(result, EventResult)]
    assert [(event.event, event.track_id, event.track_uid, event.label) for event in events] == [
        ("track_start", 1, "cam1:1", "person"),
        ("track_start", 2, "cam1:2", "person"),
    ]
    final = subject.end(end_of_source(8))
    assert (final.seq_before, final.seq_after, final.end_reason) == (8, 8, "finished")
    assert ids_and_types(final) == [("8-1", "EventResult"), ("8-2", "EventResult"), ("8-3", "EndResult")]
    end = final.results[-1][1]
    assert isinstance(end, EndResult)
    assert (end.num_frames, end.num_gap_frames, end.num_corrupt, end.num_tracks) == (8, 0, 2, 2)


def test_events_before_the_end_continue_the_entry_ids_of_the_last_frame() -> None:
    subject = assembler()
    num_frames = next(seq for seq in range(1, 20) if len(subject.frame(message(seq, detections(0.9))).results) > 1)
    assert ids_and_types(subject.end(end_of_source(num_frames))) == [
        (f"{num_frames}-2", "EventResult"),
        (f"{num_frames}-3", "EndResult"),
    ]


def test_gaps_are_counted_by_cause_and_before_the_next_frame() -> None:
    subject = assembler()
    run(subject, 2)
    overflow = subject.gap(5, "overflow", "full")
    assert (overflow.seq_before, overflow.seq_after) == (2, 5)
    ((entry_id, gap),) = overflow.results
    assert isinstance(gap, GapResult)
    assert (entry_id, gap.from_seq, gap.frame_seq, gap.cause, gap.detail) == ("5-0", 3, 5, "overflow", "full")
    subject.gap(6, "lost", "")
    (frame,) = [
        result for _, result in subject.frame(message(7, detections())).results if isinstance(result, FrameResult)
    ]
    assert frame.dropped_before == 4
    (frame,) = [
        result for _, result in subject.frame(message(8, detections())).results if isinstance(result, FrameResult)
    ]
    assert frame.dropped_before == 0
    counters = subject.counters()
    assert {name: counters[name] for name in ("num_frames", "gap:overflow", "gap:lost")} == {
        "num_frames": 4,
        "gap:overflow": 3,
        "gap:lost": 1,
    }
    end = subject.end(end_of_source(8)).results[-1][1]
    assert isinstance(end, EndResult)
    assert end.num_gap_frames == 4


def test_another_epoch_is_announced_after_the_events_of_the_previous_frame() -> None:
    subject = assembler()
    run(subject, 2)
    commit = subject.frame(message(3, detections(0.9), epoch=2, pts_s=0.0))
    assert ids_and_types(commit)[:2] == [("2-3", "EpochResult"), ("3-0", "FrameResult")]
    epoch = commit.results[0][1]
    assert isinstance(epoch, EpochResult)
    assert (epoch.stream_epoch, epoch.frame_seq) == (2, 2)


def test_tracks_continue_over_a_new_epoch_by_the_time_of_arrival() -> None:
    subject, seconds = assembler(), []
    update = subject._tracker.update

    def recording(found: Detections, frame_seq: int, time_s: float) -> Any:
        seconds.append(time_s)
        return update(found, frame_seq, time_s)

    subject._tracker.update = recording  # type: ignore[method-assign]
    for seq, epoch, pts_s in [(1, 1, 100.0), (2, 1, 100.04), (3, 2, 5.0), (4, 2, 5.04), (6, 3, 900.0)]:
        subject.frame(message(seq, detections(0.9), epoch=epoch, pts_s=pts_s))
    np.testing.assert_allclose(seconds, [0.0, 0.04, 0.08, 0.12, 0.2], atol=1e-9)


def test_detections_that_the_tracker_refuses_become_a_gap() -> None:
    subject = assembler()
    bad = detections(0.9)
    bad.boxes_xyxy[0, 1] = np.nan
    commit = subject.frame(message(1, bad))
    ((_, gap),) = commit.results
    assert isinstance(gap, GapResult)
    assert (gap.cause, gap.frame_seq) == ("error", 1)
    assert gap.detail.startswith("tracker: expected finite numbers")
    assert subject.counters()["num_frames"] == 0


def test_the_epoch_is_announced_even_if_its_first_frame_becomes_a_gap() -> None:
    subject = assembler()
    run(subject, 2)
    bad = detections(0.9)
    bad.scores[0] = np.nan
    commit = subject.frame(message(3, bad, epoch=2))
    assert ids_and_types(commit) == [("2-3", "EpochResult"), ("3-0", "GapResult")]
    assert ids_and_types(subject.frame(message(4, detections(0.9), epoch=2))) == [("4-0", "FrameResult")]


def test_min_score_hides_instances_but_not_from_the_tracker() -> None:
    subject = assembler(stream_config(conf=0.5, min_score=0.6))
    shown = []
    for seq, score in enumerate([0.9, 0.9, 0.55, 0.9, 0.9, 0.9, 0.9], start=1):
        (frame,) = [
            result
            for _, result in subject.frame(message(seq, detections(score))).results
            if isinstance(result, FrameResult)
        ]
        shown.append([instance.age_frames for instance in frame.instances])
    assert shown == [[1], [2], [], [4], [5], [6], [7]]


def test_a_stream_without_tracking_shows_every_detection_as_untracked() -> None:
    subject = assembler(stream_config(track=False))
    for seq in range(1, 9):
        ((_, frame),) = subject.frame(message(seq, detections(0.9, 0.8, 0.7, class_id=3))).results
        assert isinstance(frame, FrameResult)
        assert [
            (item.state, item.track_id, item.track_uid, item.age_frames, item.label) for item in frame.instances
        ] == [("untracked", None, None, 1, "car")] * 3
    assert ids_and_types(subject.end(end_of_source(8))) == [("8-1", "EndResult")]


@pytest.mark.parametrize("stop_after", [1, 3, 5, 9])
def test_an_assembler_restored_from_its_checkpoint_continues_with_the_same_messages(stop_after: int) -> None:
    whole = assembler()
    expected = [
        *run(whole, 9),
        whole.gap(11, "corrupt", ""),
        *run(whole, 3, first_seq=12),
        whole.end(end_of_source(14)),
    ]

    first = assembler()
    commits = run(first, stop_after)
    second = assembler(seq=first.seq, checkpoint=first.checkpoint())
    commits += run(second, 9 - stop_after, first_seq=stop_after + 1)
    third = assembler(seq=second.seq, checkpoint=second.checkpoint())
    commits.append(third.gap(11, "corrupt", ""))
    fourth = assembler(seq=third.seq, checkpoint=third.checkpoint())
    commits += [*run(fourth, 3, first_seq=12), fourth.end(end_of_source(14))]
    assert untimed(commits) == untimed(expected)
    assert fourth.counters() == whole.counters()


def test_a_checkpoint_of_another_tracker_is_refused() -> None:
    subject = assembler()
    run(subject, 2)
    state = msgspec.msgpack.decode(subject.checkpoint())
    state["tracker"] = b"other"
    with pytest.raises(ValueError, match="not a tracker checkpoint"):
        assembler(seq=2, checkpoint=msgspec.msgpack.encode(state))


@pytest.mark.parametrize(("max_fps", "lost_s"), [(None, TrackerConfig().lost_s), (25.0, 1.5), (1.0, 2.5), (0.5, 5.0)])
def test_a_track_survives_a_missed_frame_at_any_frame_rate(max_fps: float | None, lost_s: float) -> None:
    config = tracker_config(stream_config(max_fps=max_fps, conf=0.6))
    assert (config.lost_s, config.birth_score, config.low_score) == (lost_s, 0.6, 0.3)
