"""How the system shares its cores between threads that compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def in_long_slices() -> Iterator[None]:
    """Within the block this thread interrupts no other one when it wakes up: it computes.

    Linux's SCHED_BATCH, unless the thread has another policy than the usual one. Where a worker
    wakes up from waiting for its server, another worker that computes on that core goes on to the
    end of its slice; a server, whose threads keep the usual policy, does not wait for workers.
    """
    usual = os.sched_getscheduler(0) == os.SCHED_OTHER
    if usual:
        _choose(os.SCHED_BATCH)
    try:
        yield
    finally:
        if usual and os.sched_getscheduler(0) == os.SCHED_BATCH:
            _choose(os.SCHED_OTHER)


def _choose(policy: int) -> None:
    with suppress(OSError):  # a sandbox that forbids it
        os.sched_setscheduler(0, policy, os.sched_param(0))
