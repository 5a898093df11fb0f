"""What happens in a space, as those hear who watch it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any, NamedTuple

from psrpc.core.tuples import Change
from psrpc.errors import ClosedError, PeerLostError, SpaceTimeoutError


class Event(NamedTuple):
    """A tuple was written, taken, returned, or its time was over."""

    change: Change
    fields: tuple[Any, ...]


class Watch:
    """Events of a space since `Space.watch`, in each owner's order; from any thread."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._events: queue.SimpleQueue[Event | Exception] = queue.SimpleQueue()
        self._closed = False
        # Something happened. Whoever tells that has no hold on the watch, which ends with its user.
        self.tell: Callable[[Event | Exception], None] = self._events.put

    def next(self, timeout: float | None = None) -> Event:
        """The next event. Raises SpaceTimeoutError if none comes within `timeout` seconds.

        PeerLostError where an owner is lost, or this process has not read what it was told.
        """
        if self._closed:
            raise ClosedError("this watch was closed")
        try:
            event = self._events.get(timeout=timeout)
        except queue.Empty:
            raise SpaceTimeoutError(f"nothing happened within {timeout} s") from None
        if isinstance(event, Exception):
            raise event
        return event

    def close(self) -> None:
        """Hear no more."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def behind() -> PeerLostError:
    """Events were not read for so long that no more are sent."""
    return PeerLostError("a watcher of a tuple space did not read its events: watch again")
