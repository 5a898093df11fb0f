"""What a shard notes of the updates that it has applied: counts, fronts of leases, answers.

What is noted of usual pushes decides nothing about the next ones. It is entered later, many
at once, which takes a fraction of the time; whoever looks at the books sees all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from psrpc.core.counting import Counting
from psrpc.core.fronts import Fronts
from psrpc.core.ledger import Ledger
from psrpc.messages import Push, Stepped
from psrpc.usual import Usual

_ENTER_AT = 64  # usual pushes, or rounds of them


class _Left(NamedTuple):
    """Usual pushes that one step was made of, and the leads of their workers then."""

    pushes: Sequence[Usual]
    leads: Sequence[int]
    version: int


class Books:
    """One shard's notes beside its ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._counting = Counting()
        self._fronts = Fronts()
        self._answers: dict[int, tuple[int, Stepped]] = {}
        self._left: list[_Left] = []
        self._entered: list[tuple[Push, int]] = []

    @property
    def counting(self) -> Counting:
        """The counters."""
        self._enter()
        return self._counting

    @property
    def fronts(self) -> Fronts:
        """How far workers have come in their leases."""
        self._enter()
        return self._fronts

    @property
    def answers(self) -> dict[int, tuple[int, Stepped]]:
        """Each worker's latest answer, and the clock of the push that it is to."""
        self._enter()
        return self._answers

    def leave(self, pushes: Sequence[Usual], leads: Sequence[int], version: int) -> None:
        """Let the pushes of one step be entered later."""
        self._left.append(_Left(pushes, leads, version))
        if len(self._left) >= _ENTER_AT:
            self._enter()

    def take_entered(self) -> list[tuple[Push, int]]:
        """All usual pushes since this was last asked, with their staleness in clocks."""
        self._enter()
        entered, self._entered = self._entered, []
        return entered

    def __getstate__(self) -> dict[str, Any]:
        """For a copy, which is told of later pushes alone."""
        self._enter()
        return {**self.__dict__, "_entered": []}

    def _enter(self) -> None:
        if not self._left:
            return
        left, self._left = self._left, []
        counting = self._counting
        for usual, leads, version in left:
            pushes = [each.push() for each in usual]
            for push in pushes:
                self._fronts.note(push, self.ledger.closed)
                self._entered.append((push, counting.count(push)))
            counting.applied(len(pushes))
            for push, lead in zip(pushes, leads, strict=True):
                start = push.clock + 1
                counting.begins(push.worker, start, lead, ahead=push.ahead, reads=push.pull)
                self._answers[push.worker] = (push.clock, Stepped(version, lead))
