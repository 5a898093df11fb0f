"""A worker that is taken for dead comes back by itself, and every sample is counted once.

Each sample has an element of each parameter, and its gradient adds 1 to them: what comes out
tells how often each sample is in the weights of every shard, whatever the accounts say.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from psrpc.coordinator import Coordinator
from psrpc.counts import EpochAccount
from psrpc.errors import JobFailedError
from psrpc.job import Elastic, Job
from psrpc.messages import Acquire, Leave, Request
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Reduction, Synchronous
from psrpc.report import Report
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker

MODES = [Synchronous(), BoundedStaleness(1), Asynchronous()]
SAMPLES, BATCH = 60, 2
EPOCHS = 2
PATIENCE_S = 30.0
one_by_one = partial(torch.optim.SGD, lr=1.0)
by_name = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


class Tally(nn.Module):
    """Two parameters, so that two servers have one each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(SAMPLES, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(SAMPLES, dtype=torch.float64))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return -(self.first[samples].sum() + self.second[samples].sum())


def dataset() -> TensorDataset:
    return TensorDataset(torch.arange(SAMPLES))


@dataclass
class Losses:
    """A job whose last worker, the victim, is taken for dead where the test wants it.

    The others do not run away from it: they begin together, and do nothing while it is not there.
    Where nothing else holds them, they wait until it is done with what it is to do or suffer
    (`times` losses).
    """

    job: Job
    times: int = 1
    local: LocalJob = field(init=False)
    present: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.together = threading.Barrier(self.job.workers, timeout=PATIENCE_S)
        self.present.set()
        self.local = LocalJob(self.job, Tally, one_by_one)
        self.local.start()
        crew = self.local.workers[-1].crew
        register = crew.register

        def register_and_tell(*arguments: Any) -> Any:
            welcome = register(*arguments)
            self.present.set()
            if crew.generation > self.times:
                self.done.set()
            return welcome

        crew.register = register_and_tell  # type: ignore[method-assign]

    def gate(self, worker: Worker, batch: int) -> None:
        """Before each batch's gradients."""
        if batch == 0:
            self.together.wait()
        if worker is self.victim:
            return
        if batch and self.job.mode.bound is None:
            assert self.done.wait(PATIENCE_S)
        assert self.present.wait(PATIENCE_S)

    @property
    def coordinator(self) -> Coordinator:
        service = self.local.services[0]
        assert isinstance(service, Coordinator)
        return service

    @property
    def victim(self) -> Worker:
        """The last worker."""
        return self.local.workers[-1]

    def strike(self) -> None:
        """Take the victim for dead, whichever thread it is that says so."""
        self.present.clear()
        self.coordinator.lose(len(self.local.workers) - 1, "it was silent for 10 s")

    def on_exchange(
        self, link: int, number: int, act: Callable[[], None], *, after: bool = False
    ) -> None:
        """Do `act` in the victim's push number `number`, before or after it goes over a link."""
        target = self.victim.follower.links[link]
        original, pushes = target.exchange, iter(range(10**9))

        def exchange(request: Request, *, send: bool, **more: Any) -> Any:
            mine = send and next(pushes) == number
            if mine and not after:
                act()
            pending = original(request, send=send, **more)
            if mine and after:
                act()
            return pending

        target.exchange = exchange  # type: ignore[method-assign]

    def run(self, train: Callable[[Worker], Any]) -> Report:
        return self.local.run(train, PATIENCE_S)

    def check(self, report: Report, *, lost: int = 1, epochs: int = EPOCHS) -> None:
        """Every sample is in all weights once an epoch, and the report says so."""
        counts = {name: p.detach() for name, p in self.local.workers[0].model.named_parameters()}
        for name, count in counts.items():
            wrong = {n: float(x) for n, x in enumerate(count) if x != epochs}
            assert not wrong, f"{name}: how often samples are in the weights"
        assert report.samples_counted_once
        assert report.epoch_accounts == tuple(EpochAccount(e, SAMPLES) for e in range(epochs))
        assert (report.samples_lost, report.samples_doubled) == (0, 0)
        assert report.workers_lost == lost

    def came_back(self, number: int | None = None) -> bool:
        """Whether the victim works under a new number, and its old rank."""
        workers = self.job.workers
        expected = workers if number is None else number
        return (self.victim.rank, self.victim.number) == (workers - 1, expected)


def job_of(mode: Mode, workers: int = 2, servers: int = 2, **more: Any) -> Job:
    return Job(workers, servers, mode, reduction=Reduction.SUM, **more)


def train_on(
    losses: Losses,
    every: int = 1,
    at_batch: Callable[[Worker, int], None] = lambda worker, batch: None,
    step: Callable[[Worker], None] = Worker.step,
) -> Callable[[Worker], None]:
    """A loop with a step for every so many batches; `at_batch` comes before the gradients."""

    def train(worker: Worker) -> None:
        number = 0
        for _ in range(EPOCHS):
            for (samples,) in worker.batches(dataset(), BATCH):
                losses.gate(worker, number)
                at_batch(worker, number)
                worker.model(samples).backward()
                number += 1
                if number % every == 0:
                    step(worker)

    return train


POINTS = {
    "before the push": (0, False),
    "between the shards": (1, False),
    "after the push": (1, True),
}


@by_name
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("number", [0, 3, 9])
def test_a_worker_that_is_lost_in_a_step_comes_back(mode: Mode, point: str, number: int) -> None:
    losses = Losses(job_of(mode))
    link, after = POINTS[point]
    losses.on_exchange(link, number, losses.strike, after=after)
    losses.check(losses.run(train_on(losses)))
    assert losses.came_back()


def push_pull(worker: Worker) -> None:
    worker.push_pull().result()


def push_and_pull(worker: Worker) -> None:
    worker.push().result()
    worker.pull().result()


def push_alone(worker: Worker) -> None:
    worker.push()  # whoever pushes next waits for it


@by_name
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("step", [push_pull, push_and_pull, push_alone])
def test_or_in_a_push_of_its_own(mode: Mode, point: str, step: Callable[[Worker], None]) -> None:
    """The loop takes the tickets' results and knows of no death."""
    losses = Losses(job_of(mode))
    link, after = POINTS[point]
    losses.on_exchange(link, 3, losses.strike, after=after)
    losses.check(losses.run(train_on(losses, step=step)))
    assert losses.came_back()


@by_name
def test_or_between_two_steps(mode: Mode) -> None:
    losses = Losses(job_of(mode))

    def strike(worker: Worker, batch: int) -> None:
        if worker is losses.victim and batch == 2:
            losses.strike()

    losses.check(losses.run(train_on(losses, at_batch=strike)))
    assert losses.came_back()


@pytest.mark.parametrize("mode", [Synchronous(), BoundedStaleness(0)], ids=lambda m: m.name)
def test_or_while_it_waits_for_a_slower_one(mode: Mode) -> None:
    """It sleeps in its step until the other one has told of its death."""
    losses = Losses(job_of(mode))
    pushed = threading.Event()
    losses.on_exchange(1, 3, pushed.set, after=True)

    def strike(worker: Worker, batch: int) -> None:
        if worker is not losses.victim and batch == 3:
            assert pushed.wait(PATIENCE_S)
            losses.strike()
            assert losses.present.wait(PATIENCE_S)

    losses.check(losses.run(train_on(losses, at_batch=strike)))
    assert losses.came_back()


@by_name
def test_or_when_it_is_the_only_one(mode: Mode) -> None:
    losses = Losses(job_of(mode, workers=1))
    losses.on_exchange(1, 4, losses.strike)
    losses.check(losses.run(train_on(losses)))
    assert losses.came_back()


@by_name
def test_or_again_and_again(mode: Mode) -> None:
    """In a lease of its own each time: three deaths over one lease end a job."""
    losses = Losses(job_of(mode, workers=1), times=3)
    for number in (2, 20, 27):
        losses.on_exchange(number % 2, number, losses.strike)
    losses.check(losses.run(train_on(losses)), lost=3)
    assert losses.came_back(number=3)


def test_or_again_and_again_beside_others() -> None:
    losses = Losses(job_of(Asynchronous(), workers=3), times=3)
    for number in (2, 9, 14):
        losses.on_exchange(number % 2, number, losses.strike, after=number == 9)
    losses.check(losses.run(train_on(losses)), lost=3)
    assert losses.came_back(number=5)


@by_name
def test_or_with_all_others_at_once(mode: Mode) -> None:
    losses = Losses(job_of(mode, workers=3))

    def strike_all() -> None:
        losses.present.clear()
        for process in range(3):
            losses.coordinator.lose(process, "the network was down")

    losses.on_exchange(1, 3, strike_all)
    losses.check(losses.run(train_on(losses)), lost=3)
    assert sorted(worker.number for worker in losses.local.workers) == [3, 4, 5]
    assert sorted(worker.rank for worker in losses.local.workers) == [0, 1, 2]


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
@pytest.mark.parametrize("point", POINTS)
def test_or_while_its_last_push_is_under_way(mode: Mode, point: str) -> None:
    losses = Losses(job_of(mode, overlap=True))
    link, after = POINTS[point]
    losses.on_exchange(link, 3, losses.strike, after=after)
    losses.check(losses.run(train_on(losses)))
    assert losses.came_back()


@by_name
@pytest.mark.parametrize("batch", [3, 4, 5])
@pytest.mark.parametrize("every", [2, 3])
def test_gradients_that_were_added_up_are_made_again(mode: Mode, batch: int, every: int) -> None:
    """Wherever in the adding up it is lost: first, middle or last, or at a lease's end."""
    losses = Losses(job_of(mode))

    def strike(worker: Worker, number: int) -> None:
        if worker is losses.victim and number == batch:
            losses.strike()

    report = losses.run(train_on(losses, every, strike))
    losses.check(report)
    assert losses.came_back()


@by_name
@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("point", POINTS)
def test_and_when_it_is_lost_in_the_push_of_them(mode: Mode, every: int, point: str) -> None:
    losses = Losses(job_of(mode))
    link, after = POINTS[point]
    losses.on_exchange(link, 1, losses.strike, after=after)
    losses.check(losses.run(train_on(losses, every)))
    assert losses.came_back()


@by_name
def test_a_step_under_way_is_dropped(mode: Mode) -> None:
    """With one server, that is told of the death at once, nothing of it gets into the weights."""
    losses = Losses(job_of(mode, servers=1))

    def train(worker: Worker) -> None:
        number = 0
        for _ in range(EPOCHS):
            for (samples,) in worker.batches(dataset(), BATCH):
                losses.gate(worker, number)
                worker.model(samples).backward()
                if worker is losses.victim and number == 3:
                    losses.strike()
                    for parameter in worker.model.parameters():
                        assert parameter.grad is not None
                        parameter.grad += 1e6
                number += 1
                worker.step()

    losses.check(losses.run(train))


@by_name
def test_weights_after_coming_back_are_the_servers(mode: Mode) -> None:
    losses = Losses(job_of(mode))
    losses.on_exchange(0, 3, losses.strike)
    losses.run(train_on(losses))
    models = [worker.model.state_dict() for worker in losses.local.workers]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@by_name
def test_one_that_is_lost_while_it_waits_for_the_end_leaves_once_more(mode: Mode) -> None:
    losses = Losses(job_of(mode))
    leaves = threading.Event()
    link = losses.victim.follower.links[0]
    call = link.call

    def call_and_tell(request: Request, *tensors: Any) -> Any:
        pending = call(request, *tensors)
        if isinstance(request, Leave):
            leaves.set()
        return pending

    link.call = call_and_tell  # type: ignore[method-assign]

    losses.done.set()  # nothing happens to it before the end
    work = train_on(losses)

    def train(worker: Worker) -> None:
        work(worker)
        if worker is not losses.victim:
            assert leaves.wait(PATIENCE_S)
            losses.strike()
            assert losses.present.wait(PATIENCE_S)

    report = losses.run(train)
    losses.check(report, lost=0)
    assert losses.came_back()


def test_one_that_is_lost_while_it_waits_for_an_epochs_end_goes_on() -> None:
    """The other one has the epoch's last samples until then."""
    losses = Losses(job_of(Asynchronous()))
    rests = threading.Event()
    crew = losses.victim.crew
    ask = crew._ask

    def ask_and_tell(request: Acquire) -> Any:
        pending = ask(request)
        if crew.progress.clock and not crew.progress.active:
            rests.set()
        return pending

    crew._ask = ask_and_tell  # type: ignore[method-assign]

    def strike(worker: Worker, batch: int) -> None:
        if worker is not losses.victim and batch == 0:
            assert rests.wait(PATIENCE_S)
            losses.strike()
            assert losses.present.wait(PATIENCE_S)

    losses.check(losses.run(train_on(losses, at_batch=strike)))
    assert losses.came_back()


def test_a_death_may_end_the_job() -> None:
    losses = Losses(job_of(Synchronous(), elastic=Elastic(on_failure="stop")))
    # Nobody is to wait for its return: it does not come back.
    losses.on_exchange(0, 3, lambda: losses.coordinator.lose(1, "it was silent for 10 s"))
    losses.done.set()
    with pytest.raises(JobFailedError, match="worker 1 is lost: it was silent for 10 s"):
        losses.run(train_on(losses))
    assert len(losses.local.errors) == 2


# Leaving early.


@by_name
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch", [0, 4, 9])
def test_others_do_what_one_that_leaves_early_has_not_done(
    mode: Mode, every: int, batch: int
) -> None:
    losses = Losses(job_of(mode))

    def leave(worker: Worker, number: int) -> None:
        if worker is losses.victim and number == batch:
            worker.ask_to_leave()
            losses.done.set()

    report = losses.run(train_on(losses, every, leave))
    losses.check(report, lost=0)
    assert losses.victim.steps <= batch + 1
    assert not losses.victim.main
    assert losses.local.workers[0].main


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
def test_and_with_overlap(mode: Mode) -> None:
    losses = Losses(job_of(mode, overlap=True))

    def leave(worker: Worker, number: int) -> None:
        if worker is losses.victim and number == 4:
            worker.ask_to_leave()
            losses.done.set()

    losses.check(losses.run(train_on(losses, at_batch=leave)), lost=0)


@by_name
def test_one_that_is_lost_while_it_is_to_leave_leaves(mode: Mode) -> None:
    losses = Losses(job_of(mode))

    def leave(worker: Worker, number: int) -> None:
        if worker is losses.victim and number == 4:
            worker.ask_to_leave()
            losses.strike()
            losses.present.set()  # nobody is to wait for its return
            losses.done.set()

    losses.check(losses.run(train_on(losses, at_batch=leave)))
    assert losses.victim.steps <= 5
    assert not losses.came_back()
