"""A worker's dealings with the coordinator: coming, leases, pausing, leaving."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from psrpc.core.progress import Progress
from psrpc.counts import WorkerStats
from psrpc.errors import ClosedError, FencedError, PeerLostError, ProtocolError, PsrpcError
from psrpc.follow import Follower
from psrpc.job import PROTOCOL, Job
from psrpc.messages import (
    Acquire,
    Adopt,
    Bye,
    End,
    Ended,
    Fail,
    GetStats,
    Granted,
    Lease,
    LeaseId,
    Left,
    Register,
    Reply,
    StatsReply,
    Welcome,
)
from psrpc.planes.base import Link, Payload, Pending
from psrpc.store.blueprint import Blueprint

_ATTEMPTS = 5  # to come to the job, while it takes this worker for dead
_LOOK_UP_S = 0.1  # how often whoever waits for others looks whether it was asked to leave


class _Ahead:
    """A lease asked for ahead. Its answer is taken in once, before any later word is said."""

    def __init__(self, pending: Pending, take_in: Callable[[Pending], Lease | None]) -> None:
        self._pending: Pending | None = pending
        self._take_in = take_in
        self._lease: Lease | None = None

    def lease(self) -> Lease | None:
        """The lease, or None if no samples are left. Blocks."""
        if self._pending is not None:
            self._lease, self._pending = self._take_in(self._pending), None
        return self._lease


class Crew:
    """Keeps a worker's place in the job. Used from the worker's training thread.

    `generation` counts how often the worker has come: what was granted in an earlier one is
    not its own any more.
    """

    def __init__(
        self,
        job: Job,
        progress: Progress,
        links: Sequence[Link],
        process: int,
        rank: int | None,
        follower: Follower,
    ) -> None:
        self._follower = follower
        self.job = job
        self.progress = progress
        self.process = process
        self.rank = rank
        self.generation = 0
        self.leave_soon = threading.Event()  # set from any thread: this worker is to leave
        self._links = links
        self._ahead: _Ahead | None = None
        self._granted_first: Lease | None = None
        self._held: dict[LeaseId, Lease] = {}

    @contextmanager
    def unless_leaving(self) -> Iterator[None]:
        """End the block where it waits for others when this worker is asked to leave."""
        try:
            yield
        except ClosedError:
            if not self.leave_soon.is_set():
                raise

    def register(self, drawn: Blueprint) -> Welcome:
        """Come to the job, or come back to it; blocks until it begins.

        Raises ClosedError if this worker is asked to leave meanwhile.
        """
        self._ahead, self._granted_first = None, None
        self._held.clear()
        for attempt in itertools.count(1):
            self.stay()
            request = Register(
                self.process,
                PROTOCOL,
                drawn.signature,
                (*self.job.settings, *drawn.options),
                rank=self.rank,
                serial=self.generation,
                layout=self._follower.layout,
            )
            self.generation += 1
            try:
                reply, _ = self._wait_unless_leaving(self._links[0].call(request))
                break
            except FencedError:
                # It was taken for dead while it came.
                if attempt == _ATTEMPTS:
                    raise
        if not isinstance(reply, Welcome):
            raise ProtocolError(f"the coordinator answered {reply!r} to a worker that came")
        self.rank = reply.rank
        self.progress.begin_anew(reply.worker, reply.incarnation)
        return reply

    def lease_batches(self, samples: int, batch_size: int) -> Iterator[tuple[Lease, int]]:
        """Yield (lease, step) of the progress's epoch; the next lease is asked for in time.

        Ends when no samples are left, or this worker leaves, or had to come back.
        """
        generation = self.generation
        if self.leave_soon.is_set():
            return
        lease, self._granted_first = self._granted_first, None
        if lease is None:
            lease = self._ask_ahead(samples, batch_size).lease()
        while lease is not None:
            self._held[lease.id] = lease
            following: _Ahead | None = None
            for step in range(lease.first_step, lease.end):
                if self.leave_soon.is_set() or generation != self.generation:
                    return
                if step == lease.end - 1:
                    following = self._ask_ahead(samples, batch_size)
                yield lease, step
            if following is None or generation != self.generation:
                return
            lease = following.lease()

    def holds(self, lease: Lease) -> bool:
        """Whether this worker still has `lease`, this very time that it was handed out."""
        return self._held.get(lease.id) is lease

    def rest(self, samples: int, batch_size: int) -> bool:
        """Wait until the epoch is over, or samples of it are left; returns whether they are.

        Raises ClosedError, as `enter` and `lease_batches` do, if this worker is asked to leave
        while it waits for others.
        """
        self._held.clear()
        self._granted_first = self._granted(self._ask(self.progress.acquire(samples, batch_size)))
        return self._granted_first is not None

    def enter(self) -> None:
        """Be counted among the stepping workers without leases; in sync mode, blocks for all."""
        self._granted(self._ask(self.progress.acquire(None)))

    def pause(self) -> None:
        """Be waited for no longer, until the next lease or `enter`."""
        self._settle()
        if not self.progress.active:
            return
        reply, _ = self._links[0].call(self.progress.idle()).wait()
        self.progress.granted(_expect(reply))
        self._follower.through(self._tell_view)

    def _tell_view(self) -> None:
        """Let all shards know the view that they may not know."""
        news = [self.progress.news_for(server) for server in range(len(self._links))]
        pending = [
            link.call(Adopt(self.progress.worker, view, self._follower.layout))
            for link, view in zip(self._links, news, strict=True)
            if view is not None
        ]
        for each in pending:
            each.wait()

    def leave(self, stats: WorkerStats, *, early: bool = False) -> bool:
        """Leave the job; blocks until all workers have left, unless it is `early`.

        Returns whether this worker is the one that reports the results. Raises ClosedError if
        it is asked to leave while it waits for the others.
        """
        if early and not self.progress.active:
            self._ahead = None  # work that it still waits for; nobody takes what comes
        self.pause()
        pending = self._links[0].call(self.progress.leave(stats, early=early))
        reply, _ = pending.wait() if early else self._wait_unless_leaving(pending)
        return isinstance(reply, Left) and reply.main

    def await_last_checkpoint(self) -> None:
        """When all have left: block until the job's last checkpoint is made, if it makes any."""
        plan = self.job.checkpointing
        while plan is not None and plan.writes:
            reply, _ = self._links[0].call(End(self.progress.worker)).wait()
            if not isinstance(reply, Ended) or reply.kept:
                return
            time.sleep(_LOOK_UP_S / 2)

    def fail(self, error: tuple[str, str], timeout_s: float = 2.0) -> None:
        """Tell all servers why the job ends; those that are gone or ended it need not know.

        Waits for each no longer than `timeout_s`.
        """
        for link in self._links:
            with suppress(PsrpcError, TimeoutError):
                link.call(Fail(self.progress.worker, error)).wait(timeout_s)

    def bye(self) -> bool | None:
        """Tell all servers that no more calls will come; one that dies now is of no matter.

        Blocks until the worker that reports the results has all that it needs, unless this one
        is asked to leave. Returns whether this one is to report them, for another may have died;
        None if there is nobody left to say.
        """
        worker = self.progress.worker
        for link in reversed(self._links[1:]):  # the coordinator last: it lets the others go
            with suppress(PeerLostError):
                link.call(Bye(worker)).wait()
        with suppress(PsrpcError):  # whatever ends the job now, this worker has done its part
            try:
                reply, _ = self._wait_unless_leaving(self._links[0].call(Bye(worker)))
            except ClosedError:
                reply, _ = self._links[0].call(Bye(worker, gone=True)).wait()
            return reply.main if isinstance(reply, Left) else None
        return None

    def _ask_ahead(self, samples: int, batch_size: int) -> _Ahead:
        request = self.progress.acquire(samples, batch_size)
        self._ahead = _Ahead(self._ask(request), self._granted)
        return self._ahead

    def _ask(self, request: Acquire) -> Pending:
        self._settle()
        return self._links[0].call(request)

    def _settle(self) -> None:
        """Take in the answer about a lease that was asked for ahead."""
        if self._ahead is not None:
            self._ahead.lease()

    def _wait_unless_leaving(self, pending: Pending) -> Payload:
        """Wait for an answer that may be held until others come, step or leave."""
        while True:
            self.stay()
            with suppress(TimeoutError):
                return pending.wait(_LOOK_UP_S)

    def stay(self) -> None:
        """Raise ClosedError if this worker was asked to leave."""
        if self.leave_soon.is_set():
            raise ClosedError(
                f"worker {self.progress.worker} was asked to leave, and waits no more"
            )

    def _granted(self, pending: Pending) -> Lease | None:
        # To one that steps the coordinator answers at once.
        active = self.progress.active
        reply, _ = pending.wait() if active else self._wait_unless_leaving(pending)
        granted = _expect(reply)
        self.progress.granted(granted)
        return granted.lease


def stats_of(links: Sequence[Link], worker: int, layout: int = 0) -> list[StatsReply]:
    """Every server's counters."""
    replies = [link.call(GetStats(worker, layout)).wait()[0] for link in links]
    return [reply for reply in replies if isinstance(reply, StatsReply)]


def _expect(reply: Reply) -> Granted:
    if not isinstance(reply, Granted):
        raise ProtocolError(f"the coordinator answered {reply!r} where work was asked for")
    return reply
