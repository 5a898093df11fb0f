"""A worker that is asked to leave while it waits for others waits no longer."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from psrpc.errors import ClosedError
from psrpc.job import Job
from psrpc.messages import Acquire, Leave, Register, Request
from psrpc.modes import Asynchronous, Mode, Synchronous
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker
from tests.unit.test_semantics_losses import BATCH, PATIENCE_S, Tally, dataset, one_by_one


class Two:
    """A job of two workers; the first one is asked to leave when it has said what `waits` says."""

    def __init__(self, mode: Mode, waits: Callable[[Worker, Request], bool]) -> None:
        self.local = LocalJob(Job(2, 2, mode), Tally, one_by_one)
        self.local.start()
        self.asked = threading.Event()
        self.first, self.second = self.local.workers
        link = self.first.follower.links[0]
        call = link.call

        def call_and_ask(request: Request, *tensors: object) -> object:
            pending = call(request, *tensors)
            if waits(self.first, request):
                assert not pending.done(), "it waits for the other one"
                self.first.ask_to_leave()
                self.asked.set()
            return pending

        link.call = call_and_ask  # type: ignore[method-assign, assignment]

    def run(self, train: Callable[[Worker], None]) -> None:
        """Train; every sample must be in the weights once."""
        report = self.local.run(train, PATIENCE_S)
        assert report.samples_counted_once
        assert report.workers_lost == 0
        assert not self.first.stayed
        assert (self.first.main, self.second.main) == (False, True)


def epoch(worker: Worker, before: Callable[[], object] = lambda: None) -> None:
    for (samples,) in worker.batches(dataset(), BATCH):
        before()
        worker.model(samples).backward()
        worker.step()


def test_until_an_epoch_is_over() -> None:
    def rests(worker: Worker, request: Request) -> bool:
        return isinstance(request, Acquire) and worker.steps > 0 and not worker._progress.active

    two = Two(Asynchronous(), rests)

    def train(worker: Worker) -> None:
        if worker is two.first:
            epoch(worker)
            assert worker.leaving
        else:
            epoch(worker, lambda: two.asked.wait(PATIENCE_S))

    two.run(train)


def test_until_an_epoch_begins() -> None:
    two = Two(Synchronous(), lambda worker, request: isinstance(request, Acquire))

    def train(worker: Worker) -> None:
        if worker is two.second:
            assert two.asked.wait(PATIENCE_S)
        epoch(worker)
        assert (worker.steps == 0) == (worker is two.first)

    two.run(train)


def test_until_all_step_with_data_of_their_own() -> None:
    two = Two(Synchronous(), lambda worker, request: isinstance(request, Acquire))

    def train(worker: Worker) -> None:
        if worker is two.first:
            worker.model(dataset()[0][0]).backward()
            with pytest.raises(ClosedError, match="worker 0 was asked to leave"):
                worker.step()
            worker.step()  # what it raises ends `train`
            pytest.fail("it waits for nobody")
        assert two.asked.wait(PATIENCE_S)
        epoch(worker)

    two.run(train)


def test_until_all_leave() -> None:
    two = Two(Asynchronous(), lambda worker, request: isinstance(request, Leave))

    def train(worker: Worker) -> None:
        if worker is two.first:
            return
        assert two.asked.wait(PATIENCE_S)
        epoch(worker)

    two.run(train)


def test_until_the_job_begins() -> None:
    two = Two(Asynchronous(), lambda worker, request: isinstance(request, Register))
    with pytest.raises(ClosedError, match="was asked to leave"):
        two.first.start()
    assert two.first.number < 0, "it has not been let in"
