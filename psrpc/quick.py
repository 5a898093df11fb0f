"""A short way through a server for usual pushes, which are nearly all.

A step of a small model takes a server less time than all that an ordinary request goes through,
and the processors that it takes are the workers'. Here a push is its numbers and its gradients
all the way, and what it leaves for the books is entered later (`core.books`). In synchronous mode
such pushes are parked until their round is complete. Whatever else comes to the server first has
the books entered, and what is parked goes the ordinary way: nobody can tell the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from psrpc.core.shard import ShardCore
from psrpc.counts import ShardStats
from psrpc.desk import Answers, Call, resolve
from psrpc.holding import Holding
from psrpc.messages import Push
from psrpc.planes.base import Caller
from psrpc.store.shard import ShardStore
from psrpc.usual import Usual

_ENTER_EVERY = 1 << 10  # steps: nobody else may ask for so long


class _Parked(NamedTuple):
    push: Usual
    gradients: Sequence[torch.Tensor]
    caller: Caller


class Quick(Holding):
    """Takes usual pushes; see `QuickService`. Others are its subclass's, as are failures."""

    def __init__(self, core: ShardCore, store: ShardStore, servers: int) -> None:
        super().__init__(core, store, servers)
        # Called, under the lock, with each push that is applied and its staleness in clocks; with
        # usual ones a while after.
        self.observe: Callable[[Push, int], None] = lambda push, staleness: None
        # Called when a round may be complete with pushes that wait elsewhere; must not block.
        self.stirred: Callable[[], None] = lambda: None
        self.awaited = False  # whether `observe` is to be called with the next push at once
        self._parked: dict[int, _Parked] = {}  # by worker

    def quick(self, push: Usual, gradients: Sequence[torch.Tensor], caller: Caller) -> bool:
        """Take a usual push whose gradients fit; see `QuickService`."""
        if self.core.in_rounds:
            return self._in_round(_Parked(push, gradients, caller))
        with self._lock.lock:
            lead = self.core.quick(push) if self._may_take(push) else None
            if lead is None:
                return False
            failed = self._step_alone(gradients)
            if failed is None:
                caller.land(self.store.flats)
            version = self.core.version
            if self.awaited or not version % _ENTER_EVERY:
                self._enter()
        if failed is not None:
            resolve(failed)
            return False
        caller.grant(version, lead)
        return True

    def catch_up(self) -> None:
        """Let `observe` have been called with all pushes that are applied."""
        with self._lock:
            pass

    def stats(self) -> ShardStats:
        """The shard's counters since the start."""
        with self._lock:
            return self.core.stats()

    def _may_take(self, push: Usual) -> bool:
        return push.layout == self.layout and self._failure is None and not self.large

    def _step_alone(self, gradients: Sequence[torch.Tensor]) -> Answers | None:
        try:
            self.store.step_alone(gradients)
        except Exception as error:
            return self._give_up(error)
        return None

    def _in_round(self, came: _Parked) -> bool:
        """Park a push, or apply all that are parked if their round is complete with it."""
        worker = came.push.worker
        with self._lock.lock:
            parked, stepping = self._parked, self.core.gate.active
            if worker in parked or worker not in stepping or not self._may_take(came.push):
                return False
            if not self.core.may_park(came.push):
                return False
            if len(parked) + 1 < len(stepping):
                parked[worker] = came
                failed = None
            else:
                whole = [*parked.values(), came]
                if not self.core.quick_round(sorted(each.push for each in whole)):
                    return False
                # If that fails, those who were parked are answered the ordinary way.
                failed = self._step_together(whole)
        if failed is not None:
            resolve(failed)
            return False
        self.stirred()
        return True

    def _step_together(self, whole: Sequence[_Parked]) -> Answers | None:
        """Apply a round's pushes, and answer them; the longest that waits goes on first."""
        ordered = sorted(whole)
        try:
            self.store.step_together(
                [each.gradients for each in ordered], [each.push.samples for each in ordered]
            )
        except Exception as error:
            return self._give_up(error)
        self._parked.clear()
        flats, version = self.store.flats, self.core.version
        for each in whole:
            each.caller.land(flats)
            each.caller.grant(version, 0)
        if self.awaited or not version % _ENTER_EVERY:
            self._enter()
        return None

    def _enter(self) -> None:
        entered = self.core.books.take_entered()
        if entered:
            self.awaited = False
        for push, staleness in entered:
            self.observe(push, staleness)

    def _catch_up(self) -> None:
        self._enter()
        if not self._parked:
            return
        parked, self._parked = self._parked, {}
        for push, gradients, caller in parked.values():
            # Held, or answered with what ended the job: neither calls anybody who would wait.
            resolve(self._answer(Call(push.push(), gradients, [caller.answer], [caller.land])))

    def _answer(self, call: Call) -> Answers:
        """Take a request the ordinary way, under the lock."""
        raise NotImplementedError

    def _give_up(self, error: BaseException) -> Answers:
        """The optimizer raised: the job has failed."""
        raise NotImplementedError
