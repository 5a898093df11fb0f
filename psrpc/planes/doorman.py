"""The plane of one host, a server's side: one thread answers the workers of this host."""

from __future__ import annotations

import select
import socket
import threading
import uuid
from collections.abc import Sequence

import torch

from psrpc.planes import wire
from psrpc.planes.base import Payload, Service
from psrpc.planes.doors import is_own
from psrpc.planes.memory import Part, Region
from psrpc.store.layout import ShardLayout

_MESSAGE_BYTES = 1 << 20


class _SlotLanding:
    """Weights on their way into one part of a slot; a `StretchLanding`."""

    def __init__(self, region: Region, part: Part) -> None:
        self._region = region
        self._part = part

    def __call__(self, flats: Sequence[torch.Tensor]) -> None:
        self._region.write(self._part, flats)

    def stretch(self, flats: Sequence[torch.Tensor], segment: int, low: int, high: int) -> None:
        self._region.write_stretch(self._part, flats, segment, low, high)


class _Guest:
    """A worker at the door: its socket and its slot."""

    def __init__(self, sock: socket.socket, layout: ShardLayout) -> None:
        self.sock = sock
        self._region = Region.create(layout)
        # Not of this object: who is in no circle is freed, with what is mapped, as he leaves.
        self._landings = (
            _SlotLanding(self._region, Part.WEIGHTS),
            _SlotLanding(self._region, Part.AHEAD),
        )

    def welcome(self) -> None:
        """Give the worker its slot."""
        socket.send_fds(self.sock, [b"slot"], [self._region.fd])

    def serve(self, service: Service) -> bool:
        """Take one request to `service`; returns whether there was one."""
        try:
            message = self.sock.recv(_MESSAGE_BYTES)
        except OSError:
            return False
        if not message:
            return False
        ring = wire.unpack(message)
        service.handle(
            ring.request,
            () if ring.side is None else self._region.part(Part(ring.side)),
            self._answer,
            None if ring.ahead is None else self._landings[ring.ahead],
        )
        return True

    def leave(self) -> None:
        """The worker is gone, or unwelcome."""
        self.sock.close()
        self._region.close()

    def _answer(self, payload: Payload) -> None:
        try:
            self.sock.send(wire.pack_reply(payload[0]))
        except OSError:
            return  # The worker is gone, and with it whoever wanted to know.


class Doorman:
    """Listens on a socket that has no file, lends slots of memory, and passes requests on."""

    def __init__(self, service: Service, layout: ShardLayout) -> None:
        self.address = f"psrpc-{uuid.uuid4().hex}"
        self._service = service
        self._layout = layout
        self._guests: dict[int, _Guest] = {}  # by descriptor
        self._thread = threading.Thread(target=self._run, name="psrpc-doorman", daemon=True)
        self._poll: select.epoll | None = None
        self._listener: socket.socket | None = None
        self._bell: tuple[socket.socket, socket.socket] | None = None

    def start(self) -> None:
        """Listen; users other than this process's own cannot enter."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(f"\0{self.address}")
        self._listener.listen(128)
        self._bell = socket.socketpair()
        self._poll = select.epoll()
        self._poll.register(self._listener.fileno(), select.EPOLLIN)
        self._poll.register(self._bell[0].fileno(), select.EPOLLIN)
        self._thread.start()

    def close(self) -> None:
        """Stop answering; workers that wait for an answer get PeerLostError."""
        if self._bell is not None:
            self._bell[1].close()
            self._thread.join()

    def _run(self) -> None:
        assert self._poll is not None
        assert self._bell is not None
        end = self._bell[0].fileno()
        while True:
            for fd, _ in self._poll.poll():
                if fd == end:
                    self._shut()
                    return
                self._attend(fd)

    def _attend(self, fd: int) -> None:
        guest = self._guests.get(fd)
        if guest is None:
            self._admit()
            return
        try:
            stays = guest.serve(self._service)
        except Exception:
            # Out of memory, a garbled message: it ends this connection, whose worker is told
            # by that, and not this thread, for which the others would wait for ever.
            stays = False
        if not stays:
            self._dismiss(fd)

    def _admit(self) -> None:
        assert self._listener is not None
        assert self._poll is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        if not is_own(sock):
            sock.close()
            return
        try:
            guest = _Guest(sock, self._layout)
        except OSError:
            sock.close()
            return
        self._guests[sock.fileno()] = guest
        self._poll.register(sock.fileno(), select.EPOLLIN)
        try:
            guest.welcome()
        except OSError:
            self._dismiss(sock.fileno())

    def _dismiss(self, fd: int) -> None:
        assert self._poll is not None
        self._poll.unregister(fd)
        self._guests.pop(fd).leave()

    def _shut(self) -> None:
        assert self._poll is not None
        assert self._bell is not None
        assert self._listener is not None
        self._poll.close()
        self._listener.close()
        self._bell[0].close()
        for guest in self._guests.values():
            guest.leave()
        self._guests.clear()
