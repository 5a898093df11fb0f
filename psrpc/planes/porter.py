"""The RPC plane's streams, a server's side: one thread for each worker's."""

from __future__ import annotations

import hmac
import queue
import secrets
import socket
import threading
from collections.abc import Sequence

import torch

from psrpc.errors import GradientError, encode
from psrpc.messages import Failure
from psrpc.planes import wire
from psrpc.planes.base import Payload, Service, land
from psrpc.planes.freight import Freight
from psrpc.planes.wire import Ring
from psrpc.store.layout import ShardLayout

_TOKEN_S = 30.0


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
        with self._lock:
            self.free.append(place)


class _Guest:
    """A worker's stream, with its thread."""

    def __init__(self, porter: Porter, sock: socket.socket) -> None:
        self._porter = porter
        self._admitted = False
        self._freight = Freight(sock, self._hurry, _TOKEN_S)
        self._answers: queue.SimpleQueue[Payload | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="psrpc-stream", daemon=True)

    def start(self) -> None:
        """Serve until the stream ends."""
        self._thread.start()

    def leave(self) -> None:
        """End the stream; the worker gets no answer any more."""
        self._freight.cut()
        self._answers.put(None)

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            expected = self._porter.token.encode()
            token, _ = self._freight.receive(len(expected))
            self._admitted = hmac.compare_digest(token, expected)
            while self._admitted and self._serve():
                pass
        except Exception:
            # An ended stream, a garbled message, out of memory: the worker is told by the end of
            # its stream, and the others do not notice.
            pass
        finally:
            self._porter.forget(self)
            self._freight.close()

    def _hurry(self) -> None:
        """Workers may be silent for as long as they like, strangers may not."""
        if not self._admitted:
            raise TimeoutError("it does not say who it is")

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
        if ring.side is None and ring.ahead is None:
            return self._converse(ring, [])
        place = places.take()
        try:
            return self._converse(ring, place)
        finally:
            # Answered, so read by nobody; or all is over.
            places.give(place)

    def _converse(self, ring: Ring, place: list[torch.Tensor]) -> bool:
        """Take one request and its gradients to the service, and its answer and weights back.

        Both use the same place: who is answered has been read. Weights are copied while the
        service lets nobody step, and are sent when it does, at whatever pace they are taken.
        """
        landed: list[torch.Tensor] = []

        def land_here(flats: Sequence[torch.Tensor]) -> None:
            land(flats, place)
            landed[:] = place

        gradients = place if ring.side is not None else []
        self._freight.take(gradients)
        landing = None if ring.ahead is None else land_here
        self._porter.service.handle(ring.request, gradients, self._answers.put, landing)
        payload = self._answers.get()
        if payload is None:
            return False
        self._freight.send(wire.pack_reply(payload[0]), landed)
        return True


class Porter:
    """Listens for workers' streams, and passes requests on. Whoever knows the address may enter.

    `host` is the address of this host to listen on.
    """

    def __init__(self, service: Service, layout: ShardLayout, host: str) -> None:
        self.service = service
        self.places = Places(layout)
        self.token = secrets.token_hex(16)
        self._host = host
        self._listener: socket.socket | None = None
        self._guests: set[_Guest] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="psrpc-porter", daemon=True)

    @property
    def address(self) -> str:
        """Where workers reach this, and what lets them in."""
        assert self._listener is not None
        return f"{self.token}@{self._host}:{self._listener.getsockname()[1]}"

    @property
    def guests(self) -> int:
        """The number of streams that are open."""
        return len(self._guests)

    def start(self) -> None:
        """Listen."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listener = socket.create_server((self._host, 0), family=family, backlog=128)
        self._thread.start()

    def close(self) -> None:
        """Take no more, and end all streams; workers that wait get PeerLostError."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        listener.close()
        with self._lock:
            guests = list(self._guests)
        for guest in guests:
            guest.leave()
        for guest in guests:
            guest.join()

    def forget(self, guest: _Guest) -> None:
        """This stream has ended."""
        with self._lock:
            self._guests.discard(guest)

    def _run(self) -> None:
        listener = self._listener
        while listener is not None:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            guest = _Guest(self, sock)
            with self._lock:
                self._guests.add(guest)
            guest.start()


def _wrong(ring: Ring, size_bytes: int, expected: int) -> tuple[str, str]:
    return encode(
        GradientError(
            f"worker {ring.request.worker} sent {size_bytes} bytes of gradients, this shard has "
            f"{expected}"
        )
    )
