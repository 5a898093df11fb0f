"""psrpc itself, as `psrpc.run` offers it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

import psrpc
from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.variants import Variant, name_of
from benchmarks.workload import Workload
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.worker import Worker

MODES: dict[str, Mode] = {
    "sync": Synchronous(),
    "bounded": BoundedStaleness(4),
    "async": Asynchronous(),
}


def contender(
    workload: Workload,
    variant: Variant,
    mode: str,
    workers: int,
    servers: int = 1,
    *,
    optimizer: Callable[..., Any] | None = None,
) -> Job:
    """One job that stays alive; its workers pause between turns. It steps plain SGD by default."""
    stepped = optimizer or functools.partial(torch.optim.SGD, lr=workload.lr)
    part = Part(play, (workload, variant, mode, servers, stepped))
    name = name_of(variant.name, mode, servers)
    return Job(name, [part] * (servers + workers), servers)


def play(
    stage: Stage,
    workload: Workload,
    variant: Variant,
    mode: str,
    servers: int,
    optimizer: Callable[..., Any],
) -> None:
    """Be one process of the job, whichever its rank makes it."""
    psrpc.run(
        functools.partial(_train, stage=stage, workload=workload, autograd=variant.autograd),
        model=workload.model,
        optimizer=optimizer,
        mode=MODES[mode],
        servers=servers,
        device="cpu",
        threads=1,
        **variant.arguments,
    )


def _train(worker: Worker, *, stage: Stage, workload: Workload, autograd: bool) -> None:
    gradients = workload.gradients(worker.model, worker.rank, worker.num_workers, autograd=autograd)

    def step() -> None:
        worker.step(gradients())

    stage.play(step, resting=worker.paused)
