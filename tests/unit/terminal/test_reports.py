"""Result messages as text: runs of gaps become one line."""

from __future__ import annotations

import msgspec
from support.result_samples import end, event, frame, gap

from pipeline.contract.results import AnyResult
from pipeline.terminal.reports import MAX_GAP_SPAN_NS, ResultLines


def text_of(*messages: AnyResult) -> list[str]:
    lines = ResultLines()
    return [line for message in messages for line in lines.add(message)] + lines.rest()


def test_consecutive_gaps_of_one_cause_are_one_line() -> None:
    assert text_of(gap(1, 2), gap(3, 3), gap(4, 9), frame(10), end(10))[:2] == [
        "cam1 #9: no result from #1 (9 frames): error",
        "cam1 #10 0.36 s: person 7 0.98",
    ]


def test_another_cause_another_stream_and_another_message_end_a_run() -> None:
    other = msgspec.structs.replace(gap(3, 3), stream_id="cam2")
    assert text_of(gap(1, 1), gap(2, 2, cause="stale"), other, gap(3, 3, cause="stale"), event(3), gap(4, 4)) == [
        "cam1 #1: no result (1 frame): error",
        "cam1 #3: no result from #2 (2 frames): stale",
        "cam1 #3: track 7 (person) starts",
        "cam2 #3: no result (1 frame): error",
        "cam1 #4: no result (1 frame): error",
    ]


def test_a_jump_in_the_numbers_ends_a_run() -> None:
    assert len(text_of(gap(1, 2), gap(5, 6))) == 2


def test_a_run_that_lasts_is_printed_in_parts() -> None:
    gaps = [msgspec.structs.replace(gap(seq, seq), published_at_ns=seq * MAX_GAP_SPAN_NS // 4) for seq in range(1, 13)]
    assert text_of(*gaps) == [
        "cam1 #5: no result from #1 (5 frames): error",
        "cam1 #10: no result from #6 (5 frames): error",
        "cam1 #12: no result from #11 (2 frames): error",
    ]
