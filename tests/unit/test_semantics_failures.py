"""A failure anywhere ends the job everywhere: each node is told why, and nobody hangs."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import nn

from psrpc.errors import (
    ClosedError,
    ConfigError,
    JobFailedError,
    ModelMismatchError,
    ProtocolError,
)
from psrpc.job import PROTOCOL, Job
from psrpc.messages import Register, Welcome
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.planes.base import Service
from psrpc.planes.loopback import LoopbackLink
from psrpc.store.blueprint import draw
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker
from tests.unit.reference import mlp, run_local, train_steps

MODES = [Synchronous(), BoundedStaleness(1), Asynchronous()]
Momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class MyError(Exception):
    """Raised by a training function."""


def failing_job(
    job: Job, fails_at: int, waits_in: str = "step"
) -> tuple[BaseException, list[BaseException]]:
    """Worker 1 raises after `fails_at` steps; returns what `run` raised, and all errors."""
    local = LocalJob(job, mlp, Momentum)

    def train(worker: Worker) -> None:
        if worker.rank == 1:
            train_steps(fails_at)(worker)
            raise MyError("of worker 1")
        if waits_in == "step":
            train_steps(10_000)(worker)

    with pytest.raises(MyError) as caught:
        local.run(train, timeout_s=20.0)
    return caught.value, local.errors


@pytest.mark.parametrize("fails_at", [0, 2])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_exception_in_train_reaches_everybody(mode: Mode, fails_at: int) -> None:
    _, errors = failing_job(Job(3, 2, mode), fails_at)
    others = [error for error in errors if isinstance(error, JobFailedError)]
    assert len(others) == 2
    assert {str(error) for error in others} == {"worker 1 failed: MyError: of worker 1"}


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_and_those_who_wait_for_the_others_to_leave(mode: Mode) -> None:
    _, errors = failing_job(Job(3, 2, mode), 1, waits_in="leave")
    assert sum(isinstance(error, JobFailedError) for error in errors) == 2


def test_an_exception_during_the_start_reaches_everybody() -> None:
    def model_of(services: list[Service]) -> None:
        assert services

    local = LocalJob(Job(2, 1), mlp, Momentum)
    local.start()
    local.workers[1].start = lambda: (_ for _ in ()).throw(MyError("too early"))
    with pytest.raises(MyError):
        local.run(train_steps(1), timeout_s=20.0)
    assert [type(error) for error in local.errors if not isinstance(error, MyError)] == [
        JobFailedError
    ]


class Fragile(torch.optim.SGD):
    """A user's own optimizer that raises in its third step, on whichever server it first does."""

    steps = 0
    lock = threading.Lock()

    def step(self, closure: None = None) -> None:
        with Fragile.lock:
            Fragile.steps += 1
            broken = Fragile.steps > 4
        if broken:
            raise ValueError("my own fault")
        super().step()


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_optimizer_that_raises_ends_the_job_for_all(mode: Mode) -> None:
    Fragile.steps = 0
    with pytest.raises(JobFailedError, match=r"server [01]: ValueError: my own fault"):
        run_local(Job(2, 2, mode), mlp, partial(Fragile, lr=0.1), train_steps(10))


def test_an_optimizer_that_raises_on_one_server_is_heard_of_on_the_others() -> None:
    """Worker 1 waits for worker 0 at the coordinator, and never calls the broken server."""
    Fragile.steps = 0

    def train(worker: Worker) -> None:
        if worker.rank == 0:
            train_steps(10)(worker)

    with pytest.raises(JobFailedError, match=r"^server [01]: ValueError: my own fault"):
        LocalJob(Job(2, 2, Asynchronous()), mlp, partial(Fragile, lr=0.1)).run(train, 20.0)


def other_model(change: str) -> nn.Module:
    model = mlp()
    if change == "shape":
        model[2] = nn.Linear(7, 4).double()
    if change == "dtype":
        model[2] = nn.Linear(7, 3)
    if change == "name":
        model = nn.Sequential(*model[:2], nn.Identity(), model[2])
    if change == "less":
        model = nn.Sequential(*model[:2])
    if change == "more":
        model.append(nn.Linear(3, 3))
    return model


MISMATCHES = {
    "shape": r"its parameter '2\.weight' \[4, 7\] float64 stands where .* '2\.weight' \[3, 7\]",
    "dtype": r"'2\.weight' \[3, 7\] float32 stands where .* float64",
    "name": r"its parameter '3\.weight' .* the server has '2\.weight'",
    "less": r"only the server has the parameter '2\.weight'",
    "more": r"only worker 1 has the parameter '3\.weight'",
}


@pytest.mark.parametrize("change", MISMATCHES)
def test_another_model_is_refused_with_the_first_parameter_that_differs(change: str) -> None:
    local = LocalJob(Job(2, 2), mlp, Momentum)
    local.start()
    model = other_model(change)
    links = [LoopbackLink(service) for service in local.services]
    local.workers[1] = Worker(local.job, 1, model, draw(model, Momentum), links)
    with pytest.raises(ModelMismatchError, match=MISMATCHES[change]):
        local.run(train_steps(1), timeout_s=20.0)
    assert len(local.errors) == 2


def test_other_settings_are_refused_all_at_once() -> None:
    local = LocalJob(Job(2, 1, Synchronous()), mlp, Momentum)
    local.start()
    links = [LoopbackLink(service) for service in local.services]
    other = Job(2, 1, Asynchronous(), seed=3)
    local.workers[1] = Worker(other, 1, mlp(), draw(mlp(), Momentum), links)
    with pytest.raises(ConfigError) as caught:
        local.run(train_steps(1), timeout_s=20.0)
    assert len(caught.value.problems) == 2
    assert "mode is Asynchronous" in str(caught.value)
    assert "seed is 3 on worker 1 and 0 on the server" in str(caught.value)


def test_another_protocol_is_refused_and_one_worker_more_is_not() -> None:
    local = LocalJob(Job(2, 1), mlp, Momentum)
    local.start()
    model = draw(mlp(), Momentum).signature
    link = LoopbackLink(local.services[0])
    with pytest.raises(ProtocolError, match="worker 0 speaks version 77 of the protocol"):
        link.call(Register(0, 77, model)).wait(5.0)
    for process in (0, 1):
        link.call(Register(process, PROTOCOL, model))
    reply, _ = link.call(Register(2, PROTOCOL, model)).wait(5.0)
    assert reply == Welcome(2, 2)


def test_who_has_left_cannot_step() -> None:
    local = LocalJob(Job(1), mlp, Momentum)
    local.run(train_steps(1))
    with pytest.raises(ClosedError, match="worker 0 has left"):
        train_steps(1)(local.workers[0])


def test_all_bad_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Job(0, 0, "sync", start_timeout_s=0).check()  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_two_failures_at_once_are_no_fault_of_the_job(mode: Mode) -> None:
    together = threading.Barrier(2, timeout=20.0)

    def train(worker: Worker) -> None:
        together.wait()
        raise MyError(f"of worker {worker.rank}")

    with pytest.raises(MyError):
        run_local(Job(2, 2, mode), mlp, Momentum, train)
