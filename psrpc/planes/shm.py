"""The plane of one host, a worker's side: shared memory, and small messages on a socket.

A worker's gradients lie in its own slot, where the server's optimizer reads them; the
server writes the new weights into the memory of the worker's model. A message of a
hundred bytes on a Unix socket says when. Both sides sleep in the kernel while they
wait. Everything that is rare (coming, leases, leaving) goes over RPC.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Sequence

import torch

from psrpc.errors import AddressError, PeerLostError, SecretError
from psrpc.forks import keep_from_children
from psrpc.messages import Reply, Request
from psrpc.planes import wire
from psrpc.planes.base import Payload, Pending, checked, land
from psrpc.planes.doors import is_own
from psrpc.planes.memory import Part, Region
from psrpc.planes.rpc import RpcLink
from psrpc.planes.wire import Ring
from psrpc.store.flats import Buffers
from psrpc.store.layout import ShardLayout
from psrpc.usual import Usual

_MESSAGE_BYTES = 1 << 20
_ASK_AFTER_S = 60.0


class ShmPending:
    """The answer to the one exchange that is under way on a link."""

    def __init__(self, link: ShmLink, ahead: bool, reply: Reply | None = None) -> None:
        self._link = link
        self._ahead = ahead
        self._payload: Payload | None = None if reply is None else (reply, [])

    def done(self) -> bool:
        """See `Pending`."""
        return self._payload is not None or self._link.readable(0.0)

    def arrive(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        if self._payload is None:
            if timeout_s is not None and not self._link.readable(timeout_s):
                raise TimeoutError(f"no answer from {self._link.peer_name} in {timeout_s} s")
            self._payload = (self._link.receive(), [])
        return checked(self._payload)

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        payload = self.arrive(timeout_s)
        if self._ahead:
            self._link.take_weights()
            self._ahead = False
        return payload


class ShmLink:
    """A worker's way to a server on its own host."""

    def __init__(self, control: RpcLink, address: str) -> None:
        self.control = control
        self.peer_name = control.peer.name
        self._address = address
        self._sock = keep_from_children(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        self.region: Region | None = None  # once open
        self._buffers = Buffers.none()
        self._owed = False

    def connect(self) -> None:
        """Reach the server's socket. Raises AddressError if it is not on this host.

        Raises SecretError if another user listens there, whose memory gradients must not go to.
        """
        try:
            self._sock.connect(f"\0{self._address}")
        except OSError as error:
            self._sock.close()
            raise AddressError(
                f"{self.peer_name} shares no memory with this host ({error.strerror})"
            ) from None
        if not is_own(self._sock):
            self._sock.close()
            raise SecretError(f"another user of this host has taken the place of {self.peer_name}")
        seconds = int(_ASK_AFTER_S)
        patience = struct.pack("ll", seconds, int((_ASK_AFTER_S - seconds) * 1e6))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`. The buffers are this worker's slot of shared memory."""
        region = keep_from_children(Region(layout, self._receive_memory()))
        self.region = region
        self._buffers = Buffers(
            region.part(Part.WEIGHTS), lambda side: region.part(Part(side)), region.lock_pages
        )
        return self._buffers

    def adopt(self, buffers: Buffers, region: Region) -> Buffers:
        """Use buffers that are there already, in a region that another server gave."""
        region.move(self._receive_memory())
        self.region, self._buffers = region, buffers
        return buffers

    def _receive_memory(self) -> int:
        try:
            _, fds, _, _ = socket.recv_fds(self._sock, 16, 1)
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from None
        if not fds:
            raise self.lost("it gave no memory")
        return fds[0]

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return self.control.call(request, tensors)

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        # Weights may not appear in the model while it computes.
        ahead = not at_once if land else None
        ring = Ring(request, self._buffers.side if send else None, ahead)
        try:
            self._sock.send(wire.pack(ring))
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from None
        return ShmPending(self, bool(ahead))

    def quick(self, push: Usual) -> Pending | None:
        """See `QuickLink`."""
        sock = self._sock
        try:
            sock.send(wire.pack_usual(self._buffers.side, push))
            self._owed = True
            message = sock.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            self.control.ping()
            message = b""
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from None
        reply = None
        if not (message[:1] == wire.GRANTED and message.endswith(wire.NOTHING_RARE)):
            reply = wire.unpack_reply(message or self._receive())
        self._owed = False
        return None if reply is None else ShmPending(self, ahead=False, reply=reply)

    def owed(self) -> Pending | None:
        """See `QuickLink`."""
        owed, self._owed = self._owed, False
        return ShmPending(self, ahead=False) if owed else None

    def hang_up(self) -> None:
        """Say nothing more to this server; the buffers stay, as memory of this process alone.

        A server that stood still and goes on writes its last weights where nobody reads them.
        """
        self._sock.close()
        if self.region is not None:
            self.region.move(-1)

    def close(self) -> None:
        """See `Link`. Farewells may still be called."""
        self._sock.close()
        if self.region is not None:
            self.region.close()
        self.control.close()

    def readable(self, timeout_s: float) -> bool:
        """Whether an answer is there, or the server gone, within that time."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def receive(self) -> Reply:
        """Wait for the answer. Raises PeerLostError."""
        return wire.unpack_reply(self._receive())

    def _receive(self) -> bytes:
        while True:
            try:
                message = self._sock.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                # A server that is stopped keeps its sockets open: ask it over RPC.
                self.control.ping()
            except OSError as error:
                raise self.lost(error.strerror or str(error)) from None
            else:
                break
        if not message:
            raise self.lost("it closed its socket")
        return message

    def take_weights(self) -> None:
        """Let the weights that were fetched ahead be the model's."""
        assert self.region is not None
        land(self.region.part(Part.AHEAD), self._buffers.weights)

    def lost(self, cause: str) -> PeerLostError:
        """The error that says this server is gone."""
        return PeerLostError(f"{self.peer_name} on this host died or left ({cause})")
