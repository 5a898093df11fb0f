"""What a call gives at once: the result that will come."""

from __future__ import annotations

import concurrent.futures as cf
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, overload

from psrpc.actors.messages import CANCELLED, PACKED, PLAIN
from psrpc.actors.packing import unpack, unpack_error


class Giver(Protocol):
    """The way to the actor from which a future's answer comes."""

    def give_up(self, future: Future) -> None:
        """Nobody waits for this answer any more."""
        ...


class Future(cf.Future[Any]):
    """The result of a call to an actor: a `concurrent.futures.Future`.

    `result(timeout)` raises what the call raised, with the remote traceback as its cause. `cancel`
    gives the result up: a call that has not begun is not carried out, one that has runs to its end.
    """

    def __init__(self, route: Giver, call: tuple[str, Any, Any]) -> None:
        super().__init__()
        self.route = route
        self.call: tuple[str, Any, Any] | None = call
        self.way: Any = route  # the route that carries it
        self.number = 0  # on its line; 0 while it waits
        self.tries = 0

    def cancel(self) -> bool:
        """Give the result up; False if it is there already."""
        if self.cancelled():
            return True
        if not super().cancel():
            return False
        self.set_running_or_notify_cancel()
        self.route.give_up(self)
        return True

    def settle(self, status: int, value: Any) -> None:
        """The answer has come."""
        self.call = None
        try:
            if status == PLAIN:
                self.set_result(value)
            elif status == PACKED:
                self.set_result(unpack(value))
            elif status != CANCELLED:
                self.set_exception(unpack_error(value))
        except cf.InvalidStateError:
            return  # given up meanwhile
        except Exception as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """There will be no answer."""
        self.call = None
        try:
            self.set_exception(error)
        except cf.InvalidStateError:
            return

    def __reduce__(self) -> Any:
        raise TypeError("a future stays in its process: send its result")


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
    if timeout is None:
        return [future.result() for future in futures]
    deadline = time.monotonic() + timeout
    return [future.result(max(deadline - time.monotonic(), 0.0)) for future in futures]


def wait(
    futures: Sequence[cf.Future[Any]], num_returns: int = 1, timeout: float | None = None
) -> tuple[list[cf.Future[Any]], list[cf.Future[Any]]]:
    """Wait until so many are done: those (no more than asked), and the others. Blocks.

    A call that failed is done. After `timeout` seconds fewer may be.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        done = [future for future in futures if future.done()][:num_returns]
        left_s = None if deadline is None else deadline - time.monotonic()
        if len(done) >= min(num_returns, len(futures)) or (left_s is not None and left_s <= 0):
            chosen = set(map(id, done))
            return done, [future for future in futures if id(future) not in chosen]
        pending = [future for future in futures if not future.done()]
        cf.wait(pending, left_s, cf.FIRST_COMPLETED)
