"""Rounds: the pushes of one clock, and which of them one optimizer step is made of.

With backup workers (Chen et al., arXiv 1604.00981, section 3) a round is complete before all
have pushed. Which pushes it is made of must be the same on all shards: shard 0 decides it, the
others are told and wait for those.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from psrpc.core.consistency import Gate
from psrpc.core.decisions import Token
from psrpc.core.ledger import Ledger
from psrpc.messages import Push, UpdateKey

_REMEMBERED = 8  # rounds: the other shards are at most one behind, see `Rounds.closed`


class Entry(NamedTuple):
    """A push that waits for its round; `carries` is False where its key is applied already."""

    token: Token
    push: Push
    carries: bool


class Complete(NamedTuple):
    """A round that is complete: the pushes that it is made of, and those that it does without.

    `absent` are workers that have not pushed, and that it does without as well.
    """

    clock: int
    entries: list[Entry]
    late: list[Entry]
    absent: list[int]


class Rounds:
    """Collects pushes. With `backups`, `follows` is whether shard 0 says what a round is made of.

    `closed` has the latest rounds with their workers, where this shard decides that. The other
    shards are one round behind at most: a worker pushes at a clock when every shard has come to
    it, and a round closes with a push.
    """

    def __init__(self, gate: Gate, backups: int, *, follows: bool) -> None:
        self.backups = backups
        self.follows = follows and backups > 0
        self.decides = not follows and backups > 0
        self.closed: dict[int, tuple[int, ...]] = {}
        self._gate = gate
        self._rounds: dict[int, dict[int, Entry]] = {}  # by clock, then by worker
        self._keys: set[UpdateKey] = set()

    @property
    def empty(self) -> bool:
        """Whether no push waits for its round."""
        return not self._rounds

    def join(self, entry: Entry) -> bool:
        """Take a push in; returns whether the lowest round may be complete with it."""
        push = entry.push
        self._rounds.setdefault(push.clock, {})[push.worker] = entry
        self._keys.add(push.key)
        come = len(self._rounds.get(self._gate.floor, ()))
        return self.follows or come >= self._enough()

    def drop(self, worker: int, clock: int) -> None:
        """Forget a push that no round has taken."""
        entry = self._rounds.get(clock, {}).pop(worker, None)
        if entry is not None and entry.carries:
            self._keys.discard(entry.push.key)
        if not self._rounds.get(clock, True):
            del self._rounds[clock]

    def clear(self) -> None:
        """Forget all pushes that no round has taken."""
        self._rounds.clear()
        self._keys.clear()

    def follow(self) -> None:
        """Be another shard's than shard 0: be told, where it decides, what rounds are made of."""
        self.follows, self.decides = self.backups > 0, False
        self.closed = {}

    def has(self, worker: int, clock: int) -> bool:
        """Whether this worker's push waits for the round of `clock`."""
        return worker in self._rounds.get(clock, ())

    def waits(self, key: UpdateKey) -> bool:
        """Whether an update of this name waits for its round."""
        return key in self._keys

    def tell(self, clock: int, workers: Collection[int]) -> None:
        """Shard 0 says what a round is made of."""
        if clock >= self._gate.floor:
            self.closed[clock] = tuple(sorted(workers))

    def gather(self, pushes: Iterable[Push], applied: Ledger) -> list[tuple[Push, bool]] | None:
        """Those of new pushes that would make the current round complete, in the workers' order.

        With each, whether it carries: see `Entry`; `applied` are the updates that there are. None
        if the round lacks others still, or nothing. Without backups.
        """
        now, missing = self._gate.floor, self.missing()
        come = {push.worker: push for push in pushes if push.clock == now}
        if not missing or not come.keys() >= set(missing):
            return None
        gathered: list[tuple[Push, bool]] = []
        for push in (come[worker] for worker in missing):
            twice = any(push.key == other.key for other, _ in gathered)
            carries = not (twice or push.key in applied or self.waits(push.key))
            gathered.append((push, carries))
        return gathered

    def still_to_come(self) -> int:
        """How many pushes the current round waits for."""
        return max(self._enough() - len(self._rounds.get(self._gate.floor, ())), 0)

    def missing(self) -> list[int]:
        """The workers whose push for the current round has not come, and may be waited for."""
        gate = self._gate
        now = gate.floor
        come = self._rounds.get(now, {})
        return sorted(w for w in gate.active if w not in come and gate.clock(w) == now)

    def take(self) -> Complete | None:
        """Take out the current round, if it is complete."""
        now = self._gate.floor
        if self.follows:
            return self._take_told(now)
        if not self._rounds:
            return None
        missing = self.missing()
        if not self.backups:
            return None if missing else self._complete(min(self._rounds), None, [])
        if len(self._rounds.get(now, ())) < self._enough():
            return None
        round_ = self._complete(now, None, missing)
        self._remember(round_)
        return round_

    def _take_told(self, now: int) -> Complete | None:
        told = self.closed.get(now)
        if told is None:
            return None
        missing = self.missing()
        if not set(told).isdisjoint(missing):
            return None
        self.closed = {clock: told for clock, told in self.closed.items() if clock > now}
        return self._complete(now, told, missing)

    def _complete(self, clock: int, told: Collection[int] | None, absent: list[int]) -> Complete:
        entries = [entry for _, entry in sorted(self._rounds.pop(clock, {}).items())]
        self._keys.difference_update(entry.push.key for entry in entries)
        if told is None:
            return Complete(clock, entries, [], absent)
        taken = [e for e in entries if e.push.worker in told]
        late = [e for e in entries if e not in taken]
        return Complete(clock, taken, late, absent)

    def _remember(self, round_: Complete) -> None:
        self.closed[round_.clock] = tuple(entry.push.worker for entry in round_.entries)
        while len(self.closed) > _REMEMBERED:
            del self.closed[min(self.closed)]

    def _enough(self) -> int:
        return max(self._gate.slowest - self.backups, 1)
