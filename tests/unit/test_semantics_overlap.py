"""A step that is computed while the last one travels: one step staler, and counted so."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from psrpc.errors import ConfigError
from psrpc.job import Job
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.worker import Worker
from tests.unit.reference import batch_of, mlp, run_local, same_state, seeded, train_steps

STEPS = 12
WAIT_S = 30.0
momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def train_delayed(steps: int) -> torch.nn.Module:
    """Plain torch: each step's gradient is of the weights before the last update."""
    model, behind = seeded(mlp), seeded(mlp)
    optimizer = momentum(model.parameters())
    for step in range(steps):
        inputs, targets = batch_of(step, 0)
        behind.zero_grad()
        F.mse_loss(behind(inputs), targets).backward()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for ours, theirs in zip(model.parameters(), behind.parameters(), strict=True):
            ours.grad = theirs.grad
        optimizer.step()
        behind.load_state_dict(before if step else seeded(mlp).state_dict())
    return model


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("mode", [Asynchronous(), BoundedStaleness(1)], ids=lambda m: m.name)
def test_one_worker_is_one_process_with_delayed_gradients(mode: Mode, servers: int) -> None:
    job = Job(1, servers, mode, overlap=True)
    report, (model,) = run_local(job, mlp, momentum, train_steps(STEPS))
    assert same_state(model, train_delayed(STEPS))
    assert report.updates_applied == STEPS
    assert report.staleness_histogram == {0: 1, 1: STEPS - 1}


def test_the_bound_counts_the_step_that_has_begun() -> None:
    """Bound 2: a worker alone gets one step further than its weights say."""
    begun = threading.Barrier(2, timeout=WAIT_S)
    go = threading.Event()
    steps = [0, 0]

    def train(worker: Worker) -> None:
        worker.pull().result(WAIT_S)
        begun.wait()
        if worker.rank == 1:
            assert go.wait(WAIT_S)
            train_steps(6)(worker)
            return
        for step in range(6):
            inputs, targets = batch_of(step, 0)
            F.mse_loss(worker.model(inputs), targets).backward()
            if step == 2:
                # Its push at clock 1 must wait, for the answer would let it be 3 ahead.
                assert not worker._exchange._open.done()  # type: ignore[union-attr]
                go.set()
            worker.step()
            steps[0] += 1

    job = Job(2, 1, BoundedStaleness(2), overlap=True)
    report, _ = run_local(job, mlp, momentum, train)
    assert report.max_clock_gap == 2
    assert max(report.staleness_histogram) <= 2
    assert report.updates_applied == 12


def test_leases_are_done_once_each_and_evaluation_sees_whole_weights() -> None:
    data = TensorDataset(*batch_of(0, 0, size=50))

    def train(worker: Worker) -> None:
        for _ in range(3):
            for inputs, targets in worker.batches(data, batch_size=4):
                F.mse_loss(worker.model(inputs), targets).backward()
                worker.step()
                with worker.paused():
                    before = [p.clone() for p in worker.model.parameters()]
                    assert all(map(torch.equal, before, worker.model.parameters()))

    for servers in (1, 3):
        job = Job(3, servers, BoundedStaleness(3), overlap=True)
        report, models = run_local(job, mlp, momentum, train)
        assert report.samples == 150
        assert report.max_clock_gap <= 3
        assert all(same_state(models[0], model) for model in models)


@pytest.mark.parametrize("mode", [Synchronous(), BoundedStaleness(0)], ids=lambda m: m.name)
def test_where_no_weights_may_be_older_there_is_no_overlap(mode: Mode) -> None:
    with pytest.raises(ConfigError, match="overlap makes weights one step older"):
        Job(1, 1, mode, overlap=True).check()
