"""What a finished job reports: the counts of all servers and workers in one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from psrpc.core.account import account
from psrpc.counts import EpochAccount, Reshard
from psrpc.messages import StatsReply


@dataclass(frozen=True)
class Report:
    """A finished job's counts. Times are in seconds.

    `final_loss` is the exponentially weighted mean of the losses that were given to
    `worker.step`. NaN and infinite ones are left out; None if there is no other. `samples` are
    those of batches, or what a step was told. A step whose gradient was skipped as not finite is
    in all counts, as done: `nonfinite_skipped` is how many there were.
    `samples`, `worker_steps` and `updates_applied` count each update once, `samples` and
    `updates_applied` with those in the checkpoint that the job was resumed from, of which
    `samples_before` are; `samples_per_s` and all about workers are of this run alone;
    `optimizer_steps` are the steps of the first shard's optimizer (one a round in
    synchronous mode); `duplicates_dropped` adds up all shards; `updates_dropped_late` came when
    their round was complete without them, and were made again of the same samples. `train_s` is the
    longest time that a worker spent training; `wait_share` the share of all
    workers' time spent waiting for servers, leases or each other.
    `staleness_histogram` counts pushes by how many clocks of the slowest worker
    their weights may have lacked; `update_lag_histogram` by how many updates of
    others were applied between the reading of their weights and their own
    application. `max_clock_gap` is the largest lead, in finished steps, with which
    a worker was let into its next step.

    `workers_lost` were taken for dead (since a server died without a backup, if one did).
    `updates_redone` were in no checkpoint when a server died, and were made again (`worker_steps`
    counts them each time). Of the samples
    of all epochs that were finished, `samples_lost` are not in the weights of every shard,
    `samples_doubled` are in those of one
    more than once (short batches counted as full), `samples_skipped` were given up because
    their lease had killed several workers, or nobody took it and servers had to come or go;
    `samples_counted_once` says that there are none of
    either. `epoch_accounts` has the same for each epoch. `reshards` are the changes of the number
    of servers while the job ran.
    """

    final_loss: float | None = None
    samples: int = 0
    samples_before: int = 0
    worker_steps: int = 0
    updates_applied: int = 0
    updates_dropped_late: int = 0
    optimizer_steps: int = 0
    duplicates_dropped: int = 0
    nonfinite_skipped: int = 0
    train_s: float = 0.0
    samples_per_s: float = 0.0
    worker_steps_per_s: float = 0.0
    wait_share: float = 0.0
    max_clock_gap: int = 0
    staleness_histogram: dict[int, int] = field(default_factory=dict)
    update_lag_histogram: dict[int, int] = field(default_factory=dict)
    workers_lost: int = 0
    updates_redone: int = 0
    samples_counted_once: bool = True
    samples_lost: int = 0
    samples_doubled: int = 0
    samples_skipped: int = 0
    epoch_accounts: tuple[EpochAccount, ...] = field(default=(), repr=False)
    reshards: tuple[Reshard, ...] = ()


def summarize(replies: Sequence[StatsReply]) -> Report:
    """Put the servers' counters together; the first is the coordinator's."""
    first = replies[0]
    workers = [stats for _, stats in first.workers]
    train_s = max((stats.busy_s for stats in workers), default=0.0)
    busy_s = sum(stats.busy_s for stats in workers)
    steps = sum(stats.steps for stats in workers)
    samples, before = first.shard.samples, first.shard.samples_before
    accounts = account(first.leases, [reply.shard.coverage for reply in replies])
    lost, doubled = sum(a.lost for a in accounts), sum(a.doubled for a in accounts)
    skipped = sum(a.skipped for a in accounts)
    return Report(
        final_loss=first.final_loss,
        samples=samples,
        samples_before=before,
        worker_steps=steps,
        updates_applied=first.shard.updates_applied,
        updates_dropped_late=first.shard.dropped_late,
        optimizer_steps=first.shard.optimizer_steps,
        duplicates_dropped=sum(reply.shard.duplicates_dropped for reply in replies),
        nonfinite_skipped=sum(stats.nonfinite_skipped for stats in workers),
        train_s=train_s,
        samples_per_s=(samples - before) / train_s if train_s else 0.0,
        worker_steps_per_s=steps / train_s if train_s else 0.0,
        wait_share=sum(stats.wait_s for stats in workers) / busy_s if busy_s else 0.0,
        max_clock_gap=max(reply.shard.max_clock_gap for reply in replies),
        staleness_histogram=dict(first.shard.staleness),
        update_lag_histogram=dict(first.shard.update_lag),
        workers_lost=first.workers_lost,
        updates_redone=first.updates_redone,
        samples_counted_once=not (lost or doubled or skipped),
        samples_lost=lost,
        samples_doubled=doubled,
        samples_skipped=skipped,
        epoch_accounts=accounts,
        reshards=first.reshards,
    )
