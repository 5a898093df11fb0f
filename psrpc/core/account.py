"""The final account: how often each sample of each epoch is in the weights."""

from __future__ import annotations

from collections.abc import Sequence

from psrpc.counts import Coverage, EpochAccount, EpochLeases
from psrpc.messages import Lease


def account(
    epochs: Sequence[EpochLeases], shards: Sequence[Sequence[Coverage]]
) -> tuple[EpochAccount, ...]:
    """Compare what was handed out with what each shard has applied.

    An epoch is over when the samples of all of its leases are done; of one that was broken
    off, samples that nobody did are not lost.
    """
    accounts = []
    for leases in epochs:
        over = leases.done + leases.skipped == leases.samples
        lacking: set[int] = set()
        doubled = 0
        for shard in shards:
            cover = next((c for c in shard if c.epoch == leases.epoch), Coverage(leases.epoch))
            doubled = max(doubled, sum(times for _, times in cover.doubled) * leases.batch_size)
            if over:
                lacking |= _lacking(leases, cover)
        lost = max(len(lacking) - leases.skipped, 0)
        counts = (leases.samples, lost, doubled, leases.skipped, over)
        accounts.append(EpochAccount(leases.epoch, *counts, _given_up(leases)))
    return tuple(accounts)


def _given_up(leases: EpochLeases) -> tuple[tuple[int, int], ...]:
    """The positions in the epoch's order that were skipped, as ranges."""
    starts = (0, *leases.stops)
    spans = []
    for index, first, end in leases.given_up:
        lease = Lease(leases.epoch, index, starts[index], starts[index + 1], leases.batch_size)
        spans.append((lease.batch(first)[0], lease.batch(end - 1)[1]))
    return tuple(sorted(spans))


def _lacking(leases: EpochLeases, cover: Coverage) -> set[int]:
    """The positions in the epoch's order that are not in a shard's weights."""
    closed = {index for low, high in cover.closed for index in range(low, high)}
    marks = dict(cover.open)
    lacking: set[int] = set()
    start = 0
    for index, stop in enumerate(leases.stops):
        lease = Lease(leases.epoch, index, start, stop, leases.batch_size)
        start = stop
        if index in closed:
            continue
        there = {step for low, high in marks.get(index, ()) for step in range(low, high)}
        for step in set(range(lease.steps)) - there:
            lacking.update(range(*lease.batch(step)))
    return lacking
