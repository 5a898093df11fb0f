"""A ticket is finished or it is not: no half of the servers' weights, no other error later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from psrpc.errors import JobFailedError, encode
from psrpc.job import Job
from psrpc.messages import Failure, Pull, Push, Request
from psrpc.modes import Asynchronous
from psrpc.planes.base import Answer, Landing, Payload, Service
from psrpc.testing.local import LocalJob
from psrpc.ticket import Ticket
from psrpc.worker import Worker
from tests.unit.reference import batch_of, mlp, same_state, seeded, train_alone

momentum = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


class Doorkeeper:
    """Lets a server's answers to steps go when told, or answers in its place."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: list[tuple[Answer, Payload]] = []
        self.closed = False

    def handle(
        self,
        request: Request,
        tensors: Sequence[torch.Tensor],
        answer: Answer,
        land: Landing | None = None,
    ) -> None:
        kept = self.closed and isinstance(request, (Push, Pull))

        def keep(payload: Payload) -> None:
            self._kept.append((answer, payload))

        self._service.handle(request, tensors, keep if kept else answer, land)

    def open(self, instead: Exception | None = None) -> None:
        self.closed = False
        for answer, payload in self._kept:
            answer(payload if instead is None else (Failure(encode(instead)), []))


def with_a_late_server(train: Callable[[Worker, Doorkeeper], None]) -> None:
    """Run `train` as the one worker of a job of two servers, the second of which can be late."""
    local = LocalJob(Job(1, 2, Asynchronous()), mlp, momentum)
    local.start()
    door = Doorkeeper(local.services[1])
    local.workers[0].follower.links[1]._service = door  # type: ignore[attr-defined]
    local.run(lambda worker: train(worker, door))


Take = Callable[[Worker, Doorkeeper], Ticket]


def backward(worker: Worker, step: int) -> None:
    inputs, targets = batch_of(step, 0)
    F.mse_loss(worker.model(inputs), targets).backward()


def push_pull(worker: Worker, door: Doorkeeper) -> Ticket:
    worker.pull().result()
    door.closed = True
    return worker.push_pull()


def pull_after_a_push(worker: Worker, door: Doorkeeper) -> Ticket:
    worker.push().result()
    door.closed = True
    return worker.pull()


def stepped_alone() -> torch.nn.Module:
    model = seeded(mlp)
    return train_alone(model, momentum(model.parameters()), [[batch_of(0, 0)]])


@pytest.mark.parametrize("take", [push_pull, pull_after_a_push])
def test_nothing_lands_before_all_answers_are_here_and_then_once(take: Take) -> None:
    def train(worker: Worker, door: Doorkeeper) -> None:
        backward(worker, 0)
        ticket = take(worker, door)
        for timeout_s in (0.0, 0.01):
            with pytest.raises(TimeoutError):
                ticket.result(timeout_s)
            assert not ticket.done()
            assert same_state(worker.model, seeded(mlp)), "no server's weights are in the model"
        door.open()
        ticket.result()
        assert same_state(worker.model, stepped_alone())
        with torch.no_grad():
            for parameter in worker.model.parameters():
                parameter.zero_()
        ticket.result()
        assert not any(parameter.any() for parameter in worker.model.parameters())

    with_a_late_server(train)


def test_a_step_finishes_a_push_that_was_late() -> None:
    def train(worker: Worker, door: Doorkeeper) -> None:
        backward(worker, 0)
        ticket = push_pull(worker, door)
        with pytest.raises(TimeoutError):
            ticket.result(0.0)
        backward(worker, 1)
        door.open()
        worker.step()  # finishes the open push first
        assert worker.clock == 2

    with_a_late_server(train)


@pytest.mark.parametrize("take", [push_pull, pull_after_a_push])
def test_a_failed_ticket_stays_failed_and_so_does_its_worker(take: Take) -> None:
    def train(worker: Worker, door: Doorkeeper) -> None:
        backward(worker, 0)
        ticket = take(worker, door)
        with pytest.raises(TimeoutError):
            ticket.result(0.0)
        door.open(instead=JobFailedError("of server 1"))
        for _ in range(3):
            with pytest.raises(JobFailedError, match="of server 1"):
                ticket.result()
            assert ticket.done()
            assert same_state(worker.model, seeded(mlp))
        for _ in range(2):
            with pytest.raises(JobFailedError, match="of server 1"):
                worker.step()

    with pytest.raises(JobFailedError, match="of server 1"):
        with_a_late_server(train)
