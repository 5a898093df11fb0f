"""A push or a pull under way, and how its answers are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from psrpc.errors import FencedError, MovedError, PeerLostError, PsrpcError
from psrpc.messages import Reply
from psrpc.planes.base import Payload, Pending

_LOOK_S = 1.0  # how often a worker that waits for one shard looks at the others


class Ticket:
    """A push or a pull under way. `result` finishes it; used from the training thread."""

    def __init__(
        self,
        pending: Sequence[Pending],
        finish: Callable[[list[Reply]], None] | None,
        again: Callable[[PsrpcError], list[Pending]] | None = None,
    ) -> None:
        """`again` asks once more when servers have moved, or raises what it is given.

        Without `finish` there is nothing left to do.
        """
        self._pending = list(pending)
        self._again = again
        self._finish = finish
        self._error: Exception | None = None
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        self.fenced: Callable[[], object] | None = None  # called by `result` in place of raising

    def done(self) -> bool:
        """Whether `result` would return at once."""
        return self._error is not None or all(pending.done() for pending in self._pending)

    def result(self, timeout_s: float | None = None) -> None:
        """Block until all shards have answered; weights are then in the model.

        Raises TimeoutError if that takes longer than `timeout_s` seconds: the model is as it
        was, and `result` may be called again. Raises what a server answered with, and
        PeerLostError if one is gone: then the model is as it was, and every later call raises
        the same. If this worker was taken for dead it has come back when this returns: a push did
        not count, weights are fresh.
        """
        try:
            self.settle(timeout_s)
        except FencedError:
            if self.fenced is None:
                raise
            self._finish = self._error = None
            self.fenced()

    def settle(self, timeout_s: float | None = None) -> None:
        """The same, but FencedError is raised like all others."""
        if self._error is not None:
            raise self._error
        if self._finish is None:
            return
        with self.waiting():
            self._arrive(timeout_s)
            self._finish([pending.wait()[0] for pending in self._pending])
        self._finish = None

    def arrive(self) -> None:
        """Block until all shards have answered; nothing lands. Raises what they answered with."""
        if self._finish is not None and self._error is None:
            self._arrive(None)

    def _arrive(self, timeout_s: float | None) -> None:
        """Wait for all answers before the weights of any of them land."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while True:
                try:
                    self._arrive_all(deadline)
                    return
                except (MovedError, PeerLostError) as error:
                    if self._again is None:
                        raise
                    self._pending = self._again(error)
        except TimeoutError:
            raise
        except Exception as error:
            self._error = error
            raise

    def _arrive_all(self, deadline: float | None) -> None:
        each_of(self._pending, lambda pending: self._arrive_one(pending, deadline))

    def _arrive_one(self, pending: Pending, deadline: float | None) -> None:
        """Wait for one shard's answer, which may wait for another one: that may be lost."""
        others = [each for each in self._pending if each is not pending]
        while True:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            slice_s = _LOOK_S if left_s is None else min(left_s, _LOOK_S)
            try:
                pending.arrive(slice_s if others else left_s)
                return
            except TimeoutError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise
            for each in others:
                if each.done():
                    with suppress(FencedError):
                        each.arrive()


OVER = Ticket((), None)  # everybody's: all is done


class Unsent:
    """What could not even be sent: a `Pending` whose server is lost."""

    def __init__(self, error: PeerLostError) -> None:
        self._error = error

    def done(self) -> bool:
        """See `Pending`."""
        return True

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        raise self._error

    wait = arrive


def each_of(pending: Sequence[Pending], arrive: Callable[[Pending], object]) -> None:
    """Let all answers arrive. Raises FencedError if one shard says so, when all have answered.

    The others say so too, and where answers come in turn, one that nobody took would be taken for
    the next one. After other errors there are other links, or none.
    """
    fenced: FencedError | None = None
    for each in pending:
        try:
            arrive(each)
        except FencedError as error:
            fenced = error
    if fenced is not None:
        raise fenced
