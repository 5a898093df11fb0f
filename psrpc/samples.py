"""The samples of an epoch and their order, which is the same on every worker."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, Dataset, DistributedSampler, IterableDataset

from psrpc.errors import DatasetError, UsageError
from psrpc.seeds import Purpose, seed_of, sow

_ORDER = -1  # in place of a batch's position


@dataclass(frozen=True)
class Samples:
    """A map-style dataset in batches, in an order drawn from `seed` and the epoch.

    That is a shuffle, the dataset's own order, or what `sampler` gives: an iterable of indices
    with a length, as torch's samplers are, that draws from the global generators.
    """

    dataset: Dataset[Any]
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    sampler: Iterable[int] | None = None

    def check(self) -> None:
        """Raise DatasetError or UsageError for what cannot be leased."""
        size: object = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"batch_size must be a whole number of at least 1, not {size!r}")
        name = type(self.dataset).__name__
        if isinstance(self.dataset, IterableDataset) or not (
            hasattr(self.dataset, "__getitem__") and hasattr(self.dataset, "__len__")
        ):
            raise DatasetError(
                f"{name} has no length or no indices, so its samples cannot be shared out: give a "
                "map-style dataset, or loop over your own data and call step()"
            )
        if self.sampler is not None:
            self._check_sampler(self.sampler)
        if not len(self):
            raise DatasetError(f"{name if self.sampler is None else 'the sampler'} is empty")

    def _check_sampler(self, sampler: object) -> None:
        name = type(sampler).__name__
        if isinstance(sampler, DistributedSampler):
            raise UsageError(f"{name} shares out samples itself, as batches() does: leave it out")
        if isinstance(sampler, BatchSampler):
            raise UsageError(
                f"{name} gives batches: give the sampler of indices that it is made of"
            )
        if not hasattr(sampler, "__len__"):
            raise UsageError(f"{name} has no length: a sampler needs one")
        if getattr(sampler, "generator", None) is not None:
            raise UsageError(
                f"{name} has a generator of its own, whose state differs from worker to worker: "
                "leave it out, and the order is drawn from the job's seed"
            )

    def __len__(self) -> int:
        """The samples of an epoch."""
        return len(cast(Sized, self.dataset if self.sampler is None else self.sampler))

    def order(self, epoch: int) -> torch.Tensor:
        """The epoch's order: indices, int64 of shape (samples,)."""
        if self.sampler is not None:
            return self._drawn(epoch, self.sampler)
        if not self.shuffle:
            return torch.arange(len(self))
        generator = torch.Generator().manual_seed(hash((self.seed, epoch)) & 0x7FFFFFFF)
        return torch.randperm(len(self), generator=generator)

    def _drawn(self, epoch: int, sampler: Iterable[int]) -> torch.Tensor:
        sow(seed_of(self.seed, epoch, _ORDER, Purpose.LOAD))
        indices = torch.tensor(list(sampler), dtype=torch.int64)
        if indices.shape != (len(self),):
            raise UsageError(
                f"{type(sampler).__name__} gives {len(indices)} indices and has a length of "
                f"{len(self)}: they must be the same"
            )
        return indices
