"""The RPC plane's way for gradients and weights, a worker's side: a stream beside RPC.

Torch RPC receives a tensor in memory of its own choice, from where it has to be copied, and
a call of it costs three times as much as one over a socket. So steps go over a TCP
connection: a push and its pull are one request and one answer, gradients land in the
server's buffer and weights in the model's memory. Everything else goes over RPC, which
also tells a slow server from a dead one, and is the way where there is no stream. A link
has a thread, so that all shards' bytes are on their way at once, and during a computation
that overlaps.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

import torch

from psrpc.errors import AddressError, PeerLostError, ProtocolError
from psrpc.forks import keep_from_children
from psrpc.messages import Request
from psrpc.planes import wire
from psrpc.planes.base import Payload, Pending, checked, land
from psrpc.planes.errand import Errand
from psrpc.planes.freight import Freight, size_of
from psrpc.planes.rpc import RpcLink
from psrpc.planes.wire import Ring
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout

_TRIES = 3
_CUT_AGAIN_S = 0.1


class StreamPending:
    """The answer to the one exchange that is under way on a link."""

    def __init__(self, errand: Errand, link: StreamLink, ahead: bool) -> None:
        self._errand = errand
        self._link = link
        self._ahead = ahead

    def done(self) -> bool:
        """See `Pending`."""
        return self._errand.done()

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        return self._errand.arrive(timeout_s)

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        payload = self.arrive(timeout_s)
        if self._ahead:
            self._link.take_weights()
            self._ahead = False
        return payload


class StreamLink:
    """A worker's way to a server on another host."""

    def __init__(self, control: RpcLink, address: str) -> None:
        self.control = control
        self._token, _, place = address.rpartition("@")
        self._host, _, self._port = place.rpartition(":")
        self._freight: Freight | None = None
        self._closed = False
        self._buffers = Buffers.none()
        self._layout = ShardLayout((), ())
        self._fetched: list[torch.Tensor] | None = None
        self._orders: queue.SimpleQueue[Errand | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._run, name=f"psrpc-{control.peer.name}", daemon=True
        )

    def connect(self) -> None:
        """Reach the server's stream. Blocks; raises AddressError if there is no way to it."""
        try:
            sock = socket.create_connection(
                (self._host, int(self._port)), self.control.patience.ping_s
            )
        except OSError as error:
            raise AddressError(
                f"{self.control.peer.name} cannot be reached at {self._host}:{self._port} ({error})"
            ) from None
        self._freight = Freight(
            keep_from_children(sock), self.control.ping, self.control.patience.attempt_s
        )
        self._freight.send(self._token.encode())

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`."""
        return self.adopt(Buffers.private(layout), layout)

    def adopt(self, buffers: Buffers, layout: ShardLayout) -> Buffers:
        """Use buffers that are there already."""
        self._layout = layout
        self._buffers = buffers
        self._thread.start()
        return buffers

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return self.control.call(request, tensors)

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        if self._closed:
            raise self._lost("this end is closed")
        ahead = land and not at_once
        if ahead and self._fetched is None:
            self._fetched = self._layout.empty()
        ring = Ring(request, self._buffers.side if send else None, ahead if land else None)
        gradients = self._buffers.gradients if send else []
        weights = self._fetched if ahead else self._buffers.weights if land else None
        errand = Errand(lambda: self._play(ring, gradients, weights))
        self._orders.put(errand)
        return StreamPending(errand, self, ahead)

    def close(self) -> None:
        """See `Link`. Farewells may still be called."""
        self._closed = True
        self._orders.put(None)
        while self._thread.is_alive():
            # The thread may just have made a new connection.
            assert self._freight is not None
            self._freight.cut()
            self._thread.join(_CUT_AGAIN_S)
        if self._freight is not None:
            self._freight.close()
        self.control.close()

    def take_weights(self) -> None:
        """Let the weights that were fetched ahead be the model's."""
        assert self._fetched is not None
        land(self._fetched, self._buffers.weights)

    def _run(self) -> None:
        while (errand := self._orders.get()) is not None:
            errand.carry_out()

    def _play(
        self, ring: Ring, gradients: Sequence[torch.Tensor], weights: Sequence[torch.Tensor] | None
    ) -> Payload:
        """Send a request, and receive its answer; over a new connection if the first one breaks.

        The server gives a request that comes again the first one's answer.
        """
        message = wire.pack(ring)
        for attempt in range(_TRIES):
            try:
                if attempt:
                    self._reach_again()
                return checked(self._converse(message, gradients, weights))
            except (OSError, EOFError) as error:
                cause = str(error)
        raise self._lost(cause)

    def _converse(
        self,
        message: bytes,
        gradients: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor] | None,
    ) -> Payload:
        freight = self._freight
        assert freight is not None
        freight.send(message, gradients)
        answer, size_bytes = freight.receive()
        if size_bytes:
            expected = size_of(weights or ())
            if size_bytes != expected:
                freight.drain(size_bytes)
                raise ProtocolError(
                    f"{self.control.peer.name} sent {size_bytes} bytes of weights, its shard has "
                    f"{expected} here: do all processes build the same model?"
                )
            freight.take(weights or ())
        return wire.unpack_reply(answer), []

    def _reach_again(self) -> None:
        if self._closed:
            raise self._lost("this end is closed")
        self.control.ping()
        assert self._freight is not None
        self._freight.close()
        with suppress(OSError):  # what is broken at once is found broken when it is used
            self._connect_or_lose()

    def _connect_or_lose(self) -> None:
        try:
            self.connect()
        except AddressError as error:
            raise self._lost(str(error)) from None

    def _lost(self, cause: str) -> PeerLostError:
        return self.control.lost(ConnectionError(cause))
