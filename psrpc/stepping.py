"""A worker's steps: what it has to push, and how its turn to go on comes."""

from __future__ import annotations

import torch

from psrpc.core.progress import Progress
from psrpc.crew import Crew
from psrpc.errors import ClosedError, FencedError
from psrpc.exchange import Exchange
from psrpc.job import Job, NonFinite
from psrpc.messages import Lease
from psrpc.optimizer import DistributedOptimizer
from psrpc.store.blueprint import Blueprint
from psrpc.tally import Tally
from psrpc.ticket import OVER, Ticket


class Stepping:
    """One worker's steps; used from its training thread.

    `crew`, `optimizer` and, from its start on, `_exchange` are set by the worker.
    """

    rank: int
    crew: Crew
    optimizer: DistributedOptimizer
    _exchange: Exchange

    def __init__(self, job: Job, blueprint: Blueprint, tally: Tally) -> None:
        self.job = job
        self._blueprint = blueprint
        self._tally = tally
        self._progress = Progress(-1)
        self._fetched: Lease | None = None  # whose batch was not pushed yet
        self._samples: int | None = None
        self._loss: torch.Tensor | float | None = None
        self._flushed = False
        self._closed = False

    def _optimizer_step(self) -> None:
        flushed, self._flushed = self._flushed, False
        if flushed and self._exchange.empty:
            return  # a loop's own step for what was left of its epoch, which is done
        try:
            ticket = self._quick_step() or self._push(pull=True, at_once=not self.job.overlap)
            if not (ticket is OVER or self.job.overlap):
                ticket.result()
        except FencedError:
            self._rejoin()

    def _push(self, *, pull: bool, at_once: bool) -> Ticket:
        if self._closed:
            raise ClosedError(f"worker {self.rank} has left the job and cannot step")
        read = self._exchange.read_clock  # what is under way may bring newer weights
        self._exchange.settle()
        self._ensure_active()
        leased = self._fetched is not None
        samples = 1 if self._samples is None else self._samples
        key = self._progress.next_key() if leased else self._progress.own_key()
        loss = self._loss
        with self._tally.waiting():
            ticket = self._exchange.push(
                key,
                read=read,
                samples=samples,
                pull=pull,
                overrides=self.optimizer.overrides(),
                loss=float(loss) if loss is not None else None,
                skip_nonfinite=self.job.nonfinite is NonFinite.SKIP,
                at_once=at_once,
            )
        ticket.waiting = self._tally.waiting
        self._pushed(samples)
        return ticket

    def _quick_step(self) -> Ticket | None:
        """The same at once, where nothing is rare; None otherwise: see `Exchange.step`."""
        if self.job.overlap or self._closed or not self._progress.active:
            return None
        if not self.optimizer.as_at_start:
            return None
        samples, loss = 1 if self._samples is None else self._samples, self._loss
        began_s = self._tally.now()
        ticket = self._exchange.step(
            leased=self._fetched is not None,
            samples=samples,
            loss=None if loss is None else float(loss),
        )
        if ticket is not None:
            if ticket is not OVER:
                ticket.waiting = self._tally.waiting
            self._pushed(samples, self._tally.now() - began_s)
        return ticket

    def _pushed(self, samples: int, wait_s: float = 0.0) -> None:
        self.optimizer.note_push()
        self._tally.stepped(samples, wait_s)
        self._samples, self._loss, self._fetched = None, None, None

    def _ensure_active(self) -> None:
        if not self._progress.active:
            with self._tally.waiting():
                self.crew.enter()
            self._refresh()

    def _refresh(self) -> None:
        """After a pause, start from weights as the mode demands."""
        if self._exchange.stale:
            with self._tally.waiting():
                self._exchange.pull(at_once=True).result()

    def _rejoin(self) -> None:
        """This worker was taken for dead: others have its work. Begin anew."""
        self._exchange.drop()
        self._samples, self._loss, self._fetched = None, None, None
        with self._tally.waiting():
            self.crew.register(self._blueprint)
