"""What psrpc's processes hold, beside one that has the same model and does nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import proc
from benchmarks.contender import Figure, Plan, Sample
from benchmarks.contenders import limit, ours
from benchmarks.contenders.job import Job
from benchmarks.proc import Footprint
from benchmarks.variants import Variant
from benchmarks.workload import Cheap

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.01),
    "momentum": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "Adam": functools.partial(torch.optim.Adam, lr=0.01),
}
MEMORY = tuple(
    Figure(f"{role} {kind.upper()} MB")
    for role in ("server", "worker")
    for kind in ("pss", "uss", "rss")
)
GROWTH = (
    Figure("MB grown", 1),
    Figure("server RSS MB"),
    Figure("worker RSS MB"),
    Figure("threads grown"),
    Figure("files grown"),
    Figure("threads"),
    Figure("files"),
)


class Beyond:
    """One job of one server, and a bare process; a turn is some steps, then a look at both."""

    def __init__(
        self, name: str, workload: Cheap, variant: Variant, optimizer: str, workers: int
    ) -> None:
        self.name = name
        made = OPTIMIZERS[optimizer]
        self._job = ours.contender(workload, variant, "sync", workers, optimizer=made)
        self._bare = limit.contender(workload, 1)

    def start(self) -> None:
        """See `Contender`."""
        self._job.start()
        self._bare.start()

    def run(self, plan: Plan) -> Sample:
        """Memory of the server and of a worker, less the bare process's."""
        self._job.run(plan)
        (bare,) = look(self._bare)
        server, worker, *_ = look(self._job)
        return Sample(
            {
                f"{role} {kind.upper()} MB": getattr(process.memory, kind)
                - getattr(bare.memory, kind)
                for role, process in (("server", server), ("worker", worker))
                for kind in ("pss", "uss", "rss")
            }
        )

    def stop(self) -> None:
        """See `Contender`."""
        try:
            self._job.stop()
        finally:
            self._bare.stop()


class Growth:
    """One job; a turn is the plan's steps with a look at the end of the warm-up and of all."""

    def __init__(self, name: str, job: Job) -> None:
        self.name = name
        self._job = job

    def start(self) -> None:
        """See `Contender`."""
        self._job.start()

    def run(self, plan: Plan) -> Sample:
        """What has been added between the two looks, over all processes."""
        self._job.run(Plan(1, warmup=plan.warmup - 1))
        early = look(self._job)
        self._job.run(Plan(plan.steps, warmup=0))
        late = look(self._job)
        values = (
            _sum(late, _rss) - _sum(early, _rss),
            late[0].memory.rss,
            late[1].memory.rss,
            _sum(late, _threads) - _sum(early, _threads),
            _sum(late, _files) - _sum(early, _files),
            _sum(late, _threads),
            _sum(late, _files),
        )
        return Sample({figure.name: value for figure, value in zip(GROWTH, values, strict=True)})

    def stop(self) -> None:
        """See `Contender`."""
        self._job.stop()


def look(job: Job) -> list[Footprint]:
    """Every member's footprint, by rank."""
    return [proc.footprint(pid) for pid in job.group.pids()]


def _sum(footprints: list[Footprint], part: Callable[[Footprint], float]) -> float:
    return sum(part(footprint) for footprint in footprints)


def _rss(footprint: Footprint) -> float:
    return footprint.memory.rss


def _threads(footprint: Footprint) -> float:
    return footprint.threads


def _files(footprint: Footprint) -> float:
    return footprint.files
