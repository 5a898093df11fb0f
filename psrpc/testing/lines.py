"""A simulated connection between a primary and one that follows it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from psrpc.testing.events import EventHeap


class End(Protocol):
    """Who is at an end."""

    cut_until: float

    def hung_up(self, line: Any) -> None: ...
    def when_awake(self, action: Callable[..., None], *args: Any) -> None: ...


class Around(Protocol):
    """What surrounds a connection."""

    events: EventHeap
    random: Random

    def delay(self) -> float: ...


E = TypeVar("E", bound=End)


class SimLine(Generic[E]):
    """From a primary to one that follows it, and back: in order, until one end closes it."""

    def __init__(self, world: Around, ends: tuple[E, E]) -> None:
        self.cut_until = 0.0
        self._world = world
        self._ends = ends
        self._closed: set[E] = set()
        self._queues: dict[E, deque[tuple[Callable[..., None], tuple[Any, ...]]]] = {
            end: deque() for end in ends
        }
        self._due_s = dict.fromkeys(ends, 0.0)

    def send(self, to: E, action: Callable[..., None], *args: Any, takes_s: float = 0.0) -> None:
        """Have `to` do `action(*args)` when what was sent before has come."""
        if not self._closed:
            self._put(to, action, args, takes_s)

    def close(self, end: E) -> None:
        """One end closes it, or is dead: the other hears of it, after some of what was sent."""
        if end in self._closed:
            return
        first = not self._closed
        self._closed.add(end)
        other = self.other(end)
        if first:
            queue = self._queues[other]
            if self._world.random.random() < 0.5 and queue:
                for _ in range(self._world.random.randint(1, len(queue))):
                    queue.pop()
            self._put(other, other.hung_up, (self,), 0.0)

    def other(self, end: E) -> E:
        """Who is at the other end."""
        return self._ends[1] if end is self._ends[0] else self._ends[0]

    def _put(
        self, to: E, action: Callable[..., None], args: tuple[Any, ...], takes_s: float
    ) -> None:
        now = self._world.events.clock.now()
        self._due_s[to] = max(self._due_s[to], now + self._world.delay()) + takes_s
        self._queues[to].append((action, args))
        self._world.events.after(self._due_s[to] - now, self._arrive, to)

    def _arrive(self, to: E) -> None:
        now = self._world.events.clock.now()
        until = max(self.cut_until, *(end.cut_until for end in self._ends))
        if until > now:
            self._world.events.after(until - now, self._arrive, to)
        elif self._queues[to] and to not in self._closed:
            action, args = self._queues[to].popleft()
            to.when_awake(action, *args)
