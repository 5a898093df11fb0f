"""Gradients that are not finite: the job ends with their name, or such steps are skipped."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from psrpc.errors import JobFailedError, NonFiniteGradientError
from psrpc.job import Job, NonFinite
from psrpc.messages import Push, Stream, StreamKind, UpdateKey
from psrpc.meter import Meter
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.planes import wire
from psrpc.testing.clock import ManualClock
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

MODES = [Synchronous(), BoundedStaleness(1), Asynchronous()]
Adam = partial(torch.optim.Adam, lr=0.02)
Momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def poisoned(worker: Worker, value: float) -> None:
    worker.model(torch.ones(1, 5).double()).sum().backward()
    worker.model[2].weight.grad[1, 1] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_not_finite_is_an_error_with_a_name(value: float) -> None:
    """And the other worker, which waits in the round, is told."""
    others: list[BaseException] = []

    def train(worker: Worker) -> None:
        if worker.rank == 1:
            poisoned(worker, value)
            worker.step()
        try:
            train_steps(3)(worker)
        except JobFailedError as error:
            others.append(error)
            raise

    with pytest.raises(NonFiniteGradientError, match=r"'2\.weight' has NaN or Inf in step 0"):
        run_local(Job(2, 2), mlp, Adam, train)
    assert "worker 1 failed: NonFiniteGradientError" in str(others[0])


def test_large_finite_gradients_are_not_taken_for_infinite() -> None:
    def train(worker: Worker) -> None:
        worker.model.weight.grad = torch.full((4, 4), 3e38)
        worker.step()

    report, _ = run_local(Job(1), lambda: nn.Linear(4, 4), partial(torch.optim.SGD, lr=0.0), train)
    assert report.updates_applied == 1


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_skipping_leaves_weights_and_state_and_goes_on(mode: Mode) -> None:
    def train(worker: Worker) -> None:
        train_steps(2)(worker)
        before = worker.model[2].weight.clone()
        poisoned(worker, float("nan"))
        worker.step()
        assert torch.equal(worker.model[2].weight, before)
        train_steps(2)(worker)

    job = Job(1, 2, mode, nonfinite=NonFinite.SKIP)
    report, (model,) = run_local(job, mlp, Adam, train)
    _, (clean,) = run_local(job, mlp, Adam, lambda w: [train_steps(2)(w), train_steps(2)(w)])
    assert same_state(model, clean)
    assert report.nonfinite_skipped == 1
    assert (report.worker_steps, report.updates_applied, report.optimizer_steps) == (5, 5, 4)


def test_a_skipped_step_of_one_worker_does_not_hold_up_the_round() -> None:
    """The round is made of the others' gradients, in their proportion."""

    def train(worker: Worker) -> None:
        for step in range(3):
            inputs, targets = batch_of(step, worker.rank, 2 + worker.rank)
            F.mse_loss(worker.model(inputs), targets).backward()
            if step == worker.rank:
                worker.model[0].bias.grad[0] = float("inf")
            worker.step(samples=len(inputs))

    job = Job(3, 2, Synchronous(), nonfinite=NonFinite.SKIP)
    optimizer = Momentum
    report, models = run_local(job, mlp, optimizer, train)
    alone = seeded(mlp)
    plain = optimizer(alone.parameters())
    for step in range(3):
        plain.zero_grad()
        data = [batch_of(step, rank, 2 + rank) for rank in range(3) if rank != step]
        inputs, targets = (torch.cat(column) for column in zip(*data, strict=True))
        F.mse_loss(alone(inputs), targets).backward()
        plain.step()
    assert max(relative_error(model, alone) for model in models) < 1e-12
    assert (report.nonfinite_skipped, report.optimizer_steps) == (3, 3)


def test_a_round_of_skipped_steps_makes_no_optimizer_step() -> None:
    def train(worker: Worker) -> None:
        poisoned(worker, float("nan"))
        worker.step()

    job = Job(2, 2, Synchronous(), nonfinite=NonFinite.SKIP)
    report, (model, _) = run_local(job, mlp, Momentum, train)
    assert same_state(model, seeded(mlp))
    assert (report.nonfinite_skipped, report.optimizer_steps, report.updates_applied) == (2, 0, 2)


@pytest.mark.parametrize("through_wire", [False, True])
def test_a_loss_that_is_not_finite_is_left_out_on_every_plane(through_wire: bool) -> None:
    """Over shared memory a NaN cannot be told from no loss; and JSON has no NaN and no Inf."""
    losses = [2.0, float("nan"), float("inf"), None, 2.0, float("-inf")]
    meter = Meter(ManualClock())
    for step, loss in enumerate(losses):
        push = Push(0, step, UpdateKey(Stream(StreamKind.WORKER, 0, 0), step), 1, loss=loss)
        if through_wire:
            request = wire.unpack(wire.pack(wire.Ring(push))).request
            assert isinstance(request, Push)
            push = request
        meter.count(push, 0)
    assert meter.loss == pytest.approx(2.0)
    assert meter.steps == len(losses)


def test_the_report_of_such_a_job_is_json() -> None:
    def train(worker: Worker) -> None:
        for loss in (float("nan"), torch.tensor(float("inf"))):
            worker.model(torch.ones(1, 5).double()).sum().backward()
            worker.step(loss)

    report, _ = run_local(Job(1), mlp, Momentum, train)
    assert report.final_loss is None
    json.dumps(asdict(report), allow_nan=False)
