"""Where a worker stands: its clock, its lease and step, and whom it told of which view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from psrpc.counts import WorkerStats
from psrpc.messages import (
    Acquire,
    Granted,
    Idle,
    Lease,
    LeaseId,
    Leave,
    Reply,
    Stepped,
    Stream,
    StreamKind,
    UpdateKey,
    View,
)
from psrpc.usual import LEASED, OWN


@dataclass
class Progress:
    """A worker's own bookkeeping; the same for a real worker and a simulated one."""

    worker: int
    incarnation: int = 0
    clock: int = 0
    epoch: int = 0
    view: View = field(default_factory=View)
    active: bool = False
    started_in: int = 0
    lease: Lease | None = None
    step: int = 0
    folded: tuple[UpdateKey, ...] = ()
    apart: bool = False

    def __post_init__(self) -> None:
        self._serial = 0
        self._pushes = 0
        self._epochs = 0
        self._done: list[LeaseId] = []
        self._spent: list[LeaseId] = []  # nothing of them is left, but it may not be pushed yet
        self._told: dict[int, int] = {}

    def begin_anew(self, worker: int, incarnation: int = 0) -> None:
        """Work under a new number: nothing of what was under way counts."""
        self.worker, self.incarnation = worker, incarnation
        self.clock, self.active = 0, False
        self.lease, self.step, self.folded = None, 0, ()
        self._pushes = 0
        self._done.clear()
        self._spent.clear()

    def next_serial(self) -> int:
        """Number one more word to the coordinator."""
        self._serial += 1
        return self._serial

    def acquire(self, samples: int | None, batch_size: int = 1) -> Acquire:
        """The request for the next lease of this epoch."""
        serial = self.next_serial()
        if samples is not None:
            self._epochs = max(self._epochs, self.epoch + 1)
        return Acquire(
            self.worker, serial, self.clock, self.epoch, samples, batch_size, self.take_done()
        )

    def idle(self) -> Idle:
        """The request to be waited for no longer."""
        return Idle(self.worker, self.next_serial(), self.clock, self.epoch, self.take_done())

    def leave(self, stats: WorkerStats, *, early: bool = False, settled: bool = True) -> Leave:
        """The last word; what is left of its leases goes to others."""
        serial, done = self.next_serial(), self.take_done()
        return Leave(
            self.worker,
            serial,
            self.clock,
            self.epoch,
            done,
            settled,
            early=early,
            epochs=self._epochs,
            stats=stats,
        )

    def granted(self, reply: Granted) -> None:
        """Take in the coordinator's answer to `acquire` or `idle`."""
        if reply.view.epoch > self.view.epoch:
            self.view = reply.view
        mine = dict(reply.view.active)
        self.started_in = max(self.started_in, reply.since)
        self.active = self.worker in mine
        self.clock = max(self.clock, mine.get(self.worker, 0))

    def begin(self, lease: Lease) -> None:
        """Start on a lease."""
        self.lease, self.step = lease, lease.first_step

    def abandon(self) -> None:
        """Give up the lease in work, and what was folded: it counts as not done."""
        self.lease, self.step, self.folded = None, 0, ()
        self._spent.clear()

    def may_fold(self, following: Lease) -> bool:
        """Whether the current batch's gradients may go into the update of `following`'s."""
        assert self.lease is not None
        return not (self.lease.again or following.again)

    def next_key(self) -> UpdateKey:
        """The name of the update made from the lease's current batch."""
        return self.lease.key(self.step) if self.lease is not None else self.own_key()

    def own_key(self) -> UpdateKey:
        """The name of an update made from data of the worker's own."""
        return UpdateKey(Stream(StreamKind.WORKER, self.worker, self.incarnation), self._pushes)

    def usual_key(self, *, leased: bool) -> tuple[int, int, int, int, int]:
        """The same as numbers: those of `Usual`, from `kind` to `total`."""
        if not leased:
            return OWN, self.worker, self.incarnation, self._pushes, 0
        lease = self.lease
        assert lease is not None
        return LEASED, lease.epoch, lease.index, self.step, lease.steps

    def fold(self) -> None:
        """The current batch has no update of its own: it goes into the next one's."""
        self.folded += (self.next_key(),)
        self._advance()

    def answered(self, key: UpdateKey, replies: Sequence[Reply | None]) -> bool:
        """The push of `key` is answered by every shard; returns whether it was dropped as late.

        `apart` is then whether the shards' weights are of different rounds.
        """
        clocks = self._take_in(replies, self.clock + 1)
        late = any(isinstance(reply, Stepped) and reply.late for reply in replies)
        if late:
            self._late(key)
        else:
            self.finished(key)
        self.clock = max(self.clock, *clocks)
        return late

    def pulled(self, replies: Sequence[Reply | None]) -> None:
        """A pull is answered by every shard."""
        self.clock = max(self._take_in(replies, self.clock))

    def _take_in(self, replies: Sequence[Reply | None], usual: int) -> list[int]:
        """Note new views; returns the clocks at which the shards expect the next step."""
        stepped = [reply for reply in replies if isinstance(reply, Stepped)]
        for reply in stepped:
            if reply.view is not None and reply.view.epoch > self.view.epoch:
                self.view = reply.view
        clocks = [usual if reply.clock is None else reply.clock for reply in stepped] or [usual]
        self.apart = min(clocks) < max(clocks)
        return clocks

    def _late(self, key: UpdateKey) -> None:
        """The push came too late: what it was made of is handed out again, to anybody."""
        lease, self.folded = self.lease, ()
        if key.stream.kind is StreamKind.LEASE:
            self._advance()
        # Of a part that is one batch nothing was done, and it may come here again.
        alone = lease.id if lease is not None and lease.until else None
        self._done += [spent for spent in self._spent if spent != alone]
        self._spent.clear()

    def finished(self, key: UpdateKey | None = None) -> None:
        """The push of `key` (by default `next_key`) is applied by every shard."""
        self.went_on(leased=(key or self.next_key()).stream.kind is StreamKind.LEASE)

    def went_on(self, *, leased: bool) -> None:
        """The push of the lease's batch, or else of data of its own, is applied by every shard."""
        self.clock += 1
        self.folded = ()
        if leased:
            self._advance()
        else:
            self._pushes += 1
        self._done += self._spent
        self._spent.clear()

    def _advance(self) -> None:
        assert self.lease is not None
        self.step += 1
        if self.step == self.lease.end:
            self._spent.append(self.lease.id)
            self.lease = None

    def take_done(self) -> tuple[LeaseId, ...]:
        """The leases finished since this was last asked."""
        done, self._done = tuple(self._done), []
        return done

    def tell_anew(self) -> None:
        """There are other servers: nobody knows of a view by this worker."""
        self._told.clear()

    def has_news_for(self, server: int) -> bool:
        """Whether there is a view that `server` has not been told of by this worker."""
        return self._told.get(server, 0) < self.view.epoch

    def news_for(self, server: int) -> View | None:
        """The view, if `server` has not been told of it by this worker."""
        if not self.has_news_for(server):
            return None
        self._told[server] = self.view.epoch
        return self.view
