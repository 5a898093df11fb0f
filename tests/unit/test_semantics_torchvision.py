"""A real network: torchvision's resnet18, with its many BatchNorm layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from psrpc.job import Job
from psrpc.modes import Synchronous
from psrpc.worker import Worker
from tests.unit.reference import run_local, same_state, seeded

STEPS = 3
optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4)


@pytest.fixture(scope="module")
def models() -> ModuleType:
    """torchvision.models, where torchvision is there and fits this torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchvision import models
    except (ImportError, RuntimeError, AttributeError) as error:
        pytest.skip(f"torchvision cannot be used here: {error}")
    return models


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The order of additions depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch_of(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    return images, torch.randint(0, 10, (4,), generator=generator)


def train(worker: Worker) -> None:
    worker.model.train()
    for step in range(STEPS):
        images, labels = batch_of(step, worker.rank)
        loss = F.cross_entropy(worker.model(images), labels)
        loss.backward()
        worker.step(loss, samples=len(images))


def test_one_worker_equals_one_process(models: ModuleType) -> None:
    """Over two servers: weights, running statistics and the output in evaluation mode."""

    def resnet() -> nn.Module:
        return models.resnet18(num_classes=10)

    _, (trained,) = run_local(Job(1, 2, Synchronous()), resnet, optimizer, train)
    alone = seeded(resnet)
    plain = optimizer(alone.parameters())
    for step in range(STEPS):
        images, labels = batch_of(step, 0)
        plain.zero_grad()
        F.cross_entropy(alone(images), labels).backward()
        plain.step()
    assert not same_state(alone, seeded(resnet))
    assert same_state(trained, alone)
    images, _ = batch_of(99, 0)
    with torch.no_grad():
        assert torch.equal(trained.eval()(images), alone.eval()(images))


def test_two_workers_train_it(models: ModuleType) -> None:
    def resnet() -> nn.Module:
        return models.resnet18(num_classes=10)

    report, (first, second) = run_local(Job(2, 2, Synchronous()), resnet, optimizer, train)
    assert (report.optimizer_steps, report.updates_applied, report.samples) == (3, 6, 24)
    assert report.final_loss is not None
    assert same_state(first, second), "weights and mean statistics are everybody's"
    assert not same_state(first, seeded(resnet))
    assert int(first.bn1.num_batches_tracked) == STEPS
