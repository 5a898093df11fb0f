"""psrpc with and without a backup, on this host or each process on a virtual one of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import proc
from benchmarks.contender import CPU, OTHERS, RATE, Figure, Plan, Sample
from benchmarks.contenders import ours
from benchmarks.contenders.job import Job
from benchmarks.namespaces import Fleet, traffic
from benchmarks.processes import Part, Seats
from benchmarks.variants import Variant
from benchmarks.workload import Workload

PRIMARY = Figure("primary CPU ms", 3)
BACKUP = Figure("backup CPU ms", 3)
WAITS = Figure("primary's waits", 1)
BACKUP_WAITS = Figure("backup's waits", 1)
TO_BACKUP = Figure("bytes to backup", 0)
FROM_BACKUP = Figure("bytes from backup", 0)
FIGURES = (RATE, CPU, PRIMARY, BACKUP, WAITS, BACKUP_WAITS, TO_BACKUP, FROM_BACKUP, OTHERS)
HOSTS = 4


class Paired(Job):
    """A job of one server, with a backup or without one. All figures are by worker step.

    On a fleet the primary is on the first host, its backup on the second, and the workers are
    dealt out to the others.
    """

    def __init__(
        self,
        name: str,
        workload: Workload,
        variant: Variant,
        mode: str,
        workers: int,
        *,
        backups: int,
        fleet: Fleet | None = None,
        optimizer: Callable[..., Any] | None = None,
    ) -> None:
        stepped = optimizer or functools.partial(torch.optim.SGD, lr=workload.lr)
        given = Variant(variant.name, variant.arguments | {"replicas": backups})
        parts = [Part(ours.play, (workload, given, mode, 1, stepped))] * (1 + backups + workers)
        self._backups, self._fleet = backups, fleet
        seats = None if fleet is None else Seats(fleet, _hosts(backups, workers, len(fleet.names)))
        super().__init__(name, parts, 1 + backups, seats=seats)

    def run(self, plan: Plan) -> Sample:
        """See `Contender`."""
        serving = self.group.pids()[: 1 + self._backups]
        steps = (plan.warmup + plan.steps) * len(self._workers)
        before = self._counts(serving)
        sample = super().run(plan)
        counted = [late - early for late, early in zip(self._counts(serving), before, strict=True)]
        names = [PRIMARY, WAITS, *((BACKUP, BACKUP_WAITS) if self._backups else ())]
        names += [TO_BACKUP, FROM_BACKUP] if self._fleet is not None and self._backups else []
        more = {figure.name: n / steps for figure, n in zip(names, counted, strict=True)}
        return Sample(sample.figures | more)

    def _counts(self, serving: Sequence[int]) -> list[float]:
        counts: list[float] = []
        for pid in serving:
            counts += [1000 * proc.cpu_s(pid), proc.waits(pid)]
        if self._fleet is not None and self._backups:
            counts += traffic(self._fleet.names[1])
        return counts


def _hosts(backups: int, workers: int, hosts: int) -> tuple[int, ...]:
    return (*range(1 + backups), *(2 + number % (hosts - 2) for number in range(workers)))
