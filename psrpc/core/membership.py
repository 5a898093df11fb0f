"""Who belongs to the job and who is stepping: the one view, kept by the coordinator.

A worker's number is never given twice. A process that was taken for dead and
comes back gets a new one: what it said under the old one counts no more.
"""

from __future__ import annotations

from collections.abc import Set

from psrpc.messages import View


class Membership:
    """Workers that are live (came, neither left nor dead) and active (stepping).

    `expected` workers are to come at the start, of which `least` (None: all) are enough; later
    on, `least` (None: 1). Workers have numbers from `first` on, and views too.
    """

    def __init__(self, expected: int, least: int | None = None, first: int = 0) -> None:
        self.expected = expected
        self.least = expected if least is None else least
        self._enough = 1 if least is None else least
        self.started = False
        self.lost = 0
        self._ranks: dict[int, int] = {}  # of the live
        self._used: set[int] = set()  # numbers given before the job began
        self._reduced = False  # somebody died or left early
        self._done = False  # somebody has done all of its work
        self._active: dict[int, int] = {}
        self._since: dict[int, int] = {}
        self._first = first
        self._view = View(first)
        self._next = first + expected

    @property
    def view(self) -> View:
        """Who is stepping now, with the clocks that they start from."""
        return self._view

    @property
    def live(self) -> Set[int]:
        """The workers that came and have neither left nor died."""
        return self._ranks.keys()

    @property
    def to_come(self) -> int:
        """How many workers must still come before the job may begin."""
        return 0 if self.started else max(self.least - len(self._ranks), 0)

    @property
    def missing(self) -> list[int]:
        """The expected ranks that nobody has."""
        return [rank for rank in range(self.expected) if rank not in self._ranks.values()]

    @property
    def finished(self) -> bool:
        """Whether the job has begun, and everybody has left: not all of them early."""
        return self.started and not self._ranks and self._done

    @property
    def deserted(self) -> bool:
        """Whether the job has begun, and nobody is there to go on with it."""
        return self.started and not self._ranks and not self.finished

    @property
    def short(self) -> bool:
        """Whether fewer workers are left than the job needs, or none."""
        few = self._reduced and not self._done and len(self._ranks) < self._enough
        return self.deserted or bool(self.started and few)

    def rank(self, worker: int) -> int:
        """The rank of a live worker."""
        return self._ranks[worker]

    def join(self, rank: int | None) -> int:
        """Take a worker in and return its number; `rank`, where that is free, is its rank."""
        taken = set(self._ranks.values())
        if rank is None or rank in taken:
            rank = next(r for r in range(len(taken) + 1) if r not in taken)
        number = self._first + rank
        if self.started or rank >= self.expected or number in self._used:
            number, self._next = self._next, self._next + 1
        if not self.started:
            self._used.add(number)
        self._ranks[number] = rank
        self.started = self.started or not self.to_come
        return number

    def is_active(self, worker: int) -> bool:
        """Whether `worker` is stepping."""
        return worker in self._active

    def since(self, worker: int) -> int:
        """The number of the view in which `worker` began to step."""
        return self._since.get(worker, 0)

    def activate(self, starts: dict[int, int]) -> None:
        """Let workers step, each from its clock; one new view for all of them."""
        self._active.update(starts)
        self._renew()
        self._since.update(dict.fromkeys(starts, self._view.epoch))

    def deactivate(self, worker: int) -> None:
        """`worker` stops stepping; a new view if it was."""
        self._since.pop(worker, None)
        if self._active.pop(worker, None) is not None:
            self._renew()

    def leave(self, worker: int, *, early: bool = False) -> None:
        """`worker` has left for good, because its work was done or (`early`) before that."""
        self.deactivate(worker)
        self._ranks.pop(worker, None)
        self._done = self._done or not early
        self._reduced = self._reduced or early

    def lose(self, worker: int) -> None:
        """`worker` is dead."""
        self.deactivate(worker)
        if self._ranks.pop(worker, None) is not None:
            self.lost += 1
            self._reduced = True

    def _renew(self) -> None:
        self._view = View(self._view.epoch + 1, tuple(sorted(self._active.items())))
