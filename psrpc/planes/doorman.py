"""The plane of one host, a server's side: a thread for each worker of this host answers it."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Sequence
from contextlib import suppress

import torch

from psrpc.planes import wire
from psrpc.planes.base import Payload, QuickService, Service
from psrpc.planes.doors import is_own
from psrpc.planes.memory import Part, Region
from psrpc.store.layout import ShardLayout

_MESSAGE_BYTES = 1 << 20
_AGAIN_S = 0.1  # after there were too many open files
_SIDES = (Part.GRADIENTS, Part.OTHER_GRADIENTS)


class _SlotLanding:
    """Weights on their way into one part of a slot; a `StretchLanding`."""

    def __init__(self, region: Region, part: Part) -> None:
        self._region = region
        self._part = part

    def __call__(self, flats: Sequence[torch.Tensor]) -> None:
        self._region.write(self._part, flats)

    def stretch(self, flats: Sequence[torch.Tensor], segment: int, low: int, high: int) -> None:
        self._region.write_stretch(self._part, flats, segment, low, high)


class _Caller:
    """A worker that waits for an answer on its socket, and for weights in a part of its slot."""

    def __init__(self, sock: socket.socket, region: Region, part: Part) -> None:
        self.land = _SlotLanding(region, part)
        self._sock = sock

    def grant(self, version: int, lead: int) -> None:
        """See `Caller`."""
        self._send(wire.pack_granted(version, lead))

    def answer(self, payload: Payload) -> None:
        """See `Caller`."""
        self._send(wire.pack_reply(payload[0]))

    def _send(self, message: bytes) -> None:
        try:
            self._sock.send(message)
        except OSError:
            return  # The worker is gone, and with it whoever wanted to know.


class _Guest:
    """A worker at the door: its socket and its slot."""

    def __init__(self, sock: socket.socket, layout: ShardLayout) -> None:
        self.sock = sock
        self._region = Region.create(layout)
        # They know nothing of this object: who is in no circle is freed, with what is mapped, as
        # he leaves.
        parts = (Part.WEIGHTS, Part.AHEAD)
        self._callers = [_Caller(sock, self._region, part) for part in parts]

    def welcome(self) -> None:
        """Give the worker its slot."""
        socket.send_fds(self.sock, [b"slot"], [self._region.fd])

    def serve(self, service: Service, quick: QuickService | None) -> bool:
        """Take one request to `service`, or to `quick`; returns whether there was one."""
        try:
            message = self.sock.recv(_MESSAGE_BYTES)
        except OSError:
            return False
        if not message:
            return False
        usual = None if quick is None else wire.unpack_usual(message)
        if usual is not None and quick is not None:
            push, side, ahead = usual
            if quick.quick(push, self._region.part(_SIDES[side]), self._callers[ahead]):
                return True
        ring = wire.unpack(message)
        service.handle(
            ring.request,
            () if ring.side is None else self._region.part(_SIDES[ring.side]),
            self._callers[0].answer,
            None if ring.ahead is None else self._callers[ring.ahead].land,
        )
        return True

    def dismiss(self) -> None:
        """Let `serve` end, which is called on another thread."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def leave(self) -> None:
        """The worker is gone, or unwelcome."""
        self.sock.close()
        self._region.close()


class Doorman:
    """Listens on a socket that has no file, lends slots of memory, and passes requests on.

    Each guest has a thread, which sleeps in its socket: so the kernel wakes it where its worker
    runs, that waits from then on. A thread for all of them would run on either processor, and it
    costs more to wake somebody on another one than to apply a small push.
    """

    def __init__(
        self, service: Service, layout: ShardLayout, quick: QuickService | None = None
    ) -> None:
        """`quick` is a shorter way to the same service, for what it takes."""
        self.address = f"psrpc-{uuid.uuid4().hex}"
        self._service = service
        self._quick = quick
        self._layout = layout
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._guests: dict[_Guest, threading.Thread] = {}
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen; users other than this process's own cannot enter."""
        self._listener.bind(f"\0{self.address}")
        self._listener.listen(128)
        self._thread = threading.Thread(target=self._run, name="psrpc-doorman", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering; workers that wait for an answer get PeerLostError."""
        with self._lock:
            self._closed.set()
            guests = dict(self._guests)
        if self._thread is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self._listener.close()
        for guest, thread in guests.items():
            guest.dismiss()
            thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                self._closed.wait(_AGAIN_S)  # at once, if this is why
                continue
            if is_own(sock):
                self._admit(sock)
            else:
                sock.close()

    def _admit(self, sock: socket.socket) -> None:
        try:
            guest = _Guest(sock, self._layout)
        except OSError:
            sock.close()
            return
        thread = threading.Thread(
            target=self._attend, args=[guest], name="psrpc-guest", daemon=True
        )
        try:
            with self._lock:
                if self._closed.is_set():
                    raise RuntimeError("nobody is let in any more")
                thread.start()
                self._guests[guest] = thread
        except RuntimeError:  # also, there are too many threads
            guest.leave()

    def _attend(self, guest: _Guest) -> None:
        """Serve a guest until he goes."""
        try:
            guest.welcome()
            while guest.serve(self._service, self._quick):
                pass
        except Exception:
            # Out of memory, a garbled message: it ends this connection, whose worker is told
            # by that, and the others do not notice.
            pass
        finally:
            with self._lock:
                self._guests.pop(guest, None)
            guest.leave()
