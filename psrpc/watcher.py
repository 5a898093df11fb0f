"""How a server hears from the coordinator: it asks for the next view, again and again."""

from __future__ import annotations

import threading
from typing import Protocol

from psrpc.errors import PsrpcError
from psrpc.messages import Granted, View
from psrpc.orders import Cut, Watch
from psrpc.planes.base import Link
from psrpc.server import ParameterServer


class Listener(Protocol):
    """Who is told of a new view, and of the coordinator's end."""

    def adopt(self, view: View) -> None: ...
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
        server, cuts = self._server, 0
        while not server.ended.is_set():
            try:
                watch = Watch(server.index, server.core.gate.epoch, cuts)
                reply, _ = self._coordinator.call(watch).wait()
            except PsrpcError as error:
                if not server.ended.is_set():
                    self._listener.fail(error)
                return
            if isinstance(reply, Granted):
                self._listener.adopt(reply.view)
            elif isinstance(reply, Cut):
                cuts += 1
                server.cut(reply)
            else:
                server.ended.set()
                return
