"""The gate before an agent's socket: shut, but while somebody of the job connects.

TensorPipe listens for all who come. So nobody comes: the kernel drops what is sent to its socket
(`filters`). Who wants to connect proves at the gate, a door of its own, that he is of the job;
until he hangs up there, connections from his address are let through. One is enough for the life
of both, for agents never connect again. The gate is opened to an address, not to a process:
who shares that of a process which is just connecting can come in as well.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from psrpc.planes import filters
from psrpc.planes.doors import Door, knock
from psrpc.secret import Secret

PURPOSE = "gate"
_OPEN = b"\x01"
_LONGEST_S = 60.0  # that it stays open for one who does not hang up

log = logging.getLogger(__name__)


class Gate:
    """The gate of the socket that listens on `host`:`port` in this process."""

    def __init__(self, host: str, port: int, secret: Secret) -> None:
        self._door = Door(host, secret, PURPOSE, self._admit)
        self._port = port
        self._sockets: list[socket.socket] = []
        self._connecting: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """Where one comes in."""
        return self._door.port

    def start(self) -> None:
        """Shut the socket, and be ready to let others through."""
        self._sockets = filters.listeners(self._port)
        with self._lock:
            self._filter()
        self._door.start()

    def close(self) -> None:
        """Let nobody through any more. The socket is its owner's."""
        self._door.close()
        with self._lock:
            self._connecting.clear()
            _let_go(self._sockets)
            self._sockets = []

    def _admit(self, visitor: socket.socket) -> None:
        address = str(visitor.getpeername()[0])
        with visitor:
            self._change(address, 1)
            try:
                visitor.settimeout(_LONGEST_S)
                visitor.sendall(_OPEN)
                visitor.recv(1)
            except OSError:
                pass
            finally:
                self._change(address, -1)

    def _change(self, address: str, by: int) -> None:
        with self._lock:
            self._connecting[address] += by
            self._filter()

    def _filter(self) -> None:
        _attach(self._sockets, [each for each, count in self._connecting.items() if count > 0])


def shut_for_good(port: int) -> Callable[[], None]:
    """Let nobody connect to what listens at `port` in this process; returns what to call last."""
    sockets = filters.listeners(port)
    _attach(sockets, [])
    return lambda: _let_go(sockets)


@contextmanager
def pass_through(host: str, port: int, secret: Secret) -> Iterator[None]:
    """Let this host's connections be let through by a gate, within the block.

    Raises OSError if there is none, SecretError if it has another secret.
    """
    with knock(host, port, secret, PURPOSE) as sock:
        sock.settimeout(_LONGEST_S)
        if sock.recv(1) != _OPEN:
            raise ConnectionResetError("the gate was closed")
        yield


def _attach(sockets: list[socket.socket], addresses: list[str]) -> None:
    for sock in sockets:
        try:
            filters.attach(sock, addresses)
        except OSError as error:
            log.warning(
                "no address filter on port %d (%s): whoever reaches this port can reach torch RPC",
                sock.getsockname()[1],
                error.strerror,
            )


def _let_go(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        with suppress(OSError):
            sock.close()
