"""A worker's own counters."""

import pytest

from psrpc.tally import Tally
from psrpc.testing.clock import ManualClock


def test_time_spent_waiting_is_told_from_the_rest() -> None:
    clock = ManualClock()
    tally = Tally(clock)
    tally.begin()
    clock.advance(1.0)
    with tally.waiting():
        clock.advance(2.0)
    with tally.waiting():
        clock.advance(0.5)
    clock.advance(4.0)
    stats = tally.stats(skipped=0)
    assert (stats.busy_s, stats.wait_s) == (7.5, 2.5)


def test_a_wait_that_ends_in_an_error_counts_too() -> None:
    clock = ManualClock()
    tally = Tally(clock)

    def wait_in_vain() -> None:
        with tally.waiting():
            clock.advance(3.0)
            raise TimeoutError

    with pytest.raises(TimeoutError):
        wait_in_vain()
    assert tally.stats(skipped=0).wait_s == 3.0


def test_steps_that_came_too_late_do_not_count() -> None:
    tally = Tally(ManualClock())
    for _ in range(3):
        tally.stepped(10)
    stats = tally.stats(1, late=1, late_samples=10)
    assert (stats.steps, stats.samples, stats.nonfinite_skipped) == (2, 20, 1)
