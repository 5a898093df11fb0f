"""A batch draws the same random numbers whoever does it, when, and wherever it is loaded."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from psrpc.batches import batches
from psrpc.messages import Lease
from psrpc.samples import Samples

SAMPLES, BATCH = 24, 4


def draw() -> list[float]:
    """A number of each global generator."""
    return [random.random(), float(numpy.random.rand()), float(torch.rand(()))]


class Noise(Dataset[Any]):
    """Sample n is n, and what is drawn when it is read."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, *draw()], dtype=torch.float64)


class Hands:
    """Gives out these leases, once."""

    def __init__(self, leases: Sequence[Lease]) -> None:
        self.leases = leases

    def lease_batches(self, samples: int, batch_size: int) -> Iterator[tuple[Lease, int]]:
        for lease in self.leases:
            for step in range(lease.first_step, lease.end):
                yield lease, step

    def take(self, lease: Lease, step: int) -> bool:
        return True

    def more(self, samples: int, batch_size: int) -> bool:
        return False


def noises(
    *leases: Lease, seed: int = 7, loaders: int = 0, dataset: Dataset[Any] | None = None
) -> dict[tuple[int, ...], list[Any]]:
    """What is drawn for each batch, by its samples: when they are read, and in its step."""
    found = {}
    for batch in batches(
        Hands(leases),
        Samples(dataset or Noise(), BATCH, seed),
        device=torch.device("cpu"),
        loaders=loaders,
    ):
        rows = batch[0].double()[:, None] if isinstance(batch, list) else batch
        found[tuple(int(row[0]) for row in rows)] = [rows[:, 1:].tolist(), draw()]
        random.seed()
        numpy.random.seed()
        torch.seed()
    return found


WHOLE = (Lease(2, 0, 0, 16, BATCH), Lease(2, 1, 16, SAMPLES, BATCH))


@pytest.mark.parametrize("dataset", [Noise(), Subset(Noise(), range(SAMPLES))])
def test_a_batch_draws_the_same_again(dataset: Dataset[Any]) -> None:
    first = noises(*WHOLE, dataset=dataset)
    assert len(first) == 6
    rest = noises(Lease(2, 5, 8, 16, BATCH, first_step=1, again=True), dataset=dataset)
    assert len(rest) == 1
    assert rest.items() <= first.items(), "a part of a lease of another cut, by another worker"
    assert noises(*WHOLE, loaders=2, dataset=dataset) == first


def test_tensors_in_memory_draw_the_same_in_a_step() -> None:
    data = TensorDataset(torch.arange(SAMPLES))
    steps = [step for _, step in noises(*WHOLE).values()]
    assert [step for _, step in noises(*WHOLE, dataset=data).values()] == steps


def test_no_two_batches_draw_the_same() -> None:
    epochs = [noises(Lease(epoch, 0, 0, SAMPLES, BATCH)) for epoch in range(3)]
    other = noises(*WHOLE, seed=8)
    drawn = [drawn for epoch in [*epochs, other] for drawn in epoch.values()]
    numbers = [tuple(row) for loaded, step in drawn for row in (*loaded, step)]
    assert len(set(numbers)) == len(numbers) == 4 * (SAMPLES + SAMPLES // BATCH)
