"""Exponential back-off."""

from __future__ import annotations

from pipeline.backoff import Backoff


def test_pauses_double_up_to_the_maximum_and_restart_after_a_reset() -> None:
    backoff = Backoff(0.5, 3.0)
    assert [backoff.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.num_failures == 5
    backoff.reset()
    assert backoff.next_s() == 0.5


def test_a_thousand_failures_do_not_overflow() -> None:
    backoff = Backoff(0.1, 5.0)
    assert [backoff.next_s() for _ in range(3000)][-1] == 5.0
