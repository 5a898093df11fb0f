"""Moments at which something is due, soonest first."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")

_FEW = 64


class Alarms(Generic[T]):
    """Things that are due at a moment each; most are called off before.

    Those that were called off take no more memory than those that were not.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._things: dict[int, T] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._things)

    def set(self, moment_s: float, thing: T) -> int:
        """`thing` is due at `moment_s`; returns the number by which it can be called off."""
        self._next += 1
        self._things[self._next] = thing
        heapq.heappush(self._heap, (moment_s, self._next))
        return self._next

    def call_off(self, number: int) -> None:
        """That is not due any more; nothing happens where it has been."""
        self._things.pop(number, None)
        if len(self._heap) > 2 * len(self._things) + _FEW:
            self._heap = [each for each in self._heap if each[1] in self._things]
            heapq.heapify(self._heap)

    def due(self, now: float) -> list[T]:
        """What is due by now, soonest first; it is given once."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            _, number = heapq.heappop(self._heap)
            if number in self._things:
                found.append(self._things.pop(number))
        return found

    @property
    def next_s(self) -> float | None:
        """When something may be due next."""
        while self._heap and self._heap[0][1] not in self._things:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None
