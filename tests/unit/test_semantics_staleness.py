"""Who is let into its next step, and who is held: forced order, watched from the training code.

In process a push is decided before `push_pull` returns, so whether its ticket is
done says at once whether the worker was held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from psrpc.job import Job
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.ticket import Ticket
from psrpc.worker import Worker
from tests.unit.reference import batch_of, mlp, run_local

WAIT_S = 30.0
optimizer = partial(torch.optim.SGD, lr=0.01)


def push(worker: Worker) -> Ticket:
    inputs, targets = batch_of(worker.clock, worker.rank)
    worker.optimizer.zero_grad()
    F.mse_loss(worker.model(inputs), targets).backward()
    return worker.push_pull()


def step(worker: Worker) -> None:
    push(worker).result(WAIT_S)


class Stage:
    """Two workers that have both begun; worker 1 goes on only when told to."""

    def __init__(self) -> None:
        self._begun = threading.Barrier(2, timeout=WAIT_S)
        self._orders: list[threading.Event] = [threading.Event() for _ in range(100)]
        self._obeyed: list[threading.Event] = [threading.Event() for _ in range(100)]

    def begin(self, worker: Worker) -> None:
        """Enter, and wait until the other has."""
        worker.pull().result(WAIT_S)
        self._begun.wait()

    def order(self, number: int) -> None:
        """Let worker 1 do its thing number `number`; return when it is done."""
        self._orders[number].set()
        assert self._obeyed[number].wait(WAIT_S)

    def obey(self, things: list[Callable[[], object]]) -> None:
        for number, thing in enumerate(things):
            assert self._orders[number].wait(WAIT_S)
            thing()
            self._obeyed[number].set()


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("bound", [0, 1, 4])
def test_the_fast_worker_is_held_at_the_bound_and_released_by_the_slow_one(
    bound: int, servers: int
) -> None:
    stage = Stage()
    granted: list[int] = []

    def fast(worker: Worker) -> None:
        for _ in range(bound):
            ticket = push(worker)
            assert ticket.done(), "it is within its bound"
            ticket.result()
        for number in range(3):
            ticket = push(worker)
            assert not ticket.done(), "one more would be a step too far"
            with pytest.raises(TimeoutError):
                ticket.result(0.0)
            assert worker.clock == bound + number
            stage.order(number)
            assert ticket.done(), "the slowest went on, so it may start"
            ticket.result()
            granted.append(worker.clock)

    def slow(worker: Worker) -> None:
        stage.obey([lambda: step(worker)] * 3)

    def train(worker: Worker) -> None:
        stage.begin(worker)
        (slow if worker.rank else fast)(worker)

    report, _ = run_local(Job(2, servers, BoundedStaleness(bound)), mlp, optimizer, train)
    assert granted == [bound + 1, bound + 2, bound + 3]
    assert report.max_clock_gap == bound
    assert report.updates_applied == report.optimizer_steps == bound + 6
    assert sum(report.staleness_histogram.values()) == bound + 6
    assert max(report.staleness_histogram) == bound


def test_clock_zero_of_bound_zero_waits_for_everybody() -> None:
    """Four workers: nobody passes a clock before the last has finished it."""
    workers, steps = 4, 6
    begun = threading.Barrier(workers, timeout=WAIT_S)
    arrived = [0] * steps

    def train(worker: Worker) -> None:
        worker.pull().result(WAIT_S)
        begun.wait()
        for number in range(steps):
            arrived[number] += 1  # one worker at a time holds the interpreter
            step(worker)
            assert arrived[number] == workers

    report, _ = run_local(Job(workers, 2, BoundedStaleness(0)), mlp, optimizer, train)
    assert report.max_clock_gap == 0
    assert report.staleness_histogram == {0: workers * steps}
    assert report.optimizer_steps == workers * steps


@pytest.mark.parametrize("bound", [1, 3])
def test_no_step_begins_beyond_the_bound(bound: int) -> None:
    """`sent` counts a push before it is made: what others have finished is never more."""
    workers, steps = 4, 30
    begun = threading.Barrier(workers, timeout=WAIT_S)
    sent = [0] * workers

    def train(worker: Worker) -> None:
        worker.pull().result(WAIT_S)
        begun.wait()
        for _ in range(steps):
            assert worker.clock - min(sent) <= bound
            sent[worker.rank] += 1
            step(worker)
        sent[worker.rank] = 1_000_000  # nobody waits for it any more

    report, _ = run_local(Job(workers, 2, BoundedStaleness(bound)), mlp, optimizer, train)
    assert report.max_clock_gap <= bound
    assert max(report.staleness_histogram) <= bound
    assert sum(report.staleness_histogram.values()) == workers * steps
    assert sum(report.update_lag_histogram.values()) == workers * steps
    assert report.worker_steps == report.updates_applied == workers * steps


def test_asynchronous_waits_for_nobody_and_counts_what_was_missed() -> None:
    steps, stage = 20, Stage()

    def train(worker: Worker) -> None:
        stage.begin(worker)
        if worker.rank:
            stage.obey([lambda: step(worker)])
            return
        for _ in range(steps):
            ticket = push(worker)
            assert ticket.done()
            ticket.result()
        stage.order(0)

    report, _ = run_local(Job(2, 2, Asynchronous()), mlp, optimizer, train)
    assert report.max_clock_gap == steps
    # Worker 0 read at a lead of 0, 1, 2 ...; worker 1 at the start, 20 updates ago.
    expected = {**dict.fromkeys(range(1, steps), 1), 0: 2}
    assert report.staleness_histogram == expected
    assert report.update_lag_histogram == {0: steps, steps: 1}
    assert report.optimizer_steps == steps + 1


def test_a_round_is_held_until_it_is_complete() -> None:
    stage = Stage()

    def train(worker: Worker) -> None:
        stage.begin(worker)
        if worker.rank:
            stage.obey([lambda: push(worker)])
            return
        before = worker.model[0].weight.clone()
        ticket = push(worker)
        assert not ticket.done()
        stage.order(0)
        assert ticket.done()
        assert torch.equal(worker.model[0].weight, before), "weights land in `result`"
        ticket.result()
        assert not torch.equal(worker.model[0].weight, before)

    report, _ = run_local(Job(2, 3, Synchronous()), mlp, optimizer, train)
    assert (report.optimizer_steps, report.updates_applied) == (1, 2)
    assert (report.max_clock_gap, report.staleness_histogram) == (0, {0: 2})
    assert report.update_lag_histogram == {0: 2}


@pytest.mark.parametrize("mode", [Synchronous(), BoundedStaleness(1)], ids=str)
def test_nobody_waits_for_a_paused_worker(mode: Mode) -> None:
    stage = Stage()

    def train(worker: Worker) -> None:
        stage.begin(worker)
        if not worker.rank:
            for number in range(2):
                stage.order(number)  # into the pause, and, four steps later, out of it
                for _ in range(4 if number == 0 else 0):
                    ticket = push(worker)
                    assert ticket.done()
                    ticket.result()
            return
        pause = worker.paused()
        stage.obey([pause.__enter__, lambda: None])
        pause.__exit__(None, None, None)
        step(worker)

    report, _ = run_local(Job(2, 2, mode), mlp, optimizer, train)
    assert report.updates_applied == 5


@pytest.mark.parametrize("mode", [Synchronous(), BoundedStaleness(1)], ids=str)
def test_a_pause_lets_a_held_worker_go(mode: Mode) -> None:
    stage = Stage()

    def train(worker: Worker) -> None:
        stage.begin(worker)
        if worker.rank:
            with worker.paused():
                stage.obey([lambda: None])
            return
        for _ in range(6):
            step(worker)
        stage.order(0)

    run_local(Job(2, 2, mode), mlp, optimizer, train)


def test_who_comes_back_from_a_pause_steps_from_fresh_weights() -> None:
    """The gradients after a pause are made from weights read after it, and counted so."""
    stage = Stage()
    seen: list[bool] = []

    def train(worker: Worker) -> None:
        stage.begin(worker)
        if not worker.rank:
            stage.order(0)
            for _ in range(5):
                step(worker)
            stage.order(1)
            return
        before = worker.model[0].weight.clone()
        with worker.paused():
            stage.obey([lambda: None, lambda: None])
            assert torch.equal(worker.model[0].weight, before)
        seen.append(torch.equal(worker.model[0].weight, before))
        step(worker)

    report, _ = run_local(Job(2, 1, Asynchronous()), mlp, optimizer, train)
    assert seen == [False], "the five steps of the other are in the weights"
    assert sum(report.update_lag_histogram.values()) == 6


@pytest.mark.parametrize("mode", [Synchronous(), BoundedStaleness(2)], ids=str)
def test_push_without_pull_keeps_the_weights_and_the_order(mode: Mode) -> None:
    def train(worker: Worker) -> None:
        worker.pull().result(WAIT_S)
        for _ in range(3):
            before = worker.model[0].weight.clone()
            inputs, targets = batch_of(worker.clock, worker.rank)
            worker.optimizer.zero_grad()
            F.mse_loss(worker.model(inputs), targets).backward()
            worker.push().result(WAIT_S)
            assert torch.equal(worker.model[0].weight, before)
            worker.pull().result(WAIT_S)
            assert not torch.equal(worker.model[0].weight, before)

    report, _ = run_local(Job(2, 2, mode), mlp, optimizer, train)
    assert report.updates_applied == 6
