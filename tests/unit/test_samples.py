"""The order of an epoch's samples: the same on every worker, with torch's samplers too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    Dataset,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from psrpc.errors import DatasetError, UsageError
from psrpc.job import Job
from psrpc.samples import Samples
from psrpc.testing.local import LocalJob
from psrpc.worker import Worker

DATA = TensorDataset(torch.arange(40))
SAMPLERS: list[Any] = [
    RandomSampler(DATA),
    RandomSampler(DATA, replacement=True, num_samples=90),
    SubsetRandomSampler(range(10, 30)),
    WeightedRandomSampler(list(range(40)), 60),
]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_draws_the_same_on_every_worker(sampler: Any) -> None:
    one, other = (Samples(DATA, 4, 3, sampler=sampler) for _ in range(2))
    first = one.order(0).tolist()
    assert first != one.order(1).tolist()
    torch.manual_seed(5)
    assert other.order(0).tolist() == first
    assert Samples(DATA, 4, 4, sampler=sampler).order(0).tolist() != first
    assert len(first) == len(one) == len(sampler)


def test_what_a_sampler_gives_is_done_once() -> None:
    sampler = WeightedRandomSampler([0.0] * 10 + [1.0] * 30, 25)
    local = LocalJob(Job(1, seed=3), lambda: nn.Linear(1, 1), torch.optim.SGD)
    taken: list[int] = []

    def train(worker: Worker) -> None:
        for (x,) in worker.batches(DATA, 4, sampler=sampler):
            taken.extend(x.tolist())
            worker.model(x.float()[:, None]).sum().backward()
            worker.step()

    report = local.run(train)
    assert taken == Samples(DATA, 4, 3, sampler=sampler).order(0).tolist()
    assert min(taken) >= 10
    assert report.samples == 25
    assert report.samples_counted_once


class Short:
    """Says that it is longer than it is."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[int]:
        return iter(range(2))


@pytest.mark.parametrize(
    ("sampler", "reason"),
    [
        (DistributedSampler(DATA, 2, 0), "shares out samples itself"),
        (RandomSampler(DATA, generator=torch.Generator()), "has a generator of its own"),
        (iter(range(40)), "has no length"),
        (Short(), "gives 2 indices and has a length of 3"),
        (BatchSampler(SequentialSampler(DATA), 4, drop_last=False), "gives batches"),
    ],
)
def test_samplers_that_cannot_be_shared(sampler: Iterable[int], reason: str) -> None:
    samples = Samples(DATA, 4, sampler=sampler)
    with pytest.raises(UsageError, match=reason):
        samples.check() or samples.order(0)  # type: ignore[func-returns-value]


def test_nothing_to_draw_from() -> None:
    empty: Dataset[Any] = TensorDataset(torch.arange(0))
    with pytest.raises(DatasetError, match="TensorDataset is empty"):
        Samples(empty, 4).check()
    with pytest.raises(DatasetError, match="the sampler is empty"):
        Samples(DATA, 4, sampler=[]).check()
