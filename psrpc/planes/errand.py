"""An exchange that a link's own thread carries out while its caller does something else."""

from __future__ import annotations

import threading
from collections.abc import Callable

from psrpc.planes.base import Payload


class Errand:
    """A `Pending` whose work is one function, to be called by the link's thread."""

    def __init__(self, play: Callable[[], Payload]) -> None:
        self._play = play
        self._over = threading.Event()
        self._payload: Payload | None = None
        self._error: Exception | None = None

    def done(self) -> bool:
        """See `Pending`."""
        return self._over.is_set()

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`. Weights are where the function put them."""
        if not self._over.wait(timeout_s):
            raise TimeoutError("no answer yet")
        if self._error is not None:
            raise self._error
        assert self._payload is not None
        return self._payload

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        return self.arrive(timeout_s)

    def carry_out(self) -> Exception | None:
        """Do all that `wait` waits for, by the link's thread; returns what went wrong."""
        try:
            self._payload = self._play()
        except Exception as error:
            self.give_up(error)
            return error
        self._over.set()
        return None

    def give_up(self, error: Exception) -> None:
        """Let `wait` raise `error`, unless all is done already."""
        if not self._over.is_set():
            self._error = error
            self._over.set()
