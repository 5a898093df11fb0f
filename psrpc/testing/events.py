"""What will happen, in the order in which it will: the heart of a discrete-event simulation."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from psrpc.testing.clock import ManualClock


class EventHeap:
    """Actions with the moments at which they are due; running one may add others.

    Actions due at the same moment run in the order in which they were added, so
    that the same additions always give the same run.
    """

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.events_run = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = count()

    def after(self, delay_s: float, action: Callable[..., None], *args: object) -> None:
        """Have `action(*args)` run when `delay_s` seconds have passed."""
        due_s = self.clock.now() + delay_s
        heapq.heappush(self._heap, (due_s, next(self._number), action, args))

    def run(self, limit_s: float, limit_events: int) -> bool:
        """Run everything until nothing is left; False if a limit was reached before."""
        while self._heap:
            due_s, _, action, args = heapq.heappop(self._heap)
            if due_s > limit_s or self.events_run >= limit_events:
                return False
            self.clock.advance_to(due_s)
            self.events_run += 1
            action(*args)
        return True
