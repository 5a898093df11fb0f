"""The final account: how often each sample of each epoch is in the weights."""

from __future__ import annotations

from collections.abc import Sequence

from psrpc.core.leases import LeaseBook
from psrpc.messages import Coverage, EpochAccount, Lease


def account(book: LeaseBook, shards: Sequence[Sequence[Coverage]]) -> tuple[EpochAccount, ...]:
    """Compare what was handed out with what each shard has applied.

    An epoch is over when the samples of all of its leases are done; of one that was broken
    off, samples that nobody did are not lost.
    """
    accounts = []
    for epoch, samples, done, skipped in book.totals():
        over = done + skipped == samples
        lacking: set[int] = set()
        doubled = 0
        for shard in shards:
            cover = next((c for c in shard if c.epoch == epoch), Coverage(epoch))
            doubled = max(doubled, _doubled(book, cover))
            if over:
                lacking |= _lacking(book, cover)
        lost = max(len(lacking) - skipped, 0)
        accounts.append(EpochAccount(epoch, samples, lost, doubled, skipped, over))
    return tuple(accounts)


def _lacking(book: LeaseBook, cover: Coverage) -> set[int]:
    """The positions in the epoch's order that are not in a shard's weights."""
    marks = dict(cover.open)
    lacking: set[int] = set()
    for lease in book.leases(cover.epoch):
        if any(low <= lease.index < high for low, high in cover.closed):
            continue
        there = marks.get(lease.index, ())
        for step in range(lease.steps):
            if not any(low <= step < high for low, high in there):
                lacking.update(range(*lease.batch(step)))
    return lacking


def _doubled(book: LeaseBook, cover: Coverage) -> int:
    """How many samples are in a shard's weights more than once; short batches count as full."""
    sizes: dict[int, Lease] = {lease.index: lease for lease in book.leases(cover.epoch)}
    return sum(times * sizes[index].batch_size for index, times in cover.doubled)
