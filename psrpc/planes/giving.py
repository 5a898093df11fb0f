"""How rows go from server to server when a new layout is made: a stream, asked for by who takes.

Whoever takes says which shard it is to be. The giver answers when it stands at the cut, with a
header for each chunk of rows, and then their bytes, from where they lie to where they belong.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import torch

from psrpc.errors import PeerLostError, ProtocolError
from psrpc.planes import codec
from psrpc.planes.doors import Door, knock
from psrpc.planes.freight import Freight
from psrpc.secret import Secret
from psrpc.store.dealing import Chunk, Dealt
from psrpc.store.state import Option

_PURPOSE = "rows"
_CONNECT_S = 10.0


class Wanted(NamedTuple):
    """What a taker is to be: shard `shard` of `servers`; a `fresh` one needs decisions as well."""

    layout: int
    shard: int
    servers: int
    fresh: bool


@dataclass(frozen=True)
class Given:
    """What a giver has for one taker: a digest of its ledger, and its decisions if they are asked
    for, beside rows and options.
    """

    mark: str
    chunks: Sequence[Chunk]
    options: Sequence[Option]
    decisions: bytes = b""


class Giver:
    """Listens, and gives rows to who has the job's secret. `look` blocks, and may raise."""

    def __init__(self, host: str, secret: Secret, look: Callable[[Wanted], Given]) -> None:
        self._look = look
        self._door = Door(host, secret, _PURPOSE, self._welcome)
        self._takers: set[Freight] = set()
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self._door.address

    def start(self) -> None:
        """Listen."""
        self._door.start()

    def close(self) -> None:
        """Give nothing any more."""
        self._door.close()
        with self._lock:
            takers = list(self._takers)
        for taker in takers:
            taker.cut()

    def _welcome(self, sock: socket.socket) -> None:
        freight = Freight(sock)
        with self._lock:
            self._takers.add(freight)
        try:
            self._give(freight)
        except Exception:
            # The taker is told by the stream's end, and the coordinator by the taker.
            pass
        finally:
            with self._lock:
                self._takers.discard(freight)
            freight.close()

    def _give(self, freight: Freight) -> None:
        message, _ = freight.receive()
        given = self._look(Wanted(*codec.decode(message)))
        headers = [chunk.header() for chunk in given.chunks]
        options = [astuple(option) for option in given.options]
        header = codec.encode((given.mark, headers, options, given.decisions))
        freight.send(header, [tensor for chunk in given.chunks for tensor in chunk.tensors])


def take(address: str, secret: Secret, wanted: Wanted, into: Dealt, who: str) -> Given:
    """Take rows into a shard that is being made. Blocks; raises PeerLostError.

    What is returned has no chunks.
    """
    host, _, port = address.rpartition(":")
    try:
        freight = Freight(knock(host, int(port), secret, _PURPOSE, _CONNECT_S))
        try:
            freight.send(codec.encode(tuple(wanted)))
            message, size_bytes = freight.receive()
            return _land(freight, codec.decode(message), size_bytes, into)
        finally:
            freight.close()
    except (OSError, EOFError) as error:
        raise PeerLostError(f"{who} gave no rows ({error})") from None


def _land(freight: Freight, came: Any, size_bytes: int, into: Dealt) -> Given:
    mark, headers, options, decisions = came
    targets: list[torch.Tensor] = []
    for header in headers:
        targets += into.place(header)
    if sum(target.nbytes for target in targets) != size_bytes:
        raise ProtocolError("rows came that are of another model: do all servers have the same?")
    freight.take(targets)
    return Given(mark, (), [Option(*option) for option in options], decisions)
