"""A step by the short way is, to whoever trains, like one that goes the ordinary way."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from psrpc.coordinator import Coordinator
from psrpc.counts import ShardStats
from psrpc.job import Job
from psrpc.messages import Ping, Request
from psrpc.modes import Asynchronous, Mode, Synchronous
from psrpc.planes.base import Pending
from psrpc.planes.doorman import Doorman
from psrpc.planes.loopback import LoopbackLink
from psrpc.planes.shm import ShmLink
from psrpc.server import ParameterServer
from psrpc.store.blueprint import draw
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker

Train = Callable[[Worker], Any]
Outcome = tuple[ShardStats, list[torch.Tensor], int]  # the weights; how often it was short

_STEPS = 6


class Control:
    """Stands for RPC: the same calls, within the process."""

    def __init__(self, service: Any) -> None:
        self.peer = Ping(0)
        self.peer_name = "server0"
        self.pings = 0
        self._link = LoopbackLink(service)

    @property
    def name(self) -> str:
        return self.peer_name

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        return self._link.call(request, tensors)

    def ping(self) -> None:
        self.pings += 1

    def close(self) -> None:
        self._link.close()


class ShmJob(LocalJob):
    """A job of threads whose steps go over a real door and real slots."""

    short = True

    def start(self) -> None:
        super().start()
        (service,) = self.services
        assert isinstance(service, Coordinator)
        self.server: ParameterServer = service.server
        self.door = Doorman(service, self.server.store.layout, self.server if self.short else None)
        self.door.start()
        self.workers = [self._worker(rank) for rank in range(self.job.workers)]

    def close(self) -> None:
        for worker in self.workers:
            for link in worker.follower.links:
                link.close()
        self.door.close()

    def _worker(self, rank: int) -> Worker:
        model = self._model()
        control: Any = Control(self.services[0])
        control.peer = control
        link: Any = ShmLink(control, self.door.address)
        link.connect()
        if not self.short:
            link.quick = None
        return Worker(self.job, rank, model, draw(model, self.optimizer), [link])


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def run(train: Train, mode: Mode, workers: int, *, short: bool) -> Outcome:
    made = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
    job = ShmJob(Job(workers, mode=mode), small, made)
    job.short = short
    taken = 0
    quick = ParameterServer.quick

    def counted(self: ParameterServer, *given: Any) -> bool:
        nonlocal taken
        taken += (took := quick(self, *given))
        return took

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParameterServer, "quick", counted)
        job.run(train)
    job.close()
    return (
        job.server.stats(),
        [parameter.data for parameter in job.workers[0].model.parameters()],
        taken,
    )


def loss_of(worker: Worker, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * worker.rank + step)
    loss: torch.Tensor = worker.model(torch.randn(5, 3, generator=generator)).square().mean()
    return loss


def plainly(worker: Worker) -> None:
    for step in range(_STEPS):
        loss = loss_of(worker, step)
        loss.backward()
        worker.step(loss)


def by_the_optimizer(worker: Worker) -> None:
    for step in range(_STEPS):
        worker.optimizer.zero_grad()
        loss_of(worker, step).backward()
        worker.optimizer.step()


def with_gradients_of_its_own(worker: Worker) -> None:
    parameters = list(worker.model.parameters())
    for step in range(_STEPS):
        if step == 2:
            loss_of(worker, step).backward()
        else:
            gradients = torch.autograd.grad(loss_of(worker, step), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
        worker.step()


def with_a_gradient_that_is_replaced(worker: Worker) -> None:
    first = next(worker.model.parameters())
    for step in range(_STEPS):
        loss_of(worker, step).backward()
        assert first.grad is not None
        if step % 2:
            first.grad = first.grad * 2
        worker.step()


def with_tickets_between(worker: Worker) -> None:
    for step in range(2 * _STEPS):
        loss_of(worker, step).backward()
        if step % 3 == 2:
            worker.push_pull().result()
        else:
            worker.step()


def with_a_ticket_left_open(worker: Worker) -> None:
    for step in range(2 * _STEPS):
        loss_of(worker, step).backward()
        if step % 3 == 2:
            worker.push_pull()
        else:
            worker.step()


def with_some_steps_of_nothing(worker: Worker) -> None:
    for step in range(2 * _STEPS):
        if step % 3:
            loss_of(worker, step).backward()
        worker.step()


def with_two_passes_a_step(worker: Worker) -> None:
    for step in range(_STEPS):
        loss_of(worker, step).backward()
        loss_of(worker, step + 50).backward()
        worker.step()


def with_a_part_that_is_not_used(worker: Worker) -> None:
    first, _, last = worker.model
    for step in range(_STEPS):
        first(torch.full((1, 3), float(step))).sum().backward()
        worker.step()
    last(torch.ones(1, 4)).sum().backward()
    worker.step()


def with_a_schedule(worker: Worker) -> None:
    schedule = torch.optim.lr_scheduler.StepLR(worker.optimizer, 2, 0.5)
    for step in range(_STEPS):
        loss_of(worker, step).backward()
        worker.step()
        schedule.step()


LOOPS: list[Train] = [
    plainly,
    by_the_optimizer,
    with_gradients_of_its_own,
    with_a_gradient_that_is_replaced,
    with_tickets_between,
    with_a_ticket_left_open,
    with_some_steps_of_nothing,
    with_two_passes_a_step,
    with_a_part_that_is_not_used,
    with_a_schedule,
]


@pytest.mark.parametrize("mode", [Synchronous(), Asynchronous()], ids=["sync", "async"])
@pytest.mark.parametrize("train", LOOPS, ids=lambda train: train.__name__)
def test_one_worker_gets_the_same_by_both_ways(train: Train, mode: Mode) -> None:
    stats, weights, _ = run(train, mode, 1, short=True)
    expected, others, none = run(train, mode, 1, short=False)
    assert none == 0
    assert all(map(torch.equal, weights, others))
    assert stats == expected


@pytest.mark.parametrize("train", LOOPS, ids=lambda train: train.__name__)
def test_a_round_of_workers_is_the_same_by_both_ways(train: Train) -> None:
    _, weights, _ = run(train, Synchronous(), 3, short=True)
    _, others, _ = run(train, Synchronous(), 3, short=False)
    assert all(map(torch.equal, weights, others))


def test_the_short_way_is_taken() -> None:
    """All but a worker's first push, which brings the view."""
    for mode in (Synchronous(), Asynchronous()):
        assert run(plainly, mode, 1, short=True)[2] >= _STEPS - 2


def test_who_is_interrupted_while_it_waits_takes_that_answer_first() -> None:
    """The push counts once, as by the ordinary way; the next one's answer is its own."""

    class InterruptedError_(Exception):
        pass

    def interrupt(*given: Any) -> None:
        raise InterruptedError_

    started, waits = threading.Event(), threading.Event()
    clocks: list[tuple[int, int]] = []

    def late(worker: Worker) -> None:
        for step in range(_STEPS):
            if step == 3:
                started.set()
                waits.wait(20)
            loss_of(worker, step).backward()
            worker.step()

    job = ShmJob(Job(2, mode=Synchronous()), small, partial(torch.optim.SGD, lr=0.1))
    job.start()
    first, second = job.workers
    other = threading.Thread(target=job._work, args=(second, late), daemon=True)
    other.start()
    first.start()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while first.clock < _STEPS:
            loss_of(first, first.clock).backward()
            if first.clock == 3 and not waits.is_set():
                assert started.wait(20)
                signal.setitimer(signal.ITIMER_REAL, 0.3)
            try:
                first.step()
            except InterruptedError_:
                waits.set()
                first.pull().result()
                first.optimizer.zero_grad()
            clocks.append((first.clock, job.server.core.gate.clock(first.number)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    first.leave()
    first.crew.bye()
    other.join(20)
    assert waits.is_set()
    assert all(mine == theirs for mine, theirs in clocks)
    assert job.server.stats().optimizer_steps == _STEPS
    assert job.server.stats().duplicates_dropped == 0
    job.close()


def test_a_door_that_can_start_no_thread_sends_the_guest_away_and_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = ShmJob(Job(1), small, partial(torch.optim.SGD, lr=0.1))
    LocalJob.start(job)
    (service,) = job.services
    assert isinstance(service, Coordinator)
    door = Doorman(service, service.server.store.layout)
    door.start()
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
        guest.settimeout(20)
        guest.connect(f"\0{door.address}")
        assert guest.recv(16) == b""
    monkeypatch.setattr(threading.Thread, "start", start)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
        guest.settimeout(20)
        guest.connect(f"\0{door.address}")
        assert socket.recv_fds(guest, 16, 1)[0] == b"slot"
    door.close()
