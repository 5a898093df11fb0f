"""The gate: who may start a step, and who must wait for whom.

The rule of stale synchronous parallel (Ho et al., NeurIPS 2013, section 3): a
worker with clock c may start its next step while c is at most `bound` above the
lowest clock of the workers that are stepping.

Finishing a step and letting a worker go cost the same however many workers there
are; only a new view looks at them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import NamedTuple

from psrpc.core.decisions import Token
from psrpc.messages import Push, View


class Start(NamedTuple):
    """The step after `clock` finished ones; `reads` is whether it takes fresh weights.

    `ahead` more steps will have begun when it takes them, and count like finished ones.
    """

    worker: int
    clock: int
    reads: bool = True
    ahead: int = 0

    @classmethod
    def after(cls, push: Push) -> Start:
        """The start of the step after a push."""
        return cls(push.worker, push.clock + 1, push.pull, push.ahead)


class Ready(NamedTuple):
    """A start that is granted; `lead` is the worker's clock above the slowest's."""

    token: Token
    start: Start
    lead: int


_Asked = tuple[Token, Start]


class Gate:
    """The clocks of one shard's workers, and the starts that wait for them."""

    def __init__(self, bound: int | None) -> None:
        self.bound = bound
        self.epoch = 0
        self._floor = 0
        self._clocks: dict[int, int] = {}
        self._ahead: dict[int, set[int]] = {}
        self._active: frozenset[int] = frozenset()
        self._standing: Counter[int] = Counter()  # the stepping workers at each clock
        self._turn: list[_Asked] = []
        self._by_floor: dict[int, list[_Asked]] = {}  # by the floor that lets them go
        self._by_worker: dict[int, list[_Asked]] = {}  # wait for a step of their own

    @property
    def floor(self) -> int:
        """The lowest clock of the stepping workers; the highest ever seen if nobody steps."""
        return self._floor

    @property
    def active(self) -> frozenset[int]:
        """The workers that are stepping."""
        return self._active

    @property
    def slowest(self) -> int:
        """How many stepping workers stand at the floor."""
        return self._standing.get(self._floor, 0)

    def raise_to(self, floor: int) -> None:
        """Let those who come begin at `floor`; before anybody steps."""
        self._floor = max(self._floor, floor)

    def clock(self, worker: int) -> int:
        """The number of steps that `worker` has finished here."""
        return self._clocks.get(worker, 0)

    def finished(self, worker: int, clock: int) -> bool:
        """Whether the step that `worker` made at `clock` is finished here."""
        return clock < self.clock(worker) or clock in self._ahead.get(worker, ())

    def adopt(self, view: View) -> bool:
        """Take a newer view; an old one changes nothing. Returns whether it was newer."""
        if view.epoch <= self.epoch:
            return False
        self.epoch = view.epoch
        for worker, start in view.active:
            self._move(worker, max(self.clock(worker), start))
        self._active = frozenset(worker for worker, _ in view.active)
        self._standing = Counter(self._clocks[worker] for worker in self._active)
        clocks = self._standing or self._clocks.values()
        self._floor = min(clocks) if self._active else max(clocks, default=self._floor)
        self._ask_all_again()
        return True

    def finish(self, worker: int, clock: int) -> None:
        """Note that `worker` finished the step that it made at `clock`."""
        was = self.clock(worker)
        if clock > was:
            self._ahead.setdefault(worker, set()).add(clock)
        if clock != was:
            return
        now = self._move(worker, was + 1)
        if worker in self._active:
            standing = self._standing
            standing[now] = standing.get(now, 0) + 1
            if standing[was] > 1:
                standing[was] -= 1
            else:
                dict.__delitem__(standing, was)  # Counter's own is written in Python, and slower
                self._raise_floor()
        elif not self._active:
            self._floor = max(self._floor, now)
        for token, start in self._by_worker.pop(worker, ()):
            self.ask(token, start)

    def advance(self, worker: int, clock: int, ahead: int) -> int | None:
        """Finish the step at `clock` of a worker that may start the next at once; returns its lead.

        This is `finish`, `ask` and `release` in one, for when nobody waits. Returns None, and
        changes nothing, where somebody does or this worker would have to.
        """
        if self._turn or self._by_floor or self._by_worker or self._ahead:
            return None
        if worker not in self._active or self._clocks[worker] != clock:
            return None
        standing, floor = self._standing, self._floor
        alone = standing[clock] == 1
        if alone and clock == floor:
            floor += 1
        if self.bound is not None and clock + 1 + ahead - floor > self.bound:
            return None
        if alone:
            dict.__delitem__(standing, clock)
        else:
            standing[clock] -= 1
        standing[clock + 1] += 1
        self._clocks[worker] = clock + 1
        self._floor = floor
        return clock + 1 - floor

    def advance_together(self, workers: Collection[int]) -> bool:
        """Finish the current step of all that are stepping, if they are these and at one clock.

        All may then start the next one. Returns False, and changes nothing, where somebody waits
        or is ahead, or others are stepping.
        """
        if self._turn or self._by_floor or self._by_worker or self._ahead:
            return False
        count, floor = len(self._active), self._floor
        if len(workers) != count or self._standing.get(floor) != count:
            return False
        if not self._active.issuperset(workers):
            return False
        self._floor = floor = floor + 1
        self._clocks.update(dict.fromkeys(workers, floor))
        self._standing = Counter({floor: count})
        return True

    def ask(self, token: Token, start: Start) -> None:
        """Let `start` wait for its turn; `release` hands `token` back when it has come."""
        worker = start.worker
        if self.clock(worker) < start.clock:
            self._by_worker.setdefault(worker, []).append((token, start))
        elif self._too_far(start):
            assert self.bound is not None
            floor = start.clock + start.ahead - self.bound
            self._by_floor.setdefault(floor, []).append((token, start))
        else:
            self._turn.append((token, start))

    def withdraw(self, token: Token) -> None:
        """Let nobody wait under `token` any more."""
        waiting = (self._by_floor, self._by_worker)
        for asked in (self._turn, *(a for each in waiting for a in each.values())):
            asked[:] = [ask for ask in asked if ask[0] != token]

    def dismiss(self) -> None:
        """Let nobody wait any more."""
        self._turn, self._by_floor, self._by_worker = [], {}, {}

    def expel(self) -> list[tuple[Token, int]]:
        """Take out and return the starts that wait for steps of workers who do not step: whose."""
        gone = [worker for worker in self._by_worker if worker not in self._active]
        return [(token, worker) for worker in gone for token, _ in self._by_worker.pop(worker)]

    def release(self) -> list[Ready]:
        """Take out and return the starts whose turn has come, in the order in which it came."""
        turn, self._turn = self._turn, []
        return [Ready(token, start, self._lead(start)) for token, start in turn]

    def obstacle(self, start: Start) -> str:
        """What `start` must wait for; the empty string if for nothing."""
        if self.clock(start.worker) < start.clock:
            return f"worker {start.worker}'s own step {start.clock - 1} is not applied yet"
        if self._too_far(start):
            return (
                f"worker {start.worker} is {self._lead(start) + start.ahead} clocks ahead of the "
                f"slowest and may be {self.bound}"
            )
        return ""

    def _too_far(self, start: Start) -> bool:
        if self.bound is None or start.worker not in self._active:
            return False
        return start.clock + start.ahead - self._floor > self.bound

    def _lead(self, start: Start) -> int:
        return start.clock - self._floor if start.worker in self._active else 0

    def _move(self, worker: int, clock: int) -> int:
        """Set a worker's clock, over the later steps that are finished already."""
        ahead = self._ahead.get(worker)
        if ahead is not None:
            while clock in ahead:
                clock += 1
            ahead.difference_update([step for step in ahead if step < clock])
            if not ahead:
                del self._ahead[worker]
        self._clocks[worker] = clock
        return clock

    def _raise_floor(self) -> None:
        # Nobody moves by more than a few clocks at once, so this loop is short.
        while self._floor not in self._standing:
            self._floor += 1
            self._turn += self._by_floor.pop(self._floor, ())

    def _ask_all_again(self) -> None:
        asked = [*self._turn]
        for waiting in (*self._by_floor.values(), *self._by_worker.values()):
            asked += waiting
        self._turn, self._by_floor, self._by_worker = [], {}, {}
        for token, start in asked:
            self.ask(token, start)
