"""The plane of one host: gradients and weights in shared memory, small messages on a socket.

A worker's gradients are written into its own slot, where the server's optimizer
reads them; the server writes the new weights into the slot's other half, which is
the memory of the worker's model. A message of a few hundred bytes on a Unix
socket says when. Both sides sleep in the kernel while they wait. Everything that
is rare (coming, leases, leaving) goes over RPC.
"""

from __future__ import annotations

import os
import pickle
import select
import selectors
import socket
import struct
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from psrpc.errors import AddressError, PeerLostError, encode
from psrpc.messages import Failure, Reply, Request
from psrpc.planes import memory
from psrpc.planes.base import Payload, Pending, Service, checked
from psrpc.planes.rpc import RpcLink
from psrpc.store.binding import Buffers
from psrpc.store.layout import ShardLayout

_MESSAGE_BYTES = 1 << 20
_ASK_AFTER_S = 60.0


@dataclass(frozen=True)
class _Ring:
    """A request on the socket: whether gradients are in the slot, and weights wanted there."""

    request: Request
    send: bool
    land: bool


class Doorman:
    """A server's side: one thread that answers the rings of all workers of this host."""

    def __init__(self, service: Service, layout: ShardLayout) -> None:
        self.address = f"psrpc-{uuid.uuid4().hex}"
        self._service = service
        self._layout = layout
        self._slots: dict[socket.socket, Buffers] = {}
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="psrpc-doorman", daemon=True)
        self._listener: socket.socket | None = None
        self._wake: socket.socket | None = None

    def start(self) -> None:
        """Listen, on a socket that has no file and that other users cannot enter."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{self.address}")
        self._listener.listen(128)
        sleeper, self._wake = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(sleeper, selectors.EVENT_READ)
        self._sleeper = sleeper
        self._thread.start()

    def close(self) -> None:
        """Stop answering; workers that wait for an answer get PeerLostError."""
        if self._wake is not None:
            self._wake.close()
            self._thread.join()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._sleeper:
                    self._shut()
                    return
                assert isinstance(key.fileobj, socket.socket)
                self._attend(key.fileobj)

    def _attend(self, sock: socket.socket) -> None:
        try:
            if sock is self._listener:
                self._admit(sock)
            else:
                self._serve(sock)
        except Exception:
            # Out of memory, a garbled message: it ends this connection, whose worker is told
            # by that, and not this thread, for which the others would wait for ever.
            self._dismiss(sock)

    def _dismiss(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        self._slots.pop(sock, None)
        sock.close()

    def _shut(self) -> None:
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()
        self._slots.clear()

    def _admit(self, listener: socket.socket) -> None:
        worker, _ = listener.accept()
        if _user_of(worker) != os.geteuid():
            worker.close()
            return
        self._selector.register(worker, selectors.EVENT_READ)
        try:
            self._give_slot(worker)
        except OSError:
            self._dismiss(worker)

    def _give_slot(self, worker: socket.socket) -> None:
        fd = memory.create(self._layout)
        try:
            self._slots[worker] = memory.Region(self._layout, fd).buffers
            socket.send_fds(worker, [b"slot"], [fd])
        finally:
            os.close(fd)

    def _serve(self, worker: socket.socket) -> None:
        try:
            message = worker.recv(_MESSAGE_BYTES)
        except OSError:
            message = b""
        if not message:
            self._dismiss(worker)
            return
        ring: _Ring = pickle.loads(message)
        slot = self._slots[worker]
        future = self._service.handle(
            ring.request,
            slot.gradients if ring.send else (),
            slot.weights if ring.land else None,
        )
        future.add_done_callback(lambda done: _answer(worker, done.value()[0]))


def _answer(worker: socket.socket, reply: Reply) -> None:
    try:
        message = pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        message = pickle.dumps(Failure(encode(error)))
    try:
        worker.send(message)
    except OSError:
        return  # The worker is gone, and with it whoever wanted to know.


class ShmPending:
    """The answer to the one exchange that is under way on a link."""

    def __init__(self, link: ShmLink, sock: socket.socket) -> None:
        self._link = link
        self._sock = sock
        self._payload: Payload | None = None

    def done(self) -> bool:
        """See `Pending`."""
        return self._payload is not None or self._readable(0.0)

    def wait(self, timeout_s: float | None = None) -> Payload:
        """See `Pending`."""
        if self._payload is None:
            self._await(timeout_s)
            self._payload = (self._receive(), [])
        return checked(self._payload)

    def _await(self, timeout_s: float | None) -> None:
        if timeout_s is not None:
            if not self._readable(timeout_s):
                raise TimeoutError(f"no answer from {self._link.peer_name} in {timeout_s} s")
            return
        # A server that is stopped keeps its sockets open: ask it over RPC now and then.
        while not self._readable(_ASK_AFTER_S):
            self._link.control.ping()

    def _readable(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def _receive(self) -> Reply:
        try:
            message = self._sock.recv(_MESSAGE_BYTES)
        except OSError as error:
            raise self._link.lost(error.strerror or str(error)) from None
        if not message:
            raise self._link.lost("it closed its socket")
        reply: Reply = pickle.loads(message)
        return reply


class ShmLink:
    """A worker's way to a server on its own host."""

    def __init__(self, control: RpcLink, address: str) -> None:
        self.control = control
        self.peer_name = control.peer.name
        self._address = address
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def connect(self) -> None:
        """Reach the server's socket. Raises AddressError if it is not on this host."""
        try:
            self._sock.connect(f"\0{self._address}")
        except OSError as error:
            self._sock.close()
            raise AddressError(
                f"{self.peer_name} shares no memory with this host ({error.strerror})"
            ) from None

    def open(self, layout: ShardLayout) -> Buffers:
        """See `Link`. The buffers are this worker's slot of shared memory."""
        _, fds, _, _ = socket.recv_fds(self._sock, 16, 1)
        if not fds:
            raise self.lost("it gave no memory")
        try:
            return self.control.adopt(memory.Region(layout, fds[0]).buffers)
        finally:
            os.close(fds[0])

    def call(self, request: Request, tensors: Sequence[torch.Tensor] = ()) -> Pending:
        """See `Link`."""
        return self.control.call(request, tensors)

    def exchange(
        self, request: Request, *, send: bool, land: bool, at_once: bool = True
    ) -> Pending:
        """See `Link`."""
        if land and not at_once:
            # The server would write into the model while it computes.
            return self.control.exchange(request, send=send, land=land)
        try:
            self._sock.send(pickle.dumps(_Ring(request, send, land), pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from None
        return ShmPending(self, self._sock)

    def close(self) -> None:
        """See `Link`. Farewells may still be called."""
        self._sock.close()
        self.control.close()

    def lost(self, cause: str) -> PeerLostError:
        """The error that says this server is gone."""
        return PeerLostError(f"{self.peer_name} on this host died or left ({cause})")


def _user_of(sock: socket.socket) -> int:
    """The user id of the process at the other end, by the kernel's word."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
