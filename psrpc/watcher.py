"""How a server hears from the coordinator: it asks what is new, again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from psrpc.errors import JobFailedError, PeerLostError, PsrpcError
from psrpc.messages import Granted, View
from psrpc.mover import Mover
from psrpc.moves import Retire, Settled
from psrpc.orders import Closed, Cut, Halt
from psrpc.planes.base import Link
from psrpc.server import ParameterServer


class Listener(Protocol):
    """Who is told of views, of what rounds are made of, of cuts, and of the coordinator's end."""

    def adopt(self, view: View) -> None: ...
    def tell(self, closed: Closed) -> None: ...
    def obey(self, word: Halt | Cut | Settled | Retire) -> None: ...
    def fail(self, error: PsrpcError) -> None: ...


class Watcher:
    """Keeps a server's view new, and ends the server with the job. One thread, which waits.

    `listener` is told in place of the server, if there is one, and `mover` of layouts. `over` is
    whether a coordinator that is not there any more had ended the job in order.
    """

    def __init__(
        self,
        coordinator: Link,
        server: ParameterServer,
        listener: Listener | None = None,
        mover: Mover | None = None,
        over: Callable[[], bool] = lambda: False,
    ) -> None:
        self._over = over
        self._coordinator = coordinator
        self._server = server
        self._listener = listener or server
        self._mover = mover
        self._giver = ""  # where rows are given away, if this server is halted for a new layout
        self._thread = threading.Thread(target=self._run, name="psrpc-watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._watch()
        except Exception as error:
            why = f"server {self._server.index}: {type(error).__name__}: {error}"
            self._listener.fail(JobFailedError(why))

    def _watch(self) -> None:
        server, rounds = self._server, 0
        while not server.ended.is_set():
            rounds = max(rounds, server.core.gate.floor)
            try:
                watch = server.core.watches(server.index, rounds)
                if self._mover is not None:
                    watch = replace(watch, layout=server.layout, giver=self._giver)
                reply, _ = self._coordinator.call(watch).wait()
            except PsrpcError as error:
                if isinstance(error, PeerLostError) and self._over():
                    server.ended.set()
                elif not server.ended.is_set():
                    self._listener.fail(error)
                return
            if isinstance(reply, Granted):
                self._listener.adopt(reply.view)
            elif isinstance(reply, Closed):
                rounds = reply.clock + 1
                self._listener.tell(reply)
            elif isinstance(reply, Halt | Cut | Settled | Retire):
                self._obey(reply)
            else:
                server.ended.set()
                return

    def _obey(self, word: Halt | Cut | Settled | Retire) -> None:
        server, mover = self._server, self._mover
        if mover is not None and server.left is None:
            if isinstance(word, Halt) and word.layout:
                self._giver = mover.halt(word.layout)
            elif isinstance(word, Cut) and not word.folder:
                self._giver = ""
        self._listener.obey(word)
        if server.left is not None and isinstance(word, Retire) and word.layout >= server.left:
            server.ended.set()
