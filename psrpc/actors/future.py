"""What a call gives at once: the result that will come."""

from __future__ import annotations

import concurrent.futures as cf
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import as_completed as as_completed
from typing import Any, Protocol, overload

from psrpc.actors.messages import CANCELLED, PACKED, PLAIN
from psrpc.actors.packing import unpack, unpack_error
from psrpc.errors import UsageError
from psrpc.promises import Promise, finish_all


class Giver(Protocol):
    """The way to the actor from which a future's answer comes."""

    def give_up(self, future: Future) -> None:
        """Nobody waits for this answer any more."""
        ...


class Future(Promise):
    """The result of a call to an actor: a `concurrent.futures.Future`.

    `result(timeout)` raises what the call raised, with the remote traceback as its cause. `cancel`
    gives the result up: a call that has not begun is not carried out, one that has runs to its end.
    """

    number = 0  # on its line; 0 while it waits
    tries = 0

    def __init__(self, route: Giver, call: tuple[str | int, Any, Any]) -> None:
        self.route = route
        self.call: tuple[str | int, Any, Any] | None = call
        self.way: Any = route  # the route that carries it

    def withdraw(self) -> None:
        """See `Promise`."""
        self.route.give_up(self)

    def settle(self, status: int, value: Any) -> None:
        """The answer has come."""
        self.call = None
        if status == PLAIN:
            self.finish(value)
        elif status == PACKED:
            try:
                value = unpack(value)
            except Exception as error:
                self.finish(None, error)
            else:
                self.finish(value)
        elif status != CANCELLED:
            self.finish(None, unpack_error(value))

    def fail(self, error: BaseException) -> None:
        """There will be no answer."""
        self.call = None
        self.finish(None, error)


def settle_all(futures: Sequence[Future], values: Iterable[Any]) -> None:
    """The plain results of several calls have come."""
    for future in futures:
        future.call = None
    finish_all(futures, values)


@overload
def get(futures: cf.Future[Any], timeout: float | None = None) -> Any: ...
@overload
def get(futures: Iterable[cf.Future[Any]], timeout: float | None = None) -> list[Any]: ...
def get(futures: Any, timeout: float | None = None) -> Any:
    """The result of a future, or the results of several, in their order. Blocks.

    Raises what the first failed call raised, and TimeoutError after `timeout` seconds.
    """
    if isinstance(futures, cf.Future):
        return futures.result(timeout)
    futures = list(futures) if isinstance(futures, Iterable) else [futures]
    if wrong := [each for each in futures if not isinstance(each, cf.Future)]:
        raise UsageError(f"psrpc.get takes futures, which remote(...) gives, not {wrong[0]!r}")
    deadline = None if timeout is None else time.monotonic() + timeout
    return [future.result(left_s(deadline)) for future in futures]


def left_s(deadline: float | None) -> float | None:
    """The seconds until then, no less than 0; None for no deadline."""
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def wait(
    futures: Sequence[cf.Future[Any]], num_returns: int = 1, timeout: float | None = None
) -> tuple[list[cf.Future[Any]], list[cf.Future[Any]]]:
    """Wait until so many are done: those (no more than asked), and the others. Blocks.

    A call that failed is done. After `timeout` seconds fewer may be.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        done = [future for future in futures if future.done()][:num_returns]
        remaining_s = left_s(deadline)
        if len(done) >= min(num_returns, len(futures)) or remaining_s == 0:
            chosen = set(map(id, done))
            return done, [future for future in futures if id(future) not in chosen]
        pending = [future for future in futures if not future.done()]
        cf.wait(pending, remaining_s, cf.FIRST_COMPLETED)
