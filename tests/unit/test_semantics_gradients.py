"""Gradients that are missing, frozen, or of the wrong shape."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from psrpc.errors import GradientError
from psrpc.job import Job
from psrpc.messages import Failure, Push
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker
from tests.unit.reference import (
    batch_of,
    mlp,
    relative_error,
    run_local,
    same_state,
    seeded,
    train_steps,
)

ELEMENTWISE = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": partial(torch.optim.Adam, lr=0.02),
    "adagrad": partial(torch.optim.Adagrad, lr=0.05),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "nadam": partial(torch.optim.NAdam, lr=0.02),
}
# For each step, for each of two workers: does it use the second branch?
USES = [(True, True), (False, False), (True, False), (False, True), (False, False), (True, True)]


class Branches(nn.Module):
    """A second branch that not every step uses; its weight is most of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 3)
        self.second = nn.Sequential(nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 3))

    def forward(self, x: torch.Tensor, both: bool) -> torch.Tensor:
        return self.first(x) + self.second(x) if both else self.first(x)


def branches() -> nn.Module:
    return Branches().double()


def check_branches(optimizer: Callable[[Any], torch.optim.Optimizer], job: Job) -> float:
    def train(worker: Worker) -> None:
        for step, uses in enumerate(USES):
            inputs, targets = batch_of(step, worker.rank, 3 + worker.rank)
            F.mse_loss(worker.model(inputs, uses[worker.rank]), targets).backward()
            worker.step(samples=len(inputs))

    _, models = run_local(job, branches, optimizer, train)
    alone = seeded(branches)
    plain = optimizer(alone.parameters())
    for step, uses in enumerate(USES):
        plain.zero_grad()
        for rank in range(job.workers):
            inputs, targets = batch_of(step, rank, 3 + rank)
            share = len(inputs) / sum(3 + r for r in range(job.workers))
            (F.mse_loss(alone(inputs, uses[rank]), targets) * share).backward()
        plain.step()
    if job.workers == 1:
        assert same_state(models[0], alone)
    return relative_error(models[0], alone)


@pytest.mark.parametrize("servers", [1, 2, 3])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_parameters_without_a_gradient_are_left_alone(name: str, servers: int) -> None:
    """One worker: equal bit by bit, before and after the flat segments fall apart."""
    assert check_branches(ELEMENTWISE[name], Job(1, servers)) == 0.0


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_gradient_of_some_workers_only_counts_with_their_share(name: str, servers: int) -> None:
    assert check_branches(ELEMENTWISE[name], Job(2, servers)) < 1e-9


def test_a_branch_that_comes_later_starts_with_fresh_state() -> None:
    def train(worker: Worker) -> None:
        for step in range(4):
            inputs, targets = batch_of(step, 0)
            F.mse_loss(worker.model(inputs, step > 1), targets).backward()
            worker.step()
        state = worker.optimizer.state_dict()["state"]
        assert [float(state[i]["step"]) for i in range(6)] == [4.0, 4.0, 2.0, 2.0, 2.0, 2.0]

    run_local(Job(1, 2), branches, ELEMENTWISE["adam"], train)


def frozen_random() -> Callable[[], nn.Module]:
    """Models whose first layer is frozen and different in each process."""
    numbers = itertools.count()

    def model() -> nn.Module:
        built = mlp()
        built[0].requires_grad_(False)
        with torch.no_grad():
            built[0].weight.add_(next(numbers))
        return built

    return model


def test_frozen_parameters_are_the_servers() -> None:
    model = frozen_random()
    first_servers = seeded(model)[0].weight
    local = LocalJob(Job(2, 2), frozen_random(), ELEMENTWISE["adam"])
    local.run(train_steps(3))
    for worker in local.workers:
        assert torch.equal(worker.model[0].weight, first_servers)
        assert not torch.equal(worker.model[2].weight, seeded(model)[2].weight)


def test_a_frozen_parameter_that_gets_a_gradient_later_is_an_error() -> None:
    def train(worker: Worker) -> None:
        train_steps(1)(worker)
        worker.model[0].weight.requires_grad_(True)
        train_steps(1)(worker)

    with pytest.raises(GradientError, match=r"'0\.weight' was frozen when the job began"):
        run_local(Job(1), frozen_random(), ELEMENTWISE["sgd"], train)


def test_a_step_of_no_samples_has_no_weight() -> None:
    def train(worker: Worker) -> None:
        inputs, targets = batch_of(0, worker.rank)
        F.mse_loss(worker.model(inputs), targets).backward()
        worker.step(samples=len(inputs) if worker.rank else 0)

    optimizer = ELEMENTWISE["sgd"]
    _, (model, _) = run_local(Job(2), mlp, optimizer, train)
    alone = seeded(mlp)
    inputs, targets = batch_of(0, 1)
    F.mse_loss(alone(inputs), targets).backward()
    optimizer(alone.parameters()).step()
    assert relative_error(model, alone) < 1e-12


WRONG = {
    "too few tensors": lambda flats: flats[:-1],
    "too many": lambda flats: [*flats, flats[0]],
    "too long": lambda flats: [*flats[:-1], torch.cat([flats[-1], flats[-1]])],
    "not flat": lambda flats: [*flats[:-1], flats[-1][None]],
    "another dtype": lambda flats: [*flats[:-1], flats[-1].float()],
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_server_refuses_gradients_that_do_not_fit(wrong: Callable[[Any], Any]) -> None:
    """And nothing of them is applied: the right push with the same key still is."""
    local = LocalJob(Job(1, 1), mlp, ELEMENTWISE["sgd"])
    local.start()
    service = local.services[0]
    server = service.server

    def train(worker: Worker) -> None:
        worker.pull().result()
        before = [flat.clone() for flat in server.store.flats]
        flats = [torch.ones_like(flat) for flat in before]
        push = Push(0, 0, worker._progress.own_key(), 1)
        answers: list[Any] = []
        service.handle(push, wrong(flats), answers.append)
        ((reply, _),) = answers
        assert isinstance(reply, Failure)
        assert reply.error[0] == "GradientError"
        assert all(torch.equal(a, b) for a, b in zip(server.store.flats, before, strict=True))
        assert server.core.stats().updates_applied == 0
        train_steps(1)(worker)

    assert local.run(train).updates_applied == 1


def test_a_worker_refuses_gradients_that_do_not_fit() -> None:
    def train(worker: Worker) -> None:
        worker.model.float()
        worker.model.weight.grad = None
        worker.model(torch.tensor([0, 2])).sum().backward()
        worker.step()

    optimizer = partial(torch.optim.SGD, lr=0.1)
    match = "'weight' is .*float32, the servers keep it as .* float64"
    with pytest.raises(GradientError, match=match):
        run_local(Job(1), lambda: nn.Embedding(4, 3).double(), optimizer, train)


@pytest.mark.parametrize("kept", [True, False])
def test_sparse_gradients_become_dense(kept: bool) -> None:
    """Whether autograd adds to the gradient that is there, or the loop takes it away before."""

    def train(worker: Worker) -> None:
        for index in range(3):
            if not kept:
                worker.model.zero_grad(set_to_none=True)
            worker.model(torch.tensor([index, 2])).square().sum().backward()
            worker.step()

    def embedding(*, sparse: bool) -> nn.Module:
        return nn.Embedding(4, 3, sparse=sparse).double()

    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    _, (sparse,) = run_local(Job(1), partial(embedding, sparse=True), optimizer, train)
    _, (dense,) = run_local(Job(1), partial(embedding, sparse=False), optimizer, train)
    assert same_state(sparse, dense)
    assert not same_state(dense, seeded(partial(embedding, sparse=False)))
