"""Synchronous training is training in one process on one large batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import TensorDataset

from psrpc.job import Job
from psrpc.modes import Reduction, Synchronous
from psrpc.worker import Worker
from tests.unit.reference import (
    batch_of,
    mlp,
    relative_error,
    run_local,
    same_state,
    seeded,
    train_alone,
    train_steps,
)

STEPS = 50
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adam": partial(torch.optim.Adam, lr=0.01),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
}
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}
schedule = partial(StepLR, step_size=7, gamma=0.7)


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights decay, biases do not and learn at a rate of their own."""
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if "weight" in name], "weight_decay": 0.1},
        {"params": [p for name, p in named if "bias" in name], "lr": 0.003, "weight_decay": 0.0},
    ]


def train_scheduled(worker: Worker, dtype: torch.dtype, sizes: tuple[int, ...]) -> None:
    scheduler = schedule(worker.optimizer)
    for step in range(STEPS):
        inputs, targets = batch_of(step, worker.rank, sizes[worker.rank], dtype)
        F.mse_loss(worker.model(inputs), targets).backward()
        worker.step(samples=len(inputs))
        scheduler.step()


def errors(name: str, dtype: torch.dtype, servers: int, sizes: tuple[int, ...]) -> list[float]:
    """Every worker's distance from the model of one process."""

    def model() -> nn.Module:
        return mlp().to(dtype)

    train = partial(train_scheduled, dtype=dtype, sizes=sizes)
    job = Job(len(sizes), servers, Synchronous())
    report, models = run_local(job, model, OPTIMIZERS[name], train, two_groups)
    assert report.optimizer_steps == STEPS
    assert report.updates_applied == report.worker_steps == STEPS * len(sizes)
    assert report.samples == STEPS * sum(sizes)
    alone = seeded(model)
    data = [[batch_of(s, r, size, dtype) for r, size in enumerate(sizes)] for s in range(STEPS)]
    train_alone(alone, OPTIMIZERS[name](two_groups(alone)), data, schedule)
    assert all(same_state(models[0], other) for other in models), "all workers end alike"
    return [relative_error(model, alone) for model in models]


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_equal_batches(servers: int, workers: int) -> None:
    error = max(errors("adam", torch.float64, servers, (4,) * workers))
    assert error < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equal_batches_by_each_optimizer(name: str, dtype: torch.dtype) -> None:
    assert max(errors(name, dtype, 2, (4, 4))) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_batches_of_different_size_weigh_by_samples(name: str, dtype: torch.dtype) -> None:
    assert max(errors(name, dtype, 2, (1, 6, 3))) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_worker_equals_one_process_exactly(name: str) -> None:
    assert errors(name, torch.float64, 3, (4,)) == [0.0]


def test_reduction_sum_adds_the_workers_gradients() -> None:
    sizes = (2, 5, 3)
    job = Job(3, 2, Synchronous(), Reduction.SUM)
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    _, models = run_local(job, mlp, optimizer, train_steps(20, sizes.__getitem__))
    alone = seeded(mlp)
    plain = optimizer(alone.parameters())
    for step in range(20):
        plain.zero_grad()
        for rank, size in enumerate(sizes):
            inputs, targets = batch_of(step, rank, size)
            F.mse_loss(alone(inputs), targets).backward()
        plain.step()
    assert relative_error(models[0], alone) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_gradients_are_averaged_in_float32(dtype: torch.dtype) -> None:
    gradients = [torch.tensor([value], dtype=dtype) for value in (1.0, 1.0, 0.01)]

    def train(worker: Worker) -> None:
        worker.model.weight.grad = gradients[worker.rank].view(1, 1)
        worker.step(samples=1 + worker.rank)

    def model() -> nn.Module:
        return nn.Linear(1, 1, bias=False).to(dtype)

    optimizer = partial(torch.optim.SGD, lr=1.0)
    _, models = run_local(Job(3, 1, Synchronous()), model, optimizer, train)
    mean = sum(float(g) * weight for g, weight in zip(gradients, (1, 2, 3), strict=True)) / 6
    alone = seeded(model)
    alone.weight.grad = torch.tensor([[mean]]).to(dtype)
    optimizer(alone.parameters()).step()
    assert same_state(models[0], alone)


def test_batches_of_one_dataset_make_the_steps_of_one_process() -> None:
    """48 samples by 4 over 3 workers: whoever gets which, a round holds 12 of them."""
    inputs, targets = batch_of(0, 0, 48)
    dataset = TensorDataset(inputs, targets)
    used: dict[int, list[torch.Tensor]] = {}

    def train(worker: Worker) -> None:
        for x, y in worker.batches(dataset, 4):
            used.setdefault(worker.clock, []).append(x)
            F.mse_loss(worker.model(x), y).backward()
            worker.step()

    optimizer = partial(torch.optim.Adam, lr=0.01)
    report, models = run_local(Job(3, 2, Synchronous()), mlp, optimizer, train)
    assert report.samples == 48
    rows = {tuple(row.tolist()): target for row, target in zip(inputs, targets, strict=True)}
    data = []
    for _, parts in sorted(used.items()):
        x = torch.cat(parts)
        data.append([(x, torch.stack([rows[tuple(row.tolist())] for row in x]))])
    assert sum(len(part[0][0]) for part in data) == 48
    alone = seeded(mlp)
    train_alone(alone, optimizer(alone.parameters()), data)
    assert relative_error(models[0], alone) < 1e-6
    assert all(same_state(models[0], other) for other in models)


def test_a_worker_with_fewer_steps_leaves_the_others_to_theirs() -> None:
    """Three steps of both workers, then two of worker 1 alone."""
    steps = (3, 5)

    def train(worker: Worker) -> None:
        train_steps(steps[worker.rank])(worker)

    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    report, models = run_local(Job(2, 2, Synchronous()), mlp, optimizer, train)
    assert report.optimizer_steps == 5
    data = [[batch_of(s, r) for r in range(2) if s < steps[r]] for s in range(5)]
    alone = seeded(mlp)
    train_alone(alone, optimizer(alone.parameters()), data)
    assert max(relative_error(model, alone) for model in models) < 1e-12
