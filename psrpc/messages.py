"""What nodes say to each other: frozen headers, apart from the tensors they go with.

A request and its reply are small and picklable. Gradients and weights travel
beside them, as a list of flat tensors in the order of the shard's segments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from psrpc.counts import EpochLeases, Reshard, ShardStats, WorkerStats


class StreamKind(StrEnum):
    """What numbers an update: the data it was made from, or the worker that made it."""

    LEASE = "lease"
    WORKER = "worker"


class Stream(NamedTuple):
    """A numbered sequence of updates: (epoch, lease index) or (worker, incarnation)."""

    kind: StreamKind
    major: int
    minor: int


class UpdateKey(NamedTuple):
    """Names one update for ever: a shard applies at most one update per key.

    `total` is the number of updates in the stream, or 0 where it has no end.
    """

    stream: Stream
    sequence: int
    total: int = 0


@dataclass(frozen=True)
class Lease:
    """Samples `start` to `stop` of an epoch's order, to be done in batches by one worker.

    `first_step` is above 0 where another worker did the first part and gave it back. `until`
    is where it ends before the lease's last batch (0: with that), for one batch that came too
    late. `again` is whether a worker had it before: some shards may then have the first of its
    updates, so each batch must be an update of its own.
    """

    epoch: int
    index: int
    start: int
    stop: int
    batch_size: int
    first_step: int = 0
    again: bool = False
    until: int = 0

    @property
    def id(self) -> LeaseId:
        """The numbers of its epoch and of itself, and where it ends if that is early."""
        return self.epoch, self.index, self.until

    @property
    def end(self) -> int:
        """The first batch that is not part of it any more."""
        return self.until or self.steps

    @property
    def steps(self) -> int:
        """The number of all batches of the lease, those before `first_step` included."""
        return -(-(self.stop - self.start) // self.batch_size)

    def batch(self, step: int) -> tuple[int, int]:
        """The first and the past-the-end position of batch `step` in the epoch's order."""
        low = self.start + step * self.batch_size
        return low, min(low + self.batch_size, self.stop)

    def key(self, step: int) -> UpdateKey:
        """The name of the update made from batch `step`."""
        return UpdateKey(Stream(StreamKind.LEASE, self.epoch, self.index), step, self.steps)


@dataclass(frozen=True)
class View:
    """Who is stepping, by the coordinator's word; a higher `epoch` replaces a lower one.

    `active` pairs each stepping worker with the clock it starts from.
    """

    epoch: int = 0
    active: tuple[tuple[int, int], ...] = ()


# A lease by the numbers of its epoch and of itself, and where it ends if that is early.
LeaseId = tuple[int, int, int]

# A changed optimizer setting: (parameter group, option, value).
Override = tuple[int, str, object]


@dataclass(frozen=True)
class Request:
    """Base of what a worker asks of a server."""

    worker: int


@dataclass(frozen=True)
class Register(Request):
    """A process's first word, or its word after it was taken for dead: it wants to be a worker.

    `worker` is here the number of the process in the job; the answer, `Welcome`, gives the
    number that it works under. Answered when the job may begin. `serial` counts its comings,
    `rank` is the rank that its launcher gave it (None: any). `model` is the worker's list of
    (name, shape, dtype) of parameters, `protocol` its version of these messages.
    """

    protocol: int
    model: tuple[tuple[str, tuple[int, ...], str], ...]
    settings: tuple[tuple[str, str], ...] = ()
    rank: int | None = None
    serial: int = 0
    layout: int = 0


@dataclass(frozen=True)
class Push(Request):
    """One step's gradients, and (with `pull`) the request to start the next step.

    `clock` is the number of steps the worker had finished when it made them.
    `absent` are the pieces of this shard that have no gradient in this step;
    `void` marks an update that carries none at all (skipped as not finite), `also`
    names batches whose gradients were added up into this one.
    `overrides` are the optimizer's options where they differ from the job's start.
    `read` is the clock whose start gave the weights that the gradients were made from
    (None: the latest).
    `ahead` is the number of steps that the worker will have begun after this one when it
    takes the answer. `layout` is the number of the job's servers as this worker knows them, here
    and in all that is for one shard.
    """

    clock: int
    key: UpdateKey
    samples: int
    pull: bool = True
    absent: tuple[int, ...] = ()
    void: bool = False
    also: tuple[UpdateKey, ...] = ()
    overrides: tuple[Override, ...] = ()
    loss: float | None = None
    view: View | None = None
    ahead: int = 0
    read: int | None = None
    layout: int = 0


@dataclass(frozen=True)
class Pull(Request):
    """Weights, as soon as the mode lets a worker with this clock start its next step.

    `ahead` is as in `Push`.
    """

    clock: int
    view: View | None = None
    ahead: int = 0
    layout: int = 0


@dataclass(frozen=True)
class Peek(Request):
    """The weights as they are now, without a place in any clock's order."""

    layout: int = 0


@dataclass(frozen=True)
class Adopt(Request):
    """Takes a newer view to a shard."""

    view: View
    layout: int = 0


@dataclass(frozen=True)
class Acquire(Request):
    """Work, please: a lease of the epoch's samples; `samples` None asks only to be counted.

    `done` are leases finished since the last word, `clock` the worker's own, `serial`
    numbers a worker's words to the coordinator, so that a repeated one is answered alike.
    A worker that is not stepping is answered when there is a lease for it, or when every
    sample of the epoch is done.
    """

    serial: int
    clock: int
    epoch: int
    samples: int | None
    batch_size: int = 1
    done: tuple[LeaseId, ...] = ()


@dataclass(frozen=True)
class Idle(Request):
    """The worker has no more work for now: wait for it no longer. `done` as in `Acquire`."""

    serial: int
    clock: int
    epoch: int
    done: tuple[LeaseId, ...] = ()


@dataclass(frozen=True)
class Leave(Request):
    """The worker is done. Answered when every worker has left, or at once with `early`.

    What is left of its leases goes to others. `settled` says that all shards have answered
    all of its pushes, `epochs` how many epochs of leases it has come to.
    """

    serial: int
    clock: int
    epoch: int
    done: tuple[LeaseId, ...] = ()
    settled: bool = True
    early: bool = False
    epochs: int = 0
    stats: WorkerStats = field(default_factory=WorkerStats)


@dataclass(frozen=True)
class End(Request):
    """All workers have left: let the last checkpoint be made. Answered at once."""


@dataclass(frozen=True)
class Fail(Request):
    """The worker's own code failed; the job ends with this error."""

    error: tuple[str, str]


@dataclass(frozen=True)
class PutBuffers(Request):
    """The worker's buffers, as tensors beside; `steps` is their weight in the mean."""

    steps: int


@dataclass(frozen=True)
class GetBuffers(Request):
    """The mean of all workers' buffers; before any worker sent its own, the server's."""


@dataclass(frozen=True)
class GetFrozen(Request):
    """The parameters that are not trained, as the first server's model has them."""


@dataclass(frozen=True)
class GetState(Request):
    """The optimizer's state of this shard."""

    layout: int = 0


@dataclass(frozen=True)
class GetStats(Request):
    """This server's counters."""

    layout: int = 0


@dataclass(frozen=True)
class Bye(Request):
    """The worker has all that it wants. A coordinator answers with `Left`, others with `Done`.

    One that is `gone` waits for no answer.
    """

    gone: bool = False


@dataclass(frozen=True)
class Ping(Request):
    """Are you there?"""


@dataclass(frozen=True)
class Reply:
    """Base of answers; a failed request is answered with `Failure`."""


@dataclass(frozen=True)
class Failure(Reply):
    """The request failed: an error's class name and its text, see `errors.decode`."""

    error: tuple[str, str]


@dataclass(frozen=True)
class Done(Reply):
    """Nothing more to say. `version` counts the shard's optimizer steps."""

    version: int = 0


@dataclass(frozen=True)
class Stepped(Reply):
    """A push was applied, or weights are granted.

    `lead` is how many clocks the worker is ahead of the slowest stepping one, at
    the moment it may start its next step. `late` says that the push was dropped, because its
    round was complete without it. `clock` is that of the worker's next step, where others have
    gone on without it (None: the one after its last). `view` is who is stepping, if the worker
    may not know that.
    """

    version: int
    lead: int = 0
    duplicate: bool = False
    late: bool = False
    clock: int | None = None
    view: View | None = None


@dataclass(frozen=True)
class Welcome(Reply):
    """A worker was taken in: it works under number `worker`, and its user sees `rank`.

    `incarnation` counts how often the job was resumed from a checkpoint.
    """

    worker: int
    rank: int
    incarnation: int = 0


@dataclass(frozen=True)
class Granted(Reply):
    """Work: a lease, or none because the epoch's samples are all given out (or not leased).

    `since` is the number of the view in which the worker began to step.
    """

    view: View
    lease: Lease | None = None
    exhausted: bool = False
    since: int = 0


@dataclass(frozen=True)
class Ended(Reply):
    """To `End`; `kept` is whether the job's last checkpoint is made, or came to nothing."""

    kept: bool


@dataclass(frozen=True)
class Left(Reply):
    """The worker has left; `main` is whether it is the one that reports the results.

    To its farewell that is said again: another may have been the one, and have died.
    """

    main: bool = False


@dataclass(frozen=True)
class StatsReply(Reply):
    """One server's shard counters; the coordinator adds what only it knows.

    That is its workers' counters, the mean last loss, the leases, the deaths it has seen, the
    updates that were done again because a server died, and how servers were added and removed.
    """

    shard: ShardStats
    workers: tuple[tuple[int, WorkerStats], ...] = ()
    final_loss: float | None = None
    leases: tuple[EpochLeases, ...] = ()
    workers_lost: int = 0
    updates_redone: int = 0
    reshards: tuple[Reshard, ...] = ()


@dataclass(frozen=True)
class StateReply(Reply):
    """Optimizer state: for each piece its (name, first row, entries), tensors beside in order.

    An entry is (key, index of its tensor, or None for a plain value, the value).
    """

    pieces: tuple[tuple[str, int, tuple[tuple[str, int | None, object], ...]], ...]
