"""psrpc itself, as `psrpc.run` offers it."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

import psrpc
from benchmarks.contenders.job import Job
from benchmarks.member import Stage
from benchmarks.processes import Part
from benchmarks.workload import Workload
from psrpc.modes import Mode
from psrpc.worker import Worker


def contender(
    name: str, workload: Workload, mode: Mode, plane: str, servers: int, workers: int
) -> Job:
    """One job that stays alive; its workers pause between rounds."""
    part = Part(play, (workload, mode, plane, servers))
    return Job(name, [part] * (servers + workers), servers)


def play(stage: Stage, workload: Workload, mode: Mode, plane: str, servers: int) -> None:
    """Be one process of the job, whichever its rank makes it."""
    psrpc.run(
        functools.partial(_train, stage=stage, workload=workload),
        model=workload.model,
        optimizer=functools.partial(torch.optim.SGD, lr=workload.lr),
        mode=mode,
        plane=plane,
        servers=servers,
        device="cpu",
        threads=1,
    )


def _train(worker: Worker, *, stage: Stage, workload: Workload) -> None:
    batches = workload.batches(worker.rank, worker.num_workers)

    def step() -> None:
        images, labels = next(batches)
        loss = F.cross_entropy(worker.model(images), labels)
        loss.backward()
        worker.step(loss)

    stage.play(step, resting=worker.paused)
