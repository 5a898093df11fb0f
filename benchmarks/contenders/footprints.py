"""What psrpc's processes hold, beside one that has the same model and does nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks import proc
from benchmarks.contender import Figure, Plan, Sample
from benchmarks.contenders import limit, ours
from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.proc import Footprint
from benchmarks.processes import Part
from benchmarks.variants import Variant
from benchmarks.workload import Cheap

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.01),
    "momentum": functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9),
    "Adam": functools.partial(torch.optim.Adam, lr=0.01),
}
_KINDS = ("pss", "uss", "rss")


def _name(role: str, kind: str) -> str:
    return f"{role} {kind.upper()} MB"


MEMORY = tuple(Figure(_name(role, kind)) for role in ("server", "worker") for kind in _KINDS)
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
    """A job beside a bare process; a turn is some steps, then a look at both.

    `roles` are the figures' names of the job's first ranks.
    """

    def __init__(self, name: str, job: Job, bare: Job, roles: Sequence[str]) -> None:
        self.name = name
        self._job = job
        self._bare = bare
        self._roles = roles

    def start(self) -> None:
        """See `Contender`."""
        self._job.start()
        self._bare.start()

    def run(self, plan: Plan) -> Sample:
        """Memory of each role, less the bare process's."""
        self._job.run(plan)
        (bare,) = look(self._bare)
        holding = dict(zip(self._roles, look(self._job), strict=False))
        return Sample(
            {
                _name(role, kind): getattr(process.memory, kind) - getattr(bare.memory, kind)
                for role, process in holding.items()
                for kind in _KINDS
            }
        )

    def stop(self) -> None:
        """See `Contender`."""
        try:
            self._job.stop()
        finally:
            self._bare.stop()


def of_job(workload: Cheap, variant: Variant, optimizer: str, workers: int) -> Beyond:
    """A server and a worker of psrpc."""
    name = f"{optimizer}, {variant.name}"
    made = OPTIMIZERS[optimizer]
    job = ours.contender(workload, variant, variant.modes[0], workers, optimizer=made)
    return Beyond(name, job, limit.contender(workload, 1), ("server", "worker"))


def of_one(workload: Cheap, optimizer: str) -> Beyond:
    """One process that trains by itself with torch.optim, in the worker's columns."""
    name = f"{optimizer}, one process"
    job = Job(name, [Part(play_one, (workload, optimizer))])
    return Beyond(name, job, limit.contender(workload, 1), ("worker",))


def play_one(stage: Stage, workload: Cheap, optimizer: str) -> None:
    """Be that process."""
    torch.set_num_threads(1)
    model = workload.model()
    stepper = OPTIMIZERS[optimizer](model.parameters())
    gradients = workload.gradients(model, 0, 1)

    def step() -> None:
        gradients()
        stepper.step()

    stage.play(step)


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
