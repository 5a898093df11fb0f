"""How a server hears from the coordinator: it asks what is new, again and again."""

from __future__ import annotations

import threading

from psrpc.errors import PsrpcError
from psrpc.messages import Granted
from psrpc.orders import Closed, Cut, Halt, Watch
from psrpc.planes.base import Link
from psrpc.server import ParameterServer


class Watcher:
    """Keeps a server's view new, and ends the server with the job. One thread, which waits."""

    def __init__(self, coordinator: Link, server: ParameterServer) -> None:
        self._coordinator = coordinator
        self._server = server
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
                    server.fail(error)
                return
            if isinstance(reply, Granted):
                server.adopt(reply.view)
            elif isinstance(reply, Closed):
                rounds = reply.clock + 1
                server.tell(reply)
            elif isinstance(reply, Halt):
                words, halted, clocks = words + 1, reply.number, server.halt(reply.number)
            elif isinstance(reply, Cut):
                words, halted, clocks = words + 1, None, ()
                server.cut(reply)
            else:
                server.ended.set()
                return
