"""The plainest reference: torch.optim in one process, on the samples of all workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from psrpc.job import Job
from psrpc.report import Report
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker

Batch = tuple[torch.Tensor, torch.Tensor]
Schedule = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


def batch_of(
    step: int, rank: int, size: int = 4, dtype: torch.dtype = torch.float64, width: int = 5
) -> Batch:
    """The data of one worker's step: inputs (size, width) and targets (size, 3)."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    values = torch.randn(size, width + 3, generator=generator, dtype=torch.float64).to(dtype)
    return values[:, :width], values[:, width:]


def mlp() -> nn.Module:
    """A small float64 network, as the current random state has it."""
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def seeded(model: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The model that the servers of a job with this seed have."""
    torch.manual_seed(seed)
    return model()


def train_alone(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[Sequence[Batch]],
    schedule: Schedule | None = None,
) -> nn.Module:
    """One optimizer step for each element of `steps`: the mean loss over its joined batches."""
    scheduler = schedule(optimizer) if schedule else None
    for parts in steps:
        optimizer.zero_grad()
        inputs, targets = (torch.cat(column) for column in zip(*parts, strict=True))
        F.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        if scheduler:
            scheduler.step()
    return model


def train_steps(
    steps: int, size: Callable[[int], int] = lambda rank: 4, **options: Any
) -> Callable[[Worker], None]:
    """A training function: `steps` steps on `batch_of` data, `size(rank)` samples each."""

    def train(worker: Worker) -> None:
        for step in range(steps):
            inputs, targets = batch_of(step, worker.rank, size(worker.rank), **options)
            F.mse_loss(worker.model(inputs), targets).backward()
            worker.step(samples=len(inputs))

    return train


def run_local(
    job: Job,
    model: Callable[[], nn.Module],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    train: Callable[[Worker], Any],
    param_groups: Callable[[nn.Module], Iterable[dict[str, Any]]] | None = None,
) -> tuple[Report, list[nn.Module]]:
    """Run a job in this process; returns its report and the workers' trained models."""
    local = LocalJob(job, model, optimizer, param_groups)
    report = local.run(train)
    return report, [worker.model for worker in local.workers]


def relative_error(model: nn.Module, reference: nn.Module) -> float:
    """The norm of the difference of all parameters, over the norm of the reference's."""
    ours, theirs = (
        torch.cat([p.detach().double().flatten() for p in m.parameters()])
        for m in (model, reference)
    )
    return float((ours - theirs).norm() / theirs.norm())


def same_state(model: nn.Module, reference: nn.Module) -> bool:
    """Whether parameters and buffers are equal bit by bit."""
    ours, theirs = model.state_dict(), reference.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
