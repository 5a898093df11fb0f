"""What is counted in a job: frozen values that workers and servers report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WorkerStats:
    """What one worker counted: seconds in its training function, seconds waiting in steps."""

    steps: int = 0
    samples: int = 0
    busy_s: float = 0.0
    wait_s: float = 0.0
    nonfinite_skipped: int = 0


Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Coverage:
    """The updates of an epoch's leases that are in a shard's weights.

    `closed` are the leases of which all are, as ranges [low, high) of lease numbers, `open`
    pairs others with ranges of their batches. `doubled` are batches that came in twice.
    """

    epoch: int
    closed: Spans = ()
    open: tuple[tuple[int, Spans], ...] = ()
    doubled: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class EpochLeases:
    """What the coordinator knows of an epoch: `stops` are where its leases end, in order.

    Of `samples`, `done` are those that are in the weights of all shards, as far as that was
    told, and `skipped` those that were given up: batches from the first to the past-the-last of
    leases, as (lease, first, past last) in `given_up`. `broken_off` is whether workers went on
    to another epoch before its end.
    """

    epoch: int
    samples: int
    done: int
    skipped: int
    batch_size: int
    stops: tuple[int, ...]
    broken_off: bool = False
    given_up: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class EpochAccount:
    """How often an epoch's samples are in the weights, over all shards.

    `lost` are samples that some shard lacks, `doubled` those that some shard has more than
    once, `skipped` those that were given up on purpose, `skipped_at` where they are in the
    epoch's order, as ranges [low, high). `over` is whether the epoch was done.
    """

    epoch: int
    samples: int
    lost: int = 0
    doubled: int = 0
    skipped: int = 0
    over: bool = True
    skipped_at: Spans = ()


@dataclass(frozen=True)
class Reshard:
    """Servers were added or removed: `before` and `servers` count them.

    `at_s` is when that was decided, in seconds since the job began. No step was made for `stall_s`
    of it, of which `held_s` passed until all rows were where they belong and the change was made.
    """

    layout: int
    before: int
    servers: int
    at_s: float
    held_s: float
    stall_s: float


@dataclass(frozen=True)
class ShardStats:
    """What one shard counted since the job's start; `samples_before` were in its checkpoint."""

    updates_applied: int = 0
    duplicates_dropped: int = 0
    optimizer_steps: int = 0
    samples: int = 0
    samples_before: int = 0
    void_updates: int = 0
    max_clock_gap: int = 0
    dropped_late: int = 0
    staleness: tuple[tuple[int, int], ...] = ()
    update_lag: tuple[tuple[int, int], ...] = ()
    coverage: tuple[Coverage, ...] = ()
