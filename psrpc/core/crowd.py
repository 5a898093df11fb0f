"""How a pool decides: how many jobs a member may have ahead, how many members there should be."""

from __future__ import annotations

from typing import Any

from psrpc.errors import ConfigError

AHEAD_S = 0.02  # the work that a member has lying ready, so that it need not wait for more
MOST_AHEAD = 4096


def next_window(window: int, answered: int, took_s: float) -> int:
    """How many jobs a member may have at a time, after it answered so many in that time.

    As many as it does in `AHEAD_S`: a long job is given out alone, so none waits behind it while
    another member is idle, and short ones travel in batches. Doubles or halves at most.
    """
    reach = AHEAD_S * MOST_AHEAD if took_s <= 0 else answered / took_s * AHEAD_S
    wanted = int(min(reach, MOST_AHEAD))
    return max(1, min(wanted, window * 2) if wanted > window else max(wanted, window // 2))


def wanted_members(now: int, least: int, most: int, queued: int, waited: bool, idle: int) -> int:
    """How many members there should be.

    One more while jobs have been waiting since the last look, up to `most`; one less for each that
    has long been idle, down to `least`.
    """
    if queued and waited and now < most:
        return now + 1
    if not queued and idle:
        return max(least, now - idle)
    return max(now, least)


def bounds(size: Any) -> tuple[int, int]:
    """The least and the most members of a pool, of its `size`. Raises ConfigError."""
    match size:
        case int(number) if number >= 1:
            return number, number
        case (int(least), int(most)) if 1 <= least <= most:
            return least, most
    raise ConfigError([f"size must be a number from 1 or (least, most), not {size!r}"])
