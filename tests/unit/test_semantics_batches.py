"""Batches: every sample once an epoch over all workers, of every sort of dataset and loop."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from psrpc.coordinator import Coordinator
from psrpc.counts import EpochAccount
from psrpc.errors import DatasetError, UsageError
from psrpc.job import Checkpointing, Job
from psrpc.messages import PutBuffers
from psrpc.modes import Asynchronous, BoundedStaleness, Mode, Synchronous
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker
from tests.unit.reference import run_local

MODES = [Synchronous(), BoundedStaleness(2), Asynchronous()]
optimizer = partial(torch.optim.SGD, lr=0.01)
Taken = list[list[int]]  # for each batch, its samples


class Numbers(Dataset[Any]):
    """Sample number n is (n, n squared), as a dictionary."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": index, "pair": (torch.tensor(index), float(index**2))}


def model() -> nn.Module:
    return nn.Linear(1, 1)


def tensors(samples: int) -> TensorDataset:
    return TensorDataset(torch.arange(samples))


def learn(worker: Worker, samples: torch.Tensor) -> None:
    worker.model(samples.float()[:, None]).mean().backward()


def take(
    job: Job,
    dataset: Dataset[Any],
    batch_size: int,
    epochs: int = 1,
    samples_of: Callable[[Any], torch.Tensor] = lambda batch: batch[0],
    **options: Any,
) -> tuple[list[Taken], Any]:
    """Train on `dataset`; returns for each epoch all batches of all workers, and the report."""
    taken: list[Taken] = [[] for _ in range(epochs)]

    def train(worker: Worker) -> None:
        for epoch in range(epochs):
            for batch in worker.batches(dataset, batch_size, **options):
                samples = samples_of(batch)
                taken[epoch].append(samples.tolist())
                learn(worker, samples)
                worker.step()
            assert worker.epoch == epoch

    report, _ = run_local(job, model, optimizer, train)
    assert report.updates_applied == report.worker_steps == sum(map(len, taken))
    assert report.samples == sum(len(batch) for epoch in taken for batch in epoch)
    return taken, report


def in_line(taken: Taken) -> list[int]:
    return [n for batch in taken for n in batch]


def every_sample_once(taken: Taken, samples: int) -> bool:
    return Counter(in_line(taken)) == Counter(range(samples))


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_every_sample_once_an_epoch(mode: Mode, workers: int) -> None:
    taken, _ = take(Job(workers, 2, mode), tensors(101), 4, epochs=3)
    assert all(every_sample_once(epoch, 101) for epoch in taken)
    assert all(len(batch) <= 4 for epoch in taken for batch in epoch)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize(("samples", "batch_size"), [(5, 4), (1, 1), (3, 100), (8, 8)])
def test_datasets_shorter_than_the_workers_batches(
    mode: Mode, samples: int, batch_size: int
) -> None:
    """Some workers get nothing in an epoch, and nobody waits for them."""
    taken, report = take(Job(4, 2, mode), tensors(samples), batch_size, epochs=2)
    assert all(every_sample_once(epoch, samples) for epoch in taken)
    assert report.samples == 2 * samples


def orders(seed: int, epochs: int = 2, **options: Any) -> list[Taken]:
    return take(Job(1, seed=seed), tensors(40), 4, epochs, **options)[0]


def test_the_order_is_drawn_from_seed_and_epoch() -> None:
    first = orders(1)
    assert first == orders(1)
    assert first[0] != first[1]
    assert first != orders(2)
    assert in_line(first[0]) != list(range(40))


def test_without_shuffling_the_order_is_the_datasets() -> None:
    assert [in_line(epoch) for epoch in orders(1, shuffle=False)] == [list(range(40))] * 2


def test_all_loaders_see_the_same_order() -> None:
    """The short way for tensors in memory, torch's DataLoader, and its processes."""
    of_numbers = partial(
        take, Job(1, seed=1), Numbers(40), 4, 2, samples_of=lambda batch: batch["x"]
    )
    assert orders(1) == of_numbers()[0] == of_numbers(loaders=2)[0]


def test_collating_follows_torch() -> None:
    seen: list[Any] = []

    def train(worker: Worker) -> None:
        for batch in worker.batches(Numbers(5), 3, shuffle=False):
            seen.append(batch)
            learn(worker, batch["x"])
            worker.step()

    run_local(Job(1), model, optimizer, train)
    assert seen[0]["x"].tolist() == [0, 1, 2]
    assert seen[1]["pair"][0].tolist() == [3, 4]
    assert seen[1]["pair"][1].tolist() == [9.0, 16.0]


@pytest.mark.parametrize("dataset", [Numbers(6), tensors(6)], ids=["dictionaries", "tensors"])
def test_a_collate_function_of_ones_own(dataset: Dataset[Any]) -> None:
    taken, _ = take(
        Job(2),
        dataset,
        2,
        samples_of=lambda batch: batch,
        collate_fn=lambda items: torch.tensor(
            [int(item["x"] if isinstance(item, dict) else item[0]) for item in items]
        ),
    )
    assert every_sample_once(taken[0], 6)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("every", [2, 3])
def test_gradients_of_batches_without_a_step_go_into_the_next(mode: Mode, every: int) -> None:
    """Gradient accumulation: samples add up, and no batch counts as unapplied at the end."""
    local = LocalJob(Job(2, 2, mode), model, optimizer)
    pushed: list[int] = []

    def train(worker: Worker) -> None:
        for _ in range(2):
            held = 0
            for number, (x,) in enumerate(worker.batches(tensors(60), 3)):
                learn(worker, x)
                held += len(x)
                if number % every == every - 1:
                    worker.step()
                    pushed.append(held)
                    held = 0
            if held:
                worker.step(samples=held)  # what is left of the epoch
                pushed.append(held)

    report = local.run(train)
    assert report.samples == sum(pushed) == 120
    assert report.updates_applied == report.worker_steps == len(pushed)
    assert report.samples_counted_once
    assert report.epoch_accounts == (EpochAccount(0, 60), EpochAccount(1, 60))


def test_steps_with_own_data_beside_batches() -> None:
    def train(worker: Worker) -> None:
        for (x,) in worker.batches(tensors(40), 4):
            learn(worker, x)
            worker.step()
            learn(worker, torch.ones(2))
            worker.step(samples=2)
        learn(worker, torch.ones(1))
        worker.step()

    report, _ = run_local(Job(2, 2, Asynchronous()), model, optimizer, train)
    assert report.updates_applied == 2 * 10 + 2
    assert report.samples == 40 + 2 * 10 + 2
    assert report.duplicates_dropped == 0


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("pull_every", [1, 4])
def test_tickets_over_batches_lose_no_update(mode: Mode, pull_every: int) -> None:
    """Each push is under way while the next batch is computed, over the bounds of leases too."""
    taken: Taken = []

    def train(worker: Worker) -> None:
        ticket = None  # the other worker may have done all
        for number, (x,) in enumerate(worker.batches(tensors(90), 3)):
            taken.append(x.tolist())
            worker.optimizer.zero_grad()
            learn(worker, x)
            ticket = worker.push_pull() if number % pull_every == 0 else worker.push()
        if ticket is not None:
            ticket.result(30.0)
            assert ticket.done()

    report, models = run_local(Job(2, 2, mode), model, optimizer, train)
    assert every_sample_once(taken, 90)
    assert (report.updates_applied, report.worker_steps, report.samples) == (30, 30, 90)
    assert report.duplicates_dropped == 0
    assert torch.equal(models[0].weight, models[1].weight)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("before_step", [True, False])
def test_pausing_anywhere_in_an_epoch_loses_no_sample(mode: Mode, before_step: bool) -> None:
    """In the last batch of a lease as well, when the next one is already asked for."""
    taken: Taken = []

    def train(worker: Worker) -> None:
        for (x,) in worker.batches(tensors(24), 2):
            taken.append(x.tolist())
            if before_step:
                with worker.paused():
                    pass
            learn(worker, x)
            worker.step()
            if not before_step:
                with worker.paused():
                    pass

    report, _ = run_local(Job(2, 2, mode), model, optimizer, train)
    assert every_sample_once(taken, 24)
    assert (report.updates_applied, report.samples) == (12, 24)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_epoch_that_is_broken_off_does_not_trouble_the_next(mode: Mode) -> None:
    second: Taken = []
    broken = threading.Barrier(2, timeout=30.0)

    def train(worker: Worker) -> None:
        for (x,) in worker.batches(tensors(40), 2):
            learn(worker, x)
            worker.step()
            if worker.steps == 3:
                break
        with worker.paused():
            broken.wait()
        for (x,) in worker.batches(tensors(40), 2):
            second.append(x.tolist())
            learn(worker, x)
            worker.step()

    report, _ = run_local(Job(2, 2, mode), model, optimizer, train)
    assert every_sample_once(second, 40)
    assert report.updates_applied == report.worker_steps == 6 + 20


def test_a_loop_within_a_loop_is_refused() -> None:
    def train(worker: Worker) -> None:
        for (x,) in worker.batches(tensors(40), 2):
            learn(worker, x)
            worker.step()
            next(iter(worker.batches(tensors(8), 2)))

    with pytest.raises(UsageError, match="inside a loop over its batches"):
        run_local(Job(1), model, optimizer, train)


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


def test_what_cannot_be_shared_out_is_refused() -> None:
    def train(worker: Worker) -> None:
        with pytest.raises(DatasetError, match="Stream has no length or no indices"):
            worker.batches(Stream(), 2)
        with pytest.raises(DatasetError, match="Numbers is empty"):
            worker.batches(Numbers(0), 2)
        for wrong in (0, -1, 2.0, True):
            with pytest.raises(UsageError, match="batch_size must be a whole number"):
                worker.batches(tensors(3), wrong)
        with pytest.raises(UsageError, match="samples must be a whole number"):
            worker.step(samples=-1)

    run_local(Job(1), model, optimizer, train)


def test_workers_with_different_datasets_are_told() -> None:
    def train(worker: Worker) -> None:
        for (x,) in worker.batches(tensors(20 + worker.rank), 2):
            learn(worker, x)
            worker.step()

    with pytest.raises(UsageError, match="every worker must be given the same dataset"):
        run_local(Job(2), model, optimizer, train)


def buffers_during(checkpointing: Checkpointing | None) -> list[float]:
    """The job's buffer (it counts batches) as a checkpoint has it, after each step."""
    local = LocalJob(Job(1, checkpointing=checkpointing), lambda: nn.BatchNorm1d(2), optimizer)
    seen = []

    def train(worker: Worker) -> None:
        coordinator = local.services[0]
        assert isinstance(coordinator, Coordinator)
        for (x,) in worker.batches(TensorDataset(torch.randn(32, 2)), 2):
            worker.model(x).sum().backward()
            worker.step()
            seen.append(float(coordinator.buffers()[2]))
        late = PutBuffers(99, 1)  # of one that does not belong to the job any more
        worker.follower.links[0].call(
            late, [torch.full_like(b, 99) for b in coordinator.buffers()]
        ).wait()
        seen.append(float(coordinator.buffers()[2]))

    local.run(train)
    return seen


def test_a_checkpoint_has_the_buffers_that_went_with_the_latest_lease() -> None:
    """Not those of the model as it was built, all through the first epoch."""
    during = buffers_during(Checkpointing("unused", every_s=None))
    assert during == [0] * 8 + [8] * 4 + [12] * 2 + [14] + [15] + [16]
    assert buffers_during(None) == [0] * 16 + [16]


def test_the_buffers_of_a_dead_worker_count_no_more() -> None:
    local = LocalJob(Job(2), lambda: nn.BatchNorm1d(2), optimizer)
    seen = []
    together, done = threading.Barrier(2, timeout=30.0), threading.Event()

    def train(worker: Worker) -> None:
        together.wait()
        if worker.rank == 1:
            assert done.wait(30.0)
            return
        coordinator = local.services[0]
        assert isinstance(coordinator, Coordinator)
        for each in local.workers:
            values = [torch.full_like(b, 2 + 4 * each.rank) for b in coordinator.buffers()]
            each.follower.links[0].call(PutBuffers(each.number, 1), values).wait()
        seen.append(float(coordinator.buffers()[0][0]))
        coordinator.lose(1 - worker.crew.process, "it is silent")
        seen.append(float(coordinator.buffers()[0][0]))
        done.set()

    local.run(train)
    assert seen == [4.0, 2.0]
