"""Batches of an epoch, as leases hand them out: every sample once, whoever is fast."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from psrpc.errors import UsageError
from psrpc.messages import Lease
from psrpc.samples import Samples
from psrpc.seeds import Purpose, seed_of, sow
from psrpc.tree import to_device

Collate = Callable[[list[Any]], Any]
Chosen = tuple[int, torch.Tensor]  # a seed for loading a batch, and the indices of its samples


class Source(Protocol):
    """Where leases come from: the worker's side of the coordinator."""

    def lease_batches(self, samples: int, batch_size: int) -> Iterator[tuple[Lease, int]]:
        """Yield (lease, step) until the epoch's samples are all given out."""
        ...

    def take(self, lease: Lease, step: int) -> bool:
        """The training loop is about to get this batch, if it is still this worker's."""
        ...

    def more(self, samples: int, batch_size: int) -> bool:
        """The loop has had all batches that there were. Waits until the epoch is over, or until
        there are more: those of a worker that died or left; returns whether there are.
        """
        ...


def check_samples(samples: object) -> int:
    """Return a step's weight in a round; raise UsageError if it can be none."""
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
        raise UsageError(f"samples must be a whole number of 0 or more, not {samples!r}")
    return samples


def batches(
    source: Source,
    samples: Samples,
    *,
    device: torch.device,
    collate: Collate | None = None,
    loaders: int = 0,
    stale: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """Yield this worker's batches of one epoch, on `device`.

    A lease may be of an earlier epoch, if others left it. `loaders` processes load and collate
    ahead (torch's DataLoader); with 0 that is done in this thread. Random numbers begin anew with
    each batch, from the samples' seed and its place in the epoch's order. When `stale` says so,
    the next batch is a UsageError.
    """
    seed, order = samples.seed, functools.cache(samples.order)
    plan: deque[tuple[Lease, int]] = deque()

    def chosen() -> Iterator[Chosen]:
        for lease, step in source.lease_batches(len(samples), samples.batch_size):
            plan.append((lease, step))
            low, high = lease.batch(step)
            yield seed_of(seed, lease.epoch, low, Purpose.LOAD), order(lease.epoch)[low:high]

    while True:
        for batch in _load(samples.dataset, chosen(), collate, loaders):
            if stale():
                raise UsageError(
                    "batches() was called again inside a loop over its batches; finish or leave "
                    "one loop before the next, and take data for evaluation from a DataLoader"
                )
            lease, step = plan.popleft()
            if source.take(lease, step):
                sow(seed_of(seed, lease.epoch, lease.batch(step)[0], Purpose.STEP))
                yield to_device(batch, device)
        if not source.more(len(samples), samples.batch_size):
            return


def _load(
    dataset: Dataset[Any], chosen: Iterator[Chosen], collate: Collate | None, loaders: int
) -> Iterator[Any]:
    if type(dataset) is TensorDataset and collate is None and loaders == 0:
        # Tensors in memory: one index operation a batch in place of one a sample.
        tensors = dataset.tensors
        return ([tensor[indices] for tensor in tensors] for _, indices in chosen)
    lists = ((seed, indices.tolist()) for seed, indices in chosen)
    loader: DataLoader[Any] = DataLoader(
        _Sown(dataset), batch_sampler=_Once(lists), collate_fn=collate, num_workers=loaders
    )
    return iter(loader)


class _Sown(Dataset[Any]):
    """A dataset whose random numbers begin anew with each batch, in whichever process."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset

    def __getitems__(self, batch: tuple[int, list[int]]) -> list[Any]:
        """What DataLoader asks for: a batch's samples."""
        seed, indices = batch
        sow(seed)
        several = getattr(self._dataset, "__getitems__", None)
        if several is not None:
            return cast(list[Any], several(indices))
        return [self._dataset[index] for index in indices]


class _Once:
    """An iterator in the shape that DataLoader wants of a batch sampler."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches
