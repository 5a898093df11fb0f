"""A pool's decisions."""

from __future__ import annotations

from typing import Any

import pytest

from psrpc.core.crowd import MOST_AHEAD, bounds, next_window, wanted_members
from psrpc.errors import ConfigError


def test_long_jobs_are_given_out_alone() -> None:
    window = 64
    for _ in range(10):
        window = next_window(window, 1, 1.0)
    assert window == 1


def test_short_jobs_are_given_out_by_the_thousand() -> None:
    window = 1
    for _ in range(20):
        window = next_window(window, window, window * 1e-6)
    assert window == MOST_AHEAD


def test_a_window_holds_the_work_of_a_fiftieth_of_a_second() -> None:
    window = 1
    for _ in range(20):
        window = next_window(window, 10, 0.01)
    assert window == 20
    assert next_window(1, 5, 0.0) == 2


@pytest.mark.parametrize(
    ("now", "queued", "waited", "idle", "expected"),
    [
        (2, 5, False, 0, 2),  # they may be taken before the next look
        (2, 5, True, 0, 3),
        (4, 5, True, 0, 4),  # the most
        (4, 0, False, 3, 2),
        (4, 0, False, 1, 3),
        (0, 0, False, 0, 2),  # all have died
    ],
)
def test_members_follow_the_queue(
    now: int, queued: int, waited: bool, idle: int, expected: int
) -> None:
    assert wanted_members(now, 2, 4, queued, waited, idle) == expected


@pytest.mark.parametrize("size", [0, (3, 1), (0, 1), "a", (1, 2, 3), 1.5])
def test_a_size_is_a_number_or_two(size: Any) -> None:
    assert bounds(4) == (4, 4)
    assert bounds((1, 3)) == (1, 3)
    with pytest.raises(ConfigError, match="from 1 or"):
        bounds(size)
