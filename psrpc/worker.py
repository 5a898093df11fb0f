"""A worker: the face that a training function is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from psrpc.batches import Collate, batches, check_samples
from psrpc.clock import Clock, SystemClock
from psrpc.crew import Crew
from psrpc.errors import FencedError
from psrpc.exchange import Exchange
from psrpc.follow import Follower, Found
from psrpc.job import Job
from psrpc.messages import Lease, Peek
from psrpc.optimizer import DistributedOptimizer
from psrpc.planes.base import Link
from psrpc.samples import Samples
from psrpc.stepping import Stepping
from psrpc.store.blueprint import Blueprint
from psrpc.tally import Tally
from psrpc.ticket import Ticket
from psrpc.untrained import Untrained


class Worker(Stepping):
    """One worker of a job. All methods are for the thread that trains.

    Attributes: `model` (its parameters are the servers' weights as of the last pull),
    `optimizer` (a `torch.optim.Optimizer` for existing loops), `rank` (0 to `num_workers` - 1, or
    above where more have joined), `num_workers` (those that the job was started for), `device`,
    `seed`. `main` is true, after the end, of the one worker that reports the results.

    A worker that was taken for dead and goes on comes back by itself: the step under way does
    not count, its samples are done by others.
    """

    def __init__(
        self,
        job: Job,
        rank: int | None,
        model: nn.Module,
        blueprint: Blueprint,
        links: list[Link],
        clock: Clock | None = None,
        process: int | None = None,
        found: Found | None = None,
    ) -> None:
        super().__init__(job, blueprint, Tally(clock or SystemClock()))
        self.rank = 0 if rank is None else rank
        self.stayed = self.main = False
        self.num_workers = job.workers
        self.seed = job.seed
        self.model = model
        self.device = next(model.parameters()).device
        self.follower = Follower(links, blueprint, self._progress, found or Found())
        self._untrained = Untrained(model, blueprint, links, self._progress, self.follower)
        number = process if process is not None else self.rank
        self.crew = Crew(job, self._progress, links, number, rank, self.follower)
        steps = (self._optimizer_step, lambda: self._exchange.clear(), self._fetch_state)
        self.optimizer = DistributedOptimizer(model, blueprint, *steps)
        self._epoch = -1
        self._released = False

    def start(self) -> None:
        """Come to the job and take its weights. Blocks until the job begins."""
        self.rank = self.crew.register(self._blueprint).rank
        self.follower.bind(self.model)
        self._exchange = Exchange(self.follower, self._progress, int(self.job.overlap))
        while not (self._safely(self._untrained.take_frozen) and self._safely(self._take_rest)):
            self.crew.stay()
        self._tally.begin()

    @property
    def number(self) -> int:
        """The number under which this worker is known to the servers; no other ever has it."""
        return self._progress.worker

    @property
    def leaving(self) -> bool:
        """Whether this worker was asked to leave: `batches` end, and so should other loops."""
        return self.crew.leave_soon.is_set()

    def ask_to_leave(self) -> None:
        """Let `batches` end after the step under way; from any thread, or a signal handler."""
        self.crew.leave_soon.set()

    @property
    def clock(self) -> int:
        """The number of steps that this worker has finished."""
        return self._progress.clock

    @property
    def steps(self) -> int:
        """The number of steps that this worker has made itself."""
        return self._tally.steps

    @property
    def epoch(self) -> int:
        """The number of the epoch that `batches` serves or served last, from 0."""
        return max(self._epoch, 0)

    def batches(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        shuffle: bool = True,
        sampler: Iterable[int] | None = None,
        collate_fn: Collate | None = None,
        loaders: int = 0,
    ) -> Iterator[Any]:
        """Yield this worker's share of one epoch of a map-style dataset, as batches on `device`.

        Each call is the next epoch. Every sample is given to one worker, once; fast workers get
        more. All must be given the same dataset. The order is drawn from the job's seed and the
        epoch (by `sampler`, if there is one); with each batch the generators of torch, Python and
        numpy begin anew, from the seed and its place. Collating follows torch's DataLoader, with
        `loaders` above 0, so many processes load ahead. Call `step` for each batch; gradients of
        a batch without a step go into the next one, of the last ones they are pushed at the end.

        Blocks while it waits for work; in synchronous mode, at an epoch's start, for all workers.
        It ends when every sample of the epoch is done: what a worker that died or left has not
        done goes to the others. Then nobody waits for this worker until its next batch. To a
        worker that came late, epochs that were over are empty.
        """
        samples = Samples(dataset, batch_size, self.seed, shuffle, sampler)
        samples.check()
        self._abandon()
        self._epoch += 1
        self._progress.epoch = epoch = self._epoch

        return batches(
            self,
            samples,
            device=self.device,
            collate=collate_fn,
            loaders=loaders,
            stale=lambda: self._epoch != epoch,
        )

    def step(self, loss: torch.Tensor | float | None = None, *, samples: int | None = None) -> None:
        """Push the gradients, wait as the mode demands, pull weights, and clear the gradients.

        `loss` is only reported, and left out if it is NaN or infinite. `samples` is this step's
        weight in a synchronous round: by default the batch's size, or 1 for data that is not from
        `batches`. Raises GradientError (NonFiniteGradientError for NaN or Inf, unless they are to
        be skipped), JobFailedError, or PeerLostError: the weights may be torn then, and this
        worker can neither step nor leave.
        """
        self._loss = loss.detach() if isinstance(loss, torch.Tensor) else loss
        if samples is not None:
            self._samples = check_samples(samples)
        hooked = self.optimizer.hooked
        if hooked:
            self.optimizer.step()
        else:
            self._optimizer_step()
        if not self.job.overlap:
            self._exchange.clear(pushed=not hooked)

    def push(self) -> Ticket:
        """Push the gradients without waiting. The ticket's result comes when they are applied
        and the mode lets this worker start its next step; weights stay as they are.

        The gradients are handed over: `.grad` begins from zero. Waits for an earlier push
        first. If this worker was taken for dead it comes back, and the push does not count.
        """
        return self._ticket(lambda: self._push(pull=False, at_once=False), weights=False)

    def pull(self) -> Ticket:
        """Ask for weights; they are in the model when the ticket's `result` returns."""

        def ask() -> Ticket:
            self._ensure_active()
            return self._exchange.pull(at_once=False)

        return self._ticket(ask, weights=True)

    def push_pull(self) -> Ticket:
        """Push the gradients, as `push` does, and ask for the weights of the next step."""
        return self._ticket(lambda: self._push(pull=True, at_once=False), weights=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While evaluating, say: nobody waits for this worker, and its weights stay as they are.

        At the end a worker that was stepping before takes fresh weights and goes on,
        in synchronous mode when all workers are about to start.
        """
        self._safely(self._exchange.settle)
        was_active = self._progress.active
        self._safely(self.crew.pause)
        yield
        while was_active and not self._progress.active and not self.leaving:
            self._safely(self._ensure_active)

    def leave(self, *, early: bool = False) -> None:
        """Leave the job. Blocks until all workers have left, then takes the final weights.

        With `early` others do the rest of this worker's samples, and nothing is waited for; so
        it is if this worker is asked to leave meanwhile.
        """

        def part() -> None:
            self._exchange.settle()
            self._untrained.put_buffers(self._tally.steps)
            self.main = self.crew.leave(self._tally.stats(*self._exchange.counts()), early=early)
            self._closed, self.stayed = True, not (early and self.leaving)

        while not self._closed and (self._safely(part) or not self.leaving):
            pass
        if self.stayed and not (early or self._released):
            self._take_rest()
        self._exchange.release()
        self._closed = self._released = True

    def _take_rest(self) -> None:
        self._untrained.take_buffers()
        self._exchange.peek(lambda layout: Peek(self.number, layout))

    # What `batches` asks of its source.

    def lease_batches(self, samples: int, batch_size: int) -> Iterator[tuple[Lease, int]]:
        """See `batches.Source`."""
        leases = self.crew.lease_batches(samples, batch_size)
        given: list[tuple[Lease, int]] = []

        def take_next() -> None:
            with self._tally.waiting():
                given.extend(itertools.islice(leases, 1))

        while self._safely(take_next) and given:
            yield given.pop()

    def take(self, lease: Lease, step: int) -> bool:
        """See `batches.Source`."""
        mine = self.crew.holds(lease) and not self.leaving
        return mine and self._safely(lambda: self._reach(lease, step))

    def more(self, samples: int, batch_size: int) -> bool:
        """See `batches.Source`."""
        left = False

        def rest() -> None:
            nonlocal left
            if not self.leaving:
                self._flush()
            self._exchange.settle()
            self._untrained.put_buffers(self._tally.steps)
            self.crew.pause()
            with self._tally.waiting():
                left = not self.leaving and self.crew.rest(samples, batch_size)

        came_back = not self._safely(rest)
        return left or (came_back and not self.leaving)

    def _reach(self, lease: Lease, step: int) -> None:
        """Come to a batch; one before it that was not pushed goes into its update."""
        if self._fetched is not None or step == lease.first_step:
            self._exchange.settle()  # what is under way still counts on the lease before
        if self._fetched is not None and not self._progress.may_fold(lease):
            self._flush()
            self._exchange.settle()
        if self._fetched is not None:
            self._progress.fold()
        else:
            self._samples = None
        if step == lease.first_step:
            self._progress.begin(lease)
            if self.job.checkpointing is not None:
                self._untrained.offer_buffers(self._tally.steps)
        self._flushed = False
        low, high = lease.batch(step)
        self._samples = (self._samples or 0) + high - low
        self._fetched = lease
        self._ensure_active()
        self._refresh()

    def _abandon(self) -> None:
        """Leave a loop half-way: others have what was not pushed; those gradients do not count."""
        if self._fetched is not None:
            self._safely(self._exchange.settle)
            self._exchange.clear()
            self._progress.abandon()
            self._samples, self._loss, self._fetched = None, None, None

    def _flush(self) -> None:
        """Push the gradients of batches for which the loop has called no step."""
        if self._fetched is not None:
            self._push(pull=True, at_once=True).result()
            self._exchange.clear()
            self._flushed = True

    def _ticket(self, ask: Callable[[], Ticket], *, weights: bool) -> Ticket:
        """A ticket for the caller to wait on, who need not know that this worker came back."""
        generation = self.crew.generation

        def come_back() -> None:
            if self.crew.generation == generation:
                self._rejoin()
            while weights and not self._safely(self._ensure_active):
                self.crew.stay()

        try:
            ticket = ask()
        except FencedError:
            come_back()
            return Ticket([], lambda replies: None)
        ticket.fenced = come_back
        return ticket

    def _safely(self, act: Callable[[], object]) -> bool:
        """Do something; returns whether it is done.

        If this worker counts as dead it comes back in place of it, and if it is asked to leave
        it waits for nobody.
        """
        with self.crew.unless_leaving():
            try:
                act()
                return True
            except FencedError:
                self._rejoin()
        return False

    def _fetch_state(self) -> dict[int, dict[str, Any]]:
        self._safely(self._exchange.settle)
        return self._untrained.optimizer_state()
