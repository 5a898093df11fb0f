"""The RPC plane's streams, a server's side: one thread for each worker's."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch

from psrpc.errors import GradientError, encode
from psrpc.messages import Failure, Push, Request, Stepped
from psrpc.planes import wire
from psrpc.planes.base import Payload, QuickService, Service, land
from psrpc.planes.doors import Door
from psrpc.planes.freight import Freight, Load, load
from psrpc.planes.wire import Ring
from psrpc.secret import Secret
from psrpc.store.layout import ShardLayout
from psrpc.usual import Usual

PURPOSE = "stream"
_SMALL_BYTES = 1 << 15  # what an empty socket takes at once


class Places:
    """Where gradients land, and weights lie that are sent: buffers of one shard, used again and
    again by whoever needs one.

    There are as many as were ever needed at one time: one for each stream at most.
    """

    def __init__(self, layout: ShardLayout) -> None:
        self.size_bytes = layout.size_bytes
        self.made = 0
        self.free: list[list[torch.Tensor]] = []
        self._layout = layout
        self._lock = threading.Lock()

    def take(self) -> list[torch.Tensor]:
        """Flat tensors, one a segment; what is in them does not matter."""
        with self._lock:
            if self.free:
                return self.free.pop()
            self.made += 1
        return self._layout.empty()

    def give(self, place: list[torch.Tensor]) -> None:
        """Nobody reads them any more."""
        if place:
            with self._lock:
                self.free.append(place)


class _Landing:
    """Weights on their way into a place, from where they are sent with the answer."""

    hidden = True

    def __init__(self, place: list[torch.Tensor]) -> None:
        self.landed: list[torch.Tensor] = []
        self._place = place

    def __call__(self, flats: Sequence[torch.Tensor]) -> None:
        land(flats, self._place)
        self.landed = self._place


class _Caller:
    """A worker that waits on its stream."""

    def __init__(self, landing: _Landing, answer: Callable[[Payload], None]) -> None:
        self.land = landing
        self.answer = answer

    def grant(self, version: int, lead: int) -> None:
        """See `Caller`."""
        self.answer((Stepped(version, lead), []))


class _Guest:
    """A worker's stream. `serve` is called on its thread."""

    def __init__(self, porter: Porter, sock: socket.socket) -> None:
        self._porter = porter
        self._freight = Freight(sock)
        self._answers: queue.SimpleQueue[Payload | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._small = porter.places.size_bytes <= _SMALL_BYTES

    def serve(self) -> None:
        """Serve until the stream ends."""
        try:
            while self._serve():
                pass
        except Exception:
            # An ended stream, a garbled message, out of memory: the worker is told by the end of
            # its stream, and the others do not notice.
            pass
        finally:
            self._porter.forget(self)
            self._freight.close()
            self._ended.set()

    def leave(self) -> None:
        """End the stream; the worker gets no answer any more."""
        self._freight.cut()
        self._answers.put(None)

    def join(self) -> None:
        """Wait until nobody serves it any more."""
        self._ended.wait()

    def _serve(self) -> bool:
        """Take one request to the service, and its answer back."""
        message, size_bytes = self._freight.receive()
        ring = wire.unpack(message)
        places = self._porter.places
        expected = 0 if ring.side is None else places.size_bytes
        if size_bytes != expected:
            self._freight.drain(size_bytes)
            self._freight.send(wire.pack_reply(Failure(_wrong(ring, size_bytes, expected))))
            return True
        place = [] if ring.side is None and ring.ahead is None else places.take()
        # Weights are copied while the service lets nobody step, and are sent when it does, at
        # whatever pace they are taken. They use the gradients' place: who is answered was read.
        landing = None if ring.ahead is None else _Landing(place)
        gradients = place if ring.side is not None else []
        if self._small:
            self._freight.take(gradients)
            self._ask(ring.request, gradients, partial(self._answer, place, landing), landing)
            return True
        try:
            self._freight.take(gradients)
            self._ask(ring.request, gradients, self._answers.put, landing)
            payload = self._answers.get()
            if payload is None:
                return False
            self._freight.finish(_load(payload, landing))
            return True
        finally:
            # Answered, so read by nobody; or all is over.
            places.give(place)

    def _ask(
        self,
        request: Request,
        gradients: list[torch.Tensor],
        answer: Callable[[Payload], None],
        landing: _Landing | None,
    ) -> None:
        """Take a request to the service, by its short way if it may."""
        quick = self._porter.quick
        if quick is not None and landing is not None and gradients and type(request) is Push:
            push = Usual.of(request)
            caller = _Caller(landing, answer)
            if push is not None and push.pull and quick.quick(push, gradients, caller):
                return
        self._porter.service.handle(request, gradients, answer, landing)

    def _answer(
        self, place: list[torch.Tensor], landing: _Landing | None, payload: Payload
    ) -> None:
        """Send what is small at once, from any thread: this guest's need not wake up for that.

        It listens for the next request meanwhile, which comes when this answer is there.
        """
        left = _load(payload, landing)
        try:
            sent = self._freight.begin(left)
        except (OSError, EOFError):
            self._freight.cut()
            sent = True
        if sent:
            self._porter.places.give(place)
        else:
            # A worker that does not take its answers: nobody else waits for it.
            threading.Thread(target=self._finish, args=(left, place), daemon=True).start()

    def _finish(self, left: Load, place: list[torch.Tensor]) -> None:
        with suppress(OSError, EOFError):
            self._freight.finish(left)
        self._porter.places.give(place)


def _load(payload: Payload, landing: _Landing | None) -> Load:
    """An answer as it is sent. Weights that landed too soon for a refusal stay here."""
    landed = landing is not None and not isinstance(payload[0], Failure)
    return load(wire.pack_reply(payload[0]), landing.landed if landed and landing else ())


class Porter:
    """Listens for workers' streams, and passes requests on. `host` is this host's address."""

    def __init__(
        self,
        service: Service,
        layout: ShardLayout,
        host: str,
        secret: Secret,
        quick: QuickService | None = None,
    ) -> None:
        """`quick` is a shorter way to the same service, for what it takes."""
        self.service, self.quick = service, quick
        self.places = Places(layout)
        self._door = Door(host, secret, PURPOSE, self._welcome)
        self._guests: set[_Guest] = set()
        self._closed = False
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        """Where workers reach this: HOST:PORT."""
        return self._door.address

    @property
    def guests(self) -> int:
        """The number of streams that are open."""
        return len(self._guests)

    def start(self) -> None:
        """Listen."""
        self._door.start()

    def close(self) -> None:
        """Take no more, and end all streams; workers that wait get PeerLostError."""
        self._door.close()
        with self._lock:
            self._closed = True
            guests = list(self._guests)
        for guest in guests:
            guest.leave()
        for guest in guests:
            guest.join()

    def forget(self, guest: _Guest) -> None:
        """This stream has ended."""
        with self._lock:
            self._guests.discard(guest)

    def _welcome(self, sock: socket.socket) -> None:
        guest = _Guest(self, sock)
        with self._lock:
            if self._closed:
                sock.close()
                return
            self._guests.add(guest)
        guest.serve()


def _wrong(ring: Ring, size_bytes: int, expected: int) -> tuple[str, str]:
    return encode(
        GradientError(
            f"worker {ring.request.worker} sent {size_bytes} bytes of gradients, this shard has "
            f"{expected}"
        )
    )
