"""How a server hears from the coordinator: it asks what is new, again and again."""

from __future__ import annotations

import threading
from typing import Protocol

from psrpc.errors import PsrpcError
from psrpc.messages import Granted, View
from psrpc.orders import Closed, Cut, Halt, Watch
from psrpc.planes.base import Link
from psrpc.server import ParameterServer


class Listener(Protocol):
    """Who is told of views, of what rounds are made of, and of the coordinator's end."""

    def adopt(self, view: View) -> None: ...
    def tell(self, closed: Closed) -> None: ...
    def fail(self, error: PsrpcError) -> None: ...


class Watcher:
    """Keeps a server's view new, and ends the server with the job. One thread, which waits.

    `listener` is told in place of the server, if there is one.
    """

    def __init__(
        self, coordinator: Link, server: ParameterServer, listener: Listener | None = None
    ) -> None:
        self._coordinator = coordinator
        self._server = server
        self._listener = listener or server
        self._thread = threading.Thread(target=self._run, name="psrpc-watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def _run(self) -> None:
        server, words, rounds = self._server, 0, 0
        halted: int | None = None
        clocks: tuple[tuple[int, int], ...] = ()
        while not server.ended.is_set():
            gate = server.core.gate
            rounds = max(rounds, gate.floor)
            try:
                watch = Watch(server.index, gate.epoch, words, rounds, halted, clocks)
                reply, _ = self._coordinator.call(watch).wait()
            except PsrpcError as error:
                if not server.ended.is_set():
                    self._listener.fail(error)
                return
            if isinstance(reply, Granted):
                self._listener.adopt(reply.view)
            elif isinstance(reply, Closed):
                rounds = reply.clock + 1
                self._listener.tell(reply)
            elif isinstance(reply, Halt):
                words, halted, clocks = words + 1, reply.number, server.halt(reply.number)
            elif isinstance(reply, Cut):
                words, halted, clocks = words + 1, None, ()
                server.cut(reply)
            else:
                server.ended.set()
                return
