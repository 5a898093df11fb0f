"""What a shard counts of its updates: how many, and how old their weights were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from psrpc.counts import Coverage, ShardStats
from psrpc.messages import Push


@dataclass
class _Begun:
    """The state of things when a worker was allowed to start the step at `clock`.

    `own` of the updates since then are the worker's.
    """

    clock: int
    lead: int
    updates: int
    own: int = 0


class Counting:
    """One shard's counters."""

    def __init__(self) -> None:
        self.duplicates = 0
        self.dropped_late = 0
        self._updates = 0
        self._samples = 0
        self._samples_before = 0
        self._voids = 0
        self._max_gap = 0
        self._staleness: Counter[int] = Counter()
        self._update_lag: Counter[int] = Counter()
        self._begun: dict[int, list[_Begun]] = {}  # by worker, the latest last

    def begins(self, worker: int, clock: int, lead: int, *, ahead: int, reads: bool) -> None:
        """A worker may start the step at `clock`, and does with new weights if it `reads` them."""
        begun = self._begun.setdefault(worker, [])
        if reads and (not begun or begun[-1].clock < clock):
            begun.append(_Begun(clock, lead, self._updates))
        self._max_gap = max(self._max_gap, lead + ahead)

    def keep(self, workers: Set[int]) -> None:
        """Others than `workers` start, if they come back, from the weights of that moment."""
        for worker in self._begun.keys() - workers:
            del self._begun[worker]

    def count(self, push: Push) -> int:
        """Enter an update's samples and age; returns its staleness in clocks.

        Of those that are applied together no one is later than another: `applied` is told then.
        """
        self._samples += push.samples
        self._voids += push.void
        begun = self._began_with(push)
        if begun is None:
            return 0
        staleness = begun.lead + push.clock - begun.clock
        self._staleness[staleness] += 1
        self._update_lag[self._updates - begun.updates - begun.own] += 1
        for each in self._begun[push.worker]:
            each.own += 1
        return staleness

    def applied(self, updates: int) -> None:
        """So many updates, which were counted, are applied together."""
        self._updates += updates

    def _began_with(self, push: Push) -> _Begun | None:
        """The state of things when the weights were read that this push was made from."""
        begun = self._begun.get(push.worker, [])
        while len(begun) > 1 and (push.read is None or begun[1].clock <= push.read):
            del begun[0]
        return begun[0] if begun else None

    def stats(self, optimizer_steps: int, coverage: tuple[Coverage, ...]) -> ShardStats:
        """The counters since the start."""
        return ShardStats(
            updates_applied=self._updates,
            duplicates_dropped=self.duplicates,
            optimizer_steps=optimizer_steps,
            samples=self._samples,
            samples_before=self._samples_before,
            void_updates=self._voids,
            max_clock_gap=self._max_gap,
            dropped_late=self.dropped_late,
            staleness=tuple(sorted(self._staleness.items())),
            update_lag=tuple(sorted(self._update_lag.items())),
            coverage=coverage,
        )

    def record(self) -> dict[str, int]:
        """What a checkpoint keeps of them."""
        return {
            "updates": self._updates,
            "samples": self._samples,
            "duplicates": self.duplicates,
            "voids": self._voids,
            "dropped_late": self.dropped_late,
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Go on from what `record` gave, or, if it says `samples_before`, from an earlier one."""
        self._updates, self._samples = int(record["updates"]), int(record["samples"])
        self._samples_before = int(record.get("samples_before", self._samples))
        self.duplicates, self._voids = int(record["duplicates"]), int(record["voids"])
        self.dropped_late = int(record.get("dropped_late", 0))
